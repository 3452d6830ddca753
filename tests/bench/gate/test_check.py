"""A run against a baseline: what is a regression, what is none, and what is neither."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.reports import made
from vrambench.bench.commands.app import main
from vrambench.bench.gate import NoBaseline
from vrambench.bench.gate.baseline import Baseline, baseline_of, read_baseline, write_baseline
from vrambench.bench.gate.check import CellCheck, Check, chance, check, confirmed
from vrambench.bench.results.records import Held, Memory, OutOfMemory, Result, Throughput
from vrambench.bench.results.store import RunFolder
from vrambench.methods.errors import ConfigurationError

GIB, MIB = 2**30, 2**20
NUMBERS = itertools.count()


def run_of(tmp_path: Path, results: Sequence[Result], *, lacks: Sequence[str] = (), **environment: Any) -> RunFolder:
    """A run's folder with these results; in run.json alone what it `lacks`."""
    folder = RunFolder(tmp_path / f"run{next(NUMBERS)}")
    folder.acquire()
    known = made.ENVIRONMENT | environment
    cells = [{"id": one.id, "name": one.name} for one in results] + [{"id": one, "name": one} for one in lacks]
    folder.write_info({"device": "cuda", "repeat": 1, "environment": known, "cells": cells})
    for one in results:
        folder.write_result(one)
    folder.release()
    return RunFolder.open(folder.path)


def full(id: str, **changes: Any) -> Result:
    return made.full(id).model_copy(update=changes)


def grown(id: str, metric: str, by: int) -> Result:
    before = made.full(id)
    memory = before.memory.model_copy(update={metric: (getattr(before.memory, metric) or 0) + by})
    return before.model_copy(update={"memory": memory})


def checked(tmp_path: Path, before: Sequence[Result], now: Sequence[Result], **how: Any) -> Check:
    return check(baseline_of(run_of(tmp_path, before)), run_of(tmp_path, now), **how)


def only(found: Check) -> CellCheck:
    (cell,) = found.cells
    return cell


@pytest.mark.parametrize(
    ("metric", "by", "outcome"),
    [
        ("allocated_bytes", 0, "same"),
        ("allocated_bytes", 100 * MIB, "same"),  # 1 % of 10 GiB is 102.4 MiB
        ("allocated_bytes", 103 * MIB, "regressed"),
        ("allocated_bytes", -103 * MIB, "improved"),
        ("reserved_bytes", 300 * MIB, "same"),
        ("reserved_bytes", 340 * MIB, "regressed"),  # 3 % of 11 GiB is 338 MiB
        ("device_bytes", 380 * MIB, "regressed"),
        ("requested_bytes", GIB, "same"),
    ],
)
def test_memory_may_grow_by_its_tolerance(tmp_path: Path, metric: str, by: int, outcome: str) -> None:
    found = checked(tmp_path, [full("a")], [grown("a", metric, by)])
    assert only(found).outcome == outcome
    assert found.exit_code == (1 if outcome == "regressed" else 0)
    if outcome == "regressed":
        (difference,) = only(found).differences
        assert (difference.metric, difference.now - difference.before) == (metric, by)
        (told,) = found.document()["cells"][0]["differences"]
        assert [type(told[name]) for name in ("before", "now", "allowed")] == [int] * 3, "bytes are integers"


def predicted(id: str, nbytes: int, *held: Held) -> Result:
    memory = Memory(allocated_bytes=nbytes, reserved_bytes=nbytes, device_bytes=nbytes)
    return made.result(id, source="predicted", memory=memory, held=held)


def test_a_prediction_is_held_to_the_byte(tmp_path: Path) -> None:
    assert only(checked(tmp_path, [predicted("a", GIB)], [predicted("a", GIB)])).outcome == "same"
    assert only(checked(tmp_path, [predicted("a", GIB)], [predicted("a", GIB + 1)])).outcome == "regressed"
    less = checked(tmp_path, [predicted("a", GIB)], [predicted("a", GIB - 1)])
    assert (only(less).outcome, less.exit_code) == ("improved", 0)
    approved = checked(tmp_path, [predicted("a", GIB)], [predicted("a", GIB - 1)], two_sided=True)
    assert (only(approved).outcome, approved.exit_code) == ("regressed", 1)


def test_what_grew_is_named_most_first(tmp_path: Path) -> None:
    weights = Held(role="policy", kind="weights", phase="load", module="layers.*.mlp", operator="empty", nbytes=GIB)
    logits = Held(role="policy", kind="logits_and_loss", phase="learn", module="lm_head", operator="mm", nbytes=MIB)
    more = logits.model_copy(update={"nbytes": 9 * MIB})
    fresh = logits.model_copy(update={"operator": "clone", "nbytes": 3 * MIB})
    before, now = predicted("a", GIB, weights, logits), predicted("a", 2 * GIB, weights, more, fresh)
    growth = only(checked(tmp_path, [before], [now])).growth
    assert [(one.operator, one.grown_bytes) for one in growth] == [("mm", 8 * MIB), ("clone", 3 * MIB)]


def test_without_what_is_stored_of_predictions_roles_are_named(tmp_path: Path) -> None:
    before = made.full("a")
    policy = before.roles["policy"].model_copy(update={"optimizer_bytes": 3 * GIB})
    now = grown("a", "allocated_bytes", 3 * GIB).model_copy(update={"roles": before.roles | {"policy": policy}})
    cell = only(checked(tmp_path, [before], [now]))
    assert [(one.role, one.kind, one.grown_bytes) for one in cell.growth] == [("policy", "optimizer", 5 * GIB // 2)]


def test_the_phase_that_grew_most_is_named(tmp_path: Path) -> None:
    now = grown("a", "allocated_bytes", GIB)
    phases = tuple(
        phase.model_copy(update={"allocated_bytes": (phase.allocated_bytes or 0) + GIB})
        if (phase.name, phase.step) == ("learn", 2)
        else phase
        for phase in now.phases
    )
    cell = only(checked(tmp_path, [full("a")], [now.model_copy(update={"phases": phases})]))
    assert (cell.phase, cell.step, cell.phase_bytes) == ("learn", 2, GIB)


def test_what_fitted_and_does_not_is_a_regression_whatever_may_grow(tmp_path: Path) -> None:
    gone = full("a", status="oom", reason="no memory", oom=OutOfMemory(where="device"))
    found = checked(tmp_path, [full("a")], [gone], told={"allocated_bytes": "1000%", "device_bytes": "1000%"})
    assert found.exit_code == 1
    assert only(found).reason == "it fitted, and does not any more: oom: no memory"
    back = checked(tmp_path, [gone], [full("a")])
    assert (only(back).outcome, back.exit_code) == ("improved", 0)
    assert only(checked(tmp_path, [gone], [gone])).outcome == "same"


@pytest.mark.parametrize("status", ["timeout", "crashed", "error"])
def test_a_failed_measurement_is_neither_a_pass_nor_a_regression(tmp_path: Path, status: str) -> None:
    failed = full("a", status=status, reason="it broke")
    found = checked(tmp_path, [full("a")], [failed])
    assert (only(found).outcome, found.exit_code) == ("failed", 4)
    assert only(found).reason == f"{status}: it broke"
    assert only(checked(tmp_path, [failed], [full("a")])).outcome == "new"
    both = checked(tmp_path, [full("a"), full("b")], [failed, grown("b", "allocated_bytes", GIB)])
    assert (both.exit_code, both.counts) == (1, {"regressed": 1, "failed": 1})


def test_a_cell_without_a_result_failed_and_one_not_asked_for_vanished(tmp_path: Path) -> None:
    baseline = baseline_of(run_of(tmp_path, [full("a"), full("b"), full("c")]))
    found = check(baseline, run_of(tmp_path, [full("a"), full("d")], lacks=["b"]))
    assert {cell.id: cell.outcome for cell in found.cells} == {"a": "same", "b": "failed", "c": "vanished", "d": "new"}
    assert found.exit_code == 4


def test_a_cell_with_other_settings_is_another_and_what_is_other_is_told(tmp_path: Path) -> None:
    """Or a job that was made larger would pass, and nobody would be told why."""
    before = [full("a"), full("b", cell=made.cell(algorithm="ppo", ppo={"epochs": 4, "clip": 0.2}))]
    larger = full("c", cell=made.cell(algorithm="ppo", batch_size=256, ppo={"epochs": 2, "clip": 0.2}))
    found = checked(tmp_path, before, [full("a"), larger])
    told = {cell.id: (cell.outcome, cell.reason) for cell in found.cells}
    assert told["b"] == ("vanished", "now has batch_size 256 instead of 1, ppo.epochs 2 instead of 4")
    assert (told["c"][0], found.exit_code) == ("new", 0)
    several = checked(tmp_path, before, [full("a"), larger, full("d", cell=larger.cell)])
    assert {cell.reason for cell in several.of("vanished")} == {None}


def test_where_no_cell_is_left_nothing_was_compared(tmp_path: Path) -> None:
    before, now = full("a"), full("b", cell=made.cell(batch_size=256))
    found = checked(tmp_path, [before], [now])
    assert (found.exit_code, found.cells) == (3, ())
    told = f"none of the baseline's cells is in this run: {before.name} now has batch_size 256 instead of 1"
    assert found.not_comparable == (told,)
    gone = full("c", cell=made.cell(algorithm="ppo"), name="gone")
    assert checked(tmp_path, [gone, before], [now]).not_comparable == found.not_comparable, "the cell that is meant"
    (told,) = checked(tmp_path, [before], [full("b", cell=made.cell(algorithm="ppo"))]).not_comparable
    assert told == "none of the baseline's cells is in this run"
    assert check(baseline_of(run_of(tmp_path, [before])), run_of(tmp_path, [now], lacks=["a"])).counts == {
        "failed": 1,
        "new": 1,
    }


def test_a_baseline_lacks_no_cell_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path, [full("a"), full("b")], lacks=["c"])
    out = tmp_path / "baseline.json"
    assert main(["baseline", str(folder.path), "-o", str(out)]) == 0
    assert "1 cell without a result: left out\n" in capsys.readouterr().err
    (folder.cells / "b.json").write_text("{")
    assert main(["baseline", str(folder.path), "-o", str(out), "--force"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {folder.cells / 'b.json'} is not a readable result")
    assert told.endswith(f"`vrambench run --out {folder.path}` makes it anew\n")
    assert len(read_baseline(out).cells) == 2


def test_a_result_of_a_newer_version_is_not_said_to_be_made_anew_in_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of(tmp_path, [full("a"), full("b")])
    before = baseline_of(folder)
    (folder.cells / "b.json").write_text('{"schema": 99}')
    assert main(["baseline", str(folder.path), "-o", str(tmp_path / "baseline.json")]) == 2
    told = capsys.readouterr().err
    assert "of schema 99, which a newer vrambench wrote" in told
    assert told.endswith("use that version, or run its cells into another folder\n")
    (failed,) = check(before, folder).of("failed")
    assert (failed.reason or "").startswith("its result file is of schema 99")


def test_a_result_that_was_set_aside_does_not_stand_in_the_way_of_the_one_made_anew(tmp_path: Path) -> None:
    folder = run_of(tmp_path, [full("a"), full("b")])
    folder.set_aside("b")
    folder.write_result(full("b"))
    assert main(["baseline", str(folder.path), "-o", str(tmp_path / "baseline.json")]) == 0


def test_what_is_said_twice_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = run_of(tmp_path, [full("a")]), tmp_path / "baseline.json"
    write_baseline(baseline_of(folder), file)
    typed = ["check", str(folder.path), "--baseline", str(file)]
    assert main([*typed, "--tolerance", "allocated_bytes=1%", "--tolerance", "allocated_bytes=2%"]) == 2
    assert "--tolerance allocated_bytes: is said twice, 1% and 2%" in capsys.readouterr().err
    assert main([*typed, "--tolerance", "allocated_bytes=1%", "--tolerance", "allocated_bytes=1%"]) == 0
    both = str(tmp_path / "same.out")
    assert main([*typed, "--junit", both, "--summary", both]) == 2
    assert f"--junit and --summary: both name {both}; name two files" in capsys.readouterr().err


def test_a_check_writes_over_no_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = run_of(tmp_path, [full("a")]), tmp_path / "baseline.json"
    write_baseline(baseline_of(folder), file)
    for option in ("--junit", "--summary"):
        assert main(["check", str(folder.path), "--baseline", str(file), option, str(file)]) == 2
        assert f"error: {option} {file}: is the baseline; name another file" in capsys.readouterr().err
    assert read_baseline(file).cells


def test_a_cell_that_a_rule_forbids_now_has_vanished_with_its_reason(tmp_path: Path) -> None:
    forbidden = made.result("a", status="invalid", source=None, rule="int8-full", reason="cannot train")
    cell = only(checked(tmp_path, [full("a")], [forbidden]))
    assert (cell.outcome, cell.reason) == ("vanished", "invalid by the rule int8-full: cannot train")
    assert only(checked(tmp_path, [forbidden], [forbidden])).outcome == "same"
    assert only(checked(tmp_path, [forbidden], [full("a")])).outcome == "new"


def timed(id: str, *steps: float) -> Result:
    return full(id, throughput=Throughput(step_seconds=steps), samples=())


QUICK = (1.00, 1.01, 0.99, 1.02, 1.00, 0.98, 1.01, 1.00)


@pytest.mark.parametrize(
    ("steps", "outcome"),
    [
        (QUICK, "same"),
        ([1.04 * step for step in QUICK], "same"),  # told apart, and not by 5 %
        ([1.10 * step for step in QUICK], "regressed"),
        ([0.90 * step for step in QUICK], "improved"),
        ([0.5, 1.9, 1.2, 1.3, 0.8, 1.1, 1.4, 0.7], "same"),  # by more than 5 %, and not told apart
        ([2.0, 2.0, 2.0, 2.0], "same"),  # too few
    ],
)
def test_time_counts_beyond_its_tolerance_and_chance(tmp_path: Path, steps: Sequence[float], outcome: str) -> None:
    cell = only(checked(tmp_path, [timed("a", *QUICK)], [timed("a", *steps)]))
    assert cell.outcome == outcome


def test_chance_is_what_others_compute() -> None:
    """scipy.stats.mannwhitneyu, its documentation's example with method="asymptotic"."""
    assert chance([20, 11, 17, 12], [19, 22, 16, 29, 24]) == pytest.approx(0.11134688653314041, abs=1e-12)
    assert chance([1.0] * 6, [1.0] * 6) == 1.0


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        (
            {"gpu": {"name": "NVIDIA L4", "total_bytes": 24 * GIB}},
            "gpu name: NVIDIA GeForce RTX 4090 before, NVIDIA L4",
        ),
        ({"device": "cpu"}, "device: cuda before, cpu now"),
        ({"variables": {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}}, "PYTORCH_ALLOC_CONF: none before"),
        ({"packages": {"torch": "2.14.0", "deepspeed": None}}, "torch: 2.13.0 before, 2.14.0 now"),
    ],
)
def test_other_hardware_or_versions_are_not_compared(tmp_path: Path, environment: dict[str, Any], why: str) -> None:
    baseline = baseline_of(run_of(tmp_path, [full("a")]))
    found = check(baseline, run_of(tmp_path, [grown("a", "allocated_bytes", GIB)], **environment))
    assert found.exit_code == 3
    assert found.cells == ()
    assert found.not_comparable[0].startswith(why)


def test_versions_are_compared_where_that_is_asked_for(tmp_path: Path) -> None:
    other = {"packages": {"torch": "2.14.0", "deepspeed": None}}
    now = run_of(tmp_path, [grown("a", "allocated_bytes", GIB)], **other)
    found = check(baseline_of(run_of(tmp_path, [full("a")])), now, across_versions=True)
    assert found.exit_code == 1
    assert found.notes == ("torch: 2.13.0 before, 2.14.0 now",)
    ours = {"packages": made.ENVIRONMENT["packages"] | {"vrambench": "9.9"}, "python": "3.11.9"}
    before = baseline_of(run_of(tmp_path, [full("a")], python="3.11.7"))
    assert check(before, run_of(tmp_path, [full("a")], **ours)).exit_code == 0


def test_a_baseline_comes_back_from_its_file_and_keeps_what_people_wrote(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    run = run_of(tmp_path, [full("a"), timed("b", *QUICK)])
    write_baseline(baseline_of(run), path)
    before = read_baseline(path)
    assert before == baseline_of(run)
    assert sum(line.startswith('  {"') for line in path.read_text().splitlines()) == 2
    told = {"tolerances": {"step_seconds": "50%"}}
    own = before.cells[0].model_copy(update={"tolerances": {"allocated_bytes": "20%"}})
    write_baseline(before.model_copy(update=told | {"cells": (own, *before.cells[1:])}), path)
    anew = baseline_of(run, read_baseline(path))
    assert anew.tolerances == {"step_seconds": "50%"}
    assert [cell.tolerances for cell in anew.cells] == [{"allocated_bytes": "20%"}, {}]
    slower = timed("b", *(1.4 * step for step in QUICK))
    found = check(anew, run_of(tmp_path, [grown("a", "allocated_bytes", GIB), slower]))
    assert found.counts == {"same": 2}
    assert check(anew, run_of(tmp_path, [grown("a", "allocated_bytes", 3 * GIB), slower])).counts["regressed"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no baseline: it is empty"),
        ("[]", "is not of schema 1"),
        ("{}", "is no file of vrambench's: it has no schema"),
        ('{"schema": 2}', "is of schema 2, which a newer vrambench wrote"),
        ('{"schema": 1, "device": "cpu", "environment": {}}', "is no baseline: cells: is not there"),
        (
            '{"schema": 1, "device": "cpu", "environment": {}, "cells": [{"id": "a", "name": "a", "status": "okk", "cell": {}}]}',
            "is no baseline: cells.0.status: 'okk' is not one of 'ok', ",
        ),
        (
            '{"schema": 1, "device": "cpu", "environment": {}, "cells": [{"id": 3, "name": "a", "status": "ok", "cell": {}}]}',
            "is no baseline: cells.0.id: 3: must be text",
        ),
        (
            '{"schema": 1, "device": "cpu", "environment": {}, "cells": ['
            + ", ".join(['{"id": "a", "name": "x y", "status": "ok", "cell": {}}'] * 2)
            + "]}",
            ": the cell x y (a) is there twice",
        ),
        (
            '{"schema": 1, "device": "cpu", "environment": {}, "cells": [], "tolerances": {"reserved": "1%"}}',
            ": tolerance: 'reserved' is not one of ",
        ),
        (
            '{"schema": 1, "device": "cpu", "environment": {}, "cells": [{"id": "a", "name": "x y", "status": "ok", '
            '"cell": {}, "tolerances": {"reserved": "1%"}}]}',
            ": x y: tolerance: 'reserved' is not one of ",
        ),
        (
            '{"schema": 1, "device": "cpu", "environment": {}, "cells": []}',
            "is a baseline without cells, which nothing can be held against",
        ),
    ],
)
def test_what_is_no_baseline_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_baseline(path)
    assert caught.value.message.startswith(f"{path}{message}" if message[0] == ":" else f"{path} {message}")


def test_a_baseline_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoBaseline, match="is not there; `vrambench baseline RUN -o "):
        read_baseline(tmp_path / "none.json")


def test_a_run_without_results_is_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the run has no results yet"):
        baseline_of(run_of(tmp_path, [], lacks=["a"]))


def test_a_regression_counts_if_it_shows_again(tmp_path: Path) -> None:
    before = [full("a"), full("b"), full("c")]
    worse = [grown(id, "allocated_bytes", GIB) for id in "abc"]
    first = checked(tmp_path, before, worse)
    again = checked(tmp_path, before, [worse[0], full("b"), full("c", status="error", reason="it broke")])
    found = confirmed(first, again)
    assert [(cell.id, cell.outcome) for cell in found.cells] == [("a", "regressed"), ("c", "failed"), ("b", "same")]
    assert found.cells[2].reason == "measured once more: not worse"
    assert found.cells[1].reason == "measured once more: error: it broke"


def test_everything_of_every_kind_is_listed_worst_first(tmp_path: Path) -> None:
    before = [full("a"), full("b"), full("c"), full("d"), full("e")]
    now = [
        grown("a", "allocated_bytes", GIB),
        grown("b", "allocated_bytes", 2 * GIB),
        full("c", status="error"),
        grown("d", "allocated_bytes", -GIB),
        full("f"),
    ]
    found = checked(tmp_path, before, now)
    assert [cell.id for cell in found.cells] == ["b", "a", "c", "d", "e", "f"]
    assert found.document()["counts"] == {"regressed": 2, "failed": 1, "improved": 1, "vanished": 1, "new": 1}
    assert isinstance(baseline_of(run_of(tmp_path, before)), Baseline)
