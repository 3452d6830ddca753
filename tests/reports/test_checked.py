"""What a gate found, as the terminal, JUnit and Markdown say it."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import pytest
import xmlschema

from tests.reports import made
from vrambench.bench.gate.check import CellCheck, Check, Difference, Growth
from vrambench.reports.checked import headline, lines
from vrambench.reports.ci.annotations import annotations_of
from vrambench.reports.ci.junit import junit_of
from vrambench.reports.ci.markdown import MOST_BYTES, summary_of
from vrambench.reports.text.checked import print_check

GIB, MIB = 2**30, 2**20

WORSE = CellCheck(
    id="a1",
    name="bf16 lora adamw_torch none sft",
    outcome="regressed",
    differences=(
        Difference(
            metric="allocated_bytes", before=12 * GIB, now=13.25 * GIB, allowed=64 * MIB, worse=True, better=False
        ),
        Difference(metric="step_seconds", before=1.0, now=1.2, allowed=0.05, worse=True, better=False),
    ),
    phase="learn",
    step=1,
    phase_bytes=5 * GIB // 4,
    growth=(
        Growth(
            role="policy",
            kind="logits_and_loss",
            phase="learn",
            module="lm_head",
            operator="aten.mm.default",
            before_bytes=0,
            now_bytes=5 * GIB // 4,
        ),
        Growth(role="policy", kind="optimizer", before_bytes=MIB, now_bytes=3 * MIB),
    ),
)
OTHERS = (
    CellCheck(id="b2", name="fp32 none sgd none sft", outcome="failed", reason="error: it broke"),
    CellCheck(id="c3", name="nf4 none sgd none sft", outcome="vanished", reason="invalid by the rule quantized-full"),
    CellCheck(id="d4", name="nf4 lora sgd none sft", outcome="new", reason="ok"),
    CellCheck(id="e5", name="int8 lora sgd none sft", outcome="same"),
)
FOUND = Check(device="predicted", notes=("torch: 2.12 before, 2.13 now",), cells=(WORSE, *OTHERS))
WORDS = [
    "allocated 1.25 GiB more: 12 GiB before, 13.2 GiB now (allowed: 64 MiB)",
    "step 200 ms more: 1 s before, 1.20 s now (allowed: 50 ms)",
    "most in learn of step 1: 1.25 GiB more",
    "policy logits_and_loss +1.25 GiB: lm_head aten.mm.default in learn",
    "policy optimizer +2 MiB",
]


def test_the_terminal_says_what_grew_and_where() -> None:
    out = io.StringIO()
    print_check(FOUND, out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "regressed: bf16 lora adamw_torch none sft (a1)"
    assert [line.strip() for line in lines[1:6]] == WORDS
    assert lines[6:8] == ["failed: fp32 none sgd none sft (b2)", "  error: it broke"]
    assert lines[-2] == "unlike the baseline's run: torch: 2.12 before, 2.13 now"
    assert lines[-1] == (
        "5 cells: 1 worse than the baseline, 1 failed to be measured, 1 not in this run any more, 1 new, 1 as before"
    )


def junit(found: Check) -> ElementTree.Element:
    """What CI servers read, once it fits what they take."""
    text = junit_of(found)
    xmlschema.validate(text, str(Path(__file__).with_name("junit.xsd")))
    return ElementTree.fromstring(text)


def test_junit_has_a_case_for_each_cell() -> None:
    suites = junit(FOUND)
    assert suites.tag == "testsuites"
    (suite,) = suites
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "5", "failures": "1", "errors": "1", "skipped": "1"}
    assert [case.tag for case in suite] == ["testcase"] * 5
    assert {case.get("classname") for case in suite} == {"vrambench.predicted"}
    children = [[(child.tag, child.get("message")) for child in case] for case in suite]
    assert children == [
        [("failure", WORDS[0])],
        [("error", "error: it broke")],
        [("skipped", "invalid by the rule quantized-full")],
        [],
        [],
    ]
    assert (suite[0][0].text or "").splitlines() == WORDS


def test_what_shrank_by_more_than_is_allowed_is_not_called_worse() -> None:
    less = Difference(metric="allocated_bytes", before=12 * GIB, now=GIB, allowed=0, worse=False, better=True)
    found = Check(device="cuda", cells=(CellCheck(id="a", name="a", outcome="regressed", differences=(less,)),))
    assert headline(found) == "1 cell: 1 other than the baseline, by more than is allowed"


def test_a_byte_is_seen() -> None:
    one = Difference(metric="reserved_bytes", before=12 * GIB, now=12 * GIB + 1, allowed=0, worse=True, better=False)
    told = lines(CellCheck(id="a", name="a", outcome="regressed", differences=(one,)))[0]
    assert told == "reserved 1 B more: 12,884,901,888 B before, 12,884,901,889 B now (allowed: nothing)"


def test_what_is_not_comparable_is_an_error_in_junit() -> None:
    apart = Check(device="cuda", not_comparable=("torch: 2.12 before, 2.13 now",))
    (suite,) = junit(apart)
    assert (suite.get("tests"), suite.get("errors")) == ("1", "1")
    assert suite[0][0].get("message") == "not comparable: torch: 2.12 before, 2.13 now"
    assert summary_of(apart).startswith(
        "## vrambench: not comparable\n\nnot comparable: torch: 2.12 before, 2.13 now\n"
    )


def test_the_summary_is_a_table_of_what_changed() -> None:
    text = summary_of(FOUND)
    assert text.startswith("## vrambench: regressed\n\n5 cells: 1 worse than the baseline, ")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 4
    assert rows[1].startswith("| ❌ regressed | bf16 lora adamw\\_torch none sft | allocated 1.25 GiB more: ")
    assert rows[1].count("<br>") == len(WORDS) - 1


def test_a_summary_of_five_thousand_cells_is_small_enough() -> None:
    many = [WORSE.model_copy(update={"id": str(number)}) for number in range(5000)]
    text = summary_of(Check(device="predicted", cells=tuple(many)))
    assert len(text.encode()) <= MOST_BYTES
    shown = text.count("❌")
    assert shown > 1000
    assert text.endswith(f"and {5000 - shown:,} more\n")


@pytest.mark.parametrize("hostile", made.HOSTILE)
def test_names_stay_text(hostile: str) -> None:
    cell = CellCheck(id="a", name=hostile, outcome="failed", reason=hostile)
    found = Check(device="predicted", cells=(cell,))
    junit(found)
    text = summary_of(found)
    assert "<script" not in text
    assert "<img" not in text
    assert sum(line.startswith("| ") for line in text.splitlines()) == 2
    out = io.StringIO()
    print_check(found, out)
    assert "\x1b" not in out.getvalue()


def test_annotations_stand_on_their_lines_and_hold_any_text() -> None:
    lines = {"a1": ("a,b.yaml", 14), "c3": ("matrix.yaml", 3)}
    told = annotations_of(FOUND, lambda cell: lines.get(cell.id)).splitlines()
    assert told[0].startswith("::error file=a%2Cb.yaml,line=14,title=regressed%3A bf16 lora adamw_torch none sft::")
    assert "allocated 1.25 GiB more: 12 GiB before, 13.2 GiB now (allowed: 64 MiB)%0Astep " in told[0]
    assert told[1:] == [
        "::error title=failed%3A fp32 none sgd none sft::error: it broke",
        "::warning file=matrix.yaml,line=3,title=vanished%3A nf4 none sgd none sft::invalid by the rule quantized-full",
        "::notice title=new%3A nf4 lora sgd none sft::ok",
    ]
    hostile = CellCheck(id="f6", name="100 %\n::error::\x00", outcome="failed", reason="50 %\n::set-env::x")
    (line,) = annotations_of(Check(device="cpu", cells=(hostile,)), lambda cell: None).splitlines()
    assert line == "::error title=failed%3A 100 %25%0A%3A%3Aerror%3A%3A\ufffd::50 %25%0A::set-env::x"
    apart = Check(device="cpu", not_comparable=("torch: 2.12 before",))
    assert annotations_of(apart, lambda cell: None) == "::error title=vrambench::not comparable: torch: 2.12 before\n"


def test_what_a_measurement_does_not_tell_is_said() -> None:
    """Memory grew, and it is no role's weights, gradients or optimizer state."""
    assert lines(WORSE.model_copy(update={"growth": ()}))[-1].endswith("both runs recorded (--record)")
    assert lines(WORSE)[-1] == "policy optimizer +2 MiB"
    slower = WORSE.model_copy(update={"growth": (), "differences": WORSE.differences[1:]})
    assert lines(slower)[-1].startswith("most in learn")
