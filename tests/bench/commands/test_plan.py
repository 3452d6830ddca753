"""`vrambench plan`: what it shows, and what it predicts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.commands.app import main
from vrambench.bench.commands.plan import SORTED
from vrambench.bench.plan.plan import ORDERS
from vrambench.bench.results.forecast import Outcome


@pytest.mark.usefixtures("matrix")
def test_plan_shows_every_cell_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--device", "cpu", "--adapter", "none,lora"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if "nf4 none adamw_torch none sft" in line]
    assert "invalid" in row
    assert row.rstrip().endswith("quantized-full")
    assert any(line.startswith("rule quantized-full: without an adapter a quantised model") for line in lines)
    assert any("nf4 lora adamw_torch none ppo" in line and " valid " in line for line in lines)
    assert lines[-1] == "8 cells: 6 valid (2 with warnings), 2 invalid; matrix.yaml, full coverage, on cpu"


@pytest.mark.usefixtures("matrix")
def test_plan_shows_predictions_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["plan", "--device", "cpu", "--predict", "--only", "algorithm=sft", "--budget", "rtx-3090", "--json"]
    assert main(typed) == 0
    captured = capsys.readouterr()
    assert "predicted 1 of 1 cells" in captured.err
    valid, invalid = json.loads(captured.out)["cells"]
    assert valid["fit"] == "fits"
    assert valid["margin_bytes"] == int(23.68 * 2**30) - valid["predicted"]["device_bytes"]
    assert (invalid["verdict"], invalid["fit"], invalid["predicted"], invalid["margin_bytes"]) == (
        "invalid",
        *[None] * 3,
    )


@pytest.mark.parametrize(
    ("budget", "typed", "forbidden"),
    [("", "--budget t4", True), (", budget: t4", "", True), (", budget: t4", "--budget 24GiB", False)],
)
def test_a_card_without_bf16_forbids_it_whoever_names_the_card(
    budget: str, typed: str, forbidden: bool, matrix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix.write_text(matrix.read_text().replace("steps: 3", f"steps: 3{budget}"))
    command = ["plan", "--device", "cuda", "--no-predict", "--precision", "bf16", "--json", *typed.split()]
    assert main(command) == 0
    rules = {one["rule"] for cell in json.loads(capsys.readouterr().out)["cells"] for one in cell["findings"]}
    assert ("bf16-hardware" in rules) is forbidden


@pytest.mark.usefixtures("matrix")
def test_plan_predicts_by_default_for_cuda_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import vrambench.bench.predict.many

    asked: list[int] = []

    def failing(cells: list[Any], card: str | None, **told: Any) -> dict[str, Outcome]:
        asked.append(len(cells))
        return {cell.id: Outcome(reason="no such operator") for cell in cells}

    monkeypatch.setattr(vrambench.bench.predict.many, "predict_all", failing)
    assert main(["plan", "--device", "cpu"]) == 0
    assert main(["plan", "--device", "cuda", "--no-predict"]) == 0
    assert asked == []
    assert "of budget" not in capsys.readouterr().out
    assert main(["plan", "--device", "cuda"]) == 0
    assert asked == [2]
    assert capsys.readouterr().out.count("not predicted: no such operator") == 2


@pytest.mark.usefixtures("matrix")
def test_plan_json_is_one_document_whatever_libraries_print(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import vrambench.bench.plan.plan

    real = vrambench.bench.plan.plan.select

    def chatty(*given: Any, **more: Any) -> Any:
        print("a library says hello")
        return real(*given, **more)

    monkeypatch.setattr(vrambench.bench.plan.plan, "select", chatty)
    assert main(["plan", "--json", "--device", "cuda", "--no-predict"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["device"], document["repeat"], document["counts"]["cells"]) == ("cuda", 2, 4)
    assert "a library says hello" in captured.err


def test_warnings_of_the_matrix_go_to_stderr(
    matrix: Path, runner: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    runner({"ok": 1})
    matrix.write_text(matrix.read_text() + "exclude: [{adapter: lora}]\n")
    for typed in ("plan --json --device cpu", "run --device cpu --out first"):
        assert main(typed.split()) == 0
        captured = capsys.readouterr()
        assert "warning: matrix.yaml:10: exclude[0]: matches no combination" in captured.err
        assert "matches no combination" not in captured.out


@pytest.mark.usefixtures("matrix")
def test_plan_tells_a_reason_of_several_cells_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--device", "cpu", "--adapter", "none", "--precision", "nf4"]) == 0
    text = capsys.readouterr().out
    assert len(re.findall(r"none adamw_torch none \w+ +invalid +quantized-full\s*$", text, re.M)) == 2
    assert text.count("rule quantized-full: without an adapter a quantised model") == 1


@pytest.mark.usefixtures("matrix")
def test_plan_sorts_cells_by_what_is_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["plan", "--device", "cpu", "--only", "algorithm=sft", "--adapter", "lora", "--sweep", "batch_size=9,1"]
    assert main([*typed, "--sort", "peak", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    peaks = [one["predicted"]["device_bytes"] for one in cells]
    assert len(peaks) >= 2
    assert peaks == sorted(peaks)
    assert cells[0]["cell"]["batch_size"] == 1
    assert main([*typed, "--sort", "size"]) == 2
    assert capsys.readouterr().err == "error: --sort: 'size' is not one of peak, room\n"
    assert main([*typed, "--sort", "room", "--no-predict"]) == 2


def test_what_the_command_sorts_by_is_what_a_plan_can() -> None:
    assert set(SORTED) == set(ORDERS)


def test_json_says_how_another_tool_s_names_were_read(capsys: pytest.CaptureFixture[str]) -> None:
    axes = [
        "--precision",
        "bfloat16",
        "--adapter",
        "none",
        "--optimizer",
        "sgd",
        "--offload",
        "none",
        "--algorithm",
        "sft",
    ]
    assert main(["plan", *axes, "--model", "tiny", "--set", "seq_len=32", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["read_as"] == [
        "--precision bfloat16 is read as --precision bf16 (torch; Lightning, LitGPT)",
        "--set seq_len=32 is read as --set max_length=32 (unsloth, LitGPT; torchtune)",
    ]


@pytest.mark.parametrize(
    "text",
    ["include: []", "axes: {precision: [nf4]}", "include: []\nprofiles: {a: {}}\ndefault_profile: {cpu: a}"],
)
def test_a_matrix_without_axes_is_told_before_torch_is_imported(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vrambench.bench.commands.plan.planned_for", lambda *args, **more: pytest.fail("planned"))
    monkeypatch.setattr("vrambench.bench.commands.plan.device_here", lambda device: pytest.fail("asked torch"))
    matrix = tmp_path / "matrix.yaml"
    matrix.write_text(f"{text}\nworkload: {{model: tiny}}\n")
    assert main(["plan", str(matrix), "--set", "steps=0"]) == 2
    steps, axes = capsys.readouterr().err.splitlines()
    assert steps.endswith("steps: 0: must be at least 1")
    assert ": axes: no values for " in axes


def test_a_matrix_whose_axes_are_a_profile_s_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = tmp_path / "matrix.yaml"
    axes = "{precision: [nf4], adapter: [lora], optimizer: [sgd], offload: [none], algorithm: [sft]}"
    matrix.write_text(f"workload: {{model: tiny}}\nprofiles: {{a: {{axes: {axes}}}}}\ndefault_profile: {{cpu: a}}\n")
    assert main(["plan", str(matrix), "--device", "cpu"]) == 0
    assert "1 cell: " in capsys.readouterr().out
    assert main(["plan", str(matrix), "--device", "cuda"]) == 2
    assert "axes: no values for precision, " in capsys.readouterr().err
