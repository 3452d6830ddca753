"""`vrambench run`: what it hands on to the runner, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bench.commands.conftest import MATRIX
from vrambench.bench.commands import run as command
from vrambench.bench.commands import work
from vrambench.bench.commands.app import main
from vrambench.methods.cards import CARDS

Fake = Callable[..., list[dict[str, Any]]]


@pytest.mark.parametrize(
    ("counts", "interrupted", "code"),
    [
        ({"ok": 2, "invalid": 2}, False, 0),
        ({"ok": 1, "oom": 1, "invalid": 2}, False, 0),
        ({"ok": 1, "crashed": 1}, False, 4),
        ({"ok": 1}, True, 130),
    ],
)
def test_runs_exit_code(runner: Fake, counts: Any, interrupted: bool, code: int) -> None:
    runner(counts, interrupted)
    assert main(["run", "--device", "cpu", "--out", "first"]) == code


def test_run_hands_on_what_was_typed(runner: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    calls = runner({"ok": 2})
    typed = "run --device cpu --out first --jobs 2 --timeout 30 --retry error,timeout --only algorithm=ppo"
    assert main(typed.split()) == 0
    (call,) = calls
    assert [one.name for one in call["planned"]] == ["fp32 none adamw_torch none ppo", "nf4 none adamw_torch none ppo"]
    assert (call["folder"], call["device"], call["repeat"]) == (Path("first"), "cpu", 2)
    assert (call["jobs"], call["timeout"], call["retry"]) == (2, 30.0, frozenset({"error", "timeout"}))
    assert call["about"] == {
        "matrix": "matrix.yaml",
        "profile": None,
        "coverage": "full",
        "command": f"vrambench {typed}",
    }
    assert capsys.readouterr().out == "the table\nwrote first/report.html\n"


@pytest.mark.parametrize(("typed", "prune"), [("--prune", True), ("--predict", False)])
def test_a_run_on_cuda_predicts_first_where_asked(
    typed: str, prune: bool, runner: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vrambench.bench.predict.many

    cards: list[str | None] = []

    def predict_all(cells: list[Any], card: str | None, *, here: bool, **told: Any) -> dict[str, Any]:
        assert not here, "a run's own process holds nothing on the device that it measures"
        cards.append(card)
        return {"seen": cells}

    monkeypatch.setattr(work, "device_here", lambda device: "cuda:0")
    monkeypatch.setattr(work, "has_bf16", lambda device: True)
    monkeypatch.setattr(vrambench.bench.predict.many, "predict_all", predict_all)
    calls = runner({"ok": 2})
    assert main(["run", "--device", "cuda", "--out", "first", "--budget", "rtx-4090", typed]) == 0
    (call,) = calls
    assert call["prune"] is prune
    assert call["predict"](["a cell"], None) == {"seen": ["a cell"]}
    call["predict"](["a cell"], CARDS["h100-80gb"])
    assert cards == ["rtx-4090", "h100-80gb"], "the GPU that is there, else the one that the budget names"


def test_an_interrupted_run_says_how_to_go_on(runner: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    runner({"ok": 1}, interrupted=True)
    assert main(["run", "--device", "cpu", "--out", "the first"]) == 130
    assert "go on with: vrambench run --out 'the first'" in capsys.readouterr().err


def test_the_same_folder_without_selectors_resumes(runner: Fake, matrix: Path) -> None:
    calls = runner({"ok": 2})
    typed = "run --device cpu --out first --sweep seed=1,2 --jobs 3 --timeout 30"
    assert main(typed.split()) == 0
    matrix.write_text("axes: a matrix that has since been broken\n")
    assert main(["run", "--out", "first"]) == 0
    assert main(["run", "--out", "first", "--jobs", "2", "--timeout", "40"]) == 0
    first, second, third = calls
    assert second["planned"] == first["planned"] == third["planned"]
    assert (second["device"], second["repeat"], second["jobs"], second["timeout"]) == ("cpu", 2, 3, 30)
    assert (third["jobs"], third["timeout"]) == (2, 40)
    assert second["about"]["matrix"] == "matrix.yaml"


def test_a_name_that_no_folder_can_have_is_told_by_its_option(runner: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--device", "cpu", "--out", "a" * 300]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --out aaa")
    assert line.endswith(": File name too long")


def test_what_is_for_a_gpu_is_refused_before_anything_else_is_told(
    runner: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    runner({"ok": 1})
    assert main(["run", "--device", "cpu", "--out", "first"]) == 0
    Path("first").mkdir(exist_ok=True)
    Path("first/run.json").write_text('{"schema": 1, "device": "predicted", "repeat": 1, "cells": []}')
    capsys.readouterr()
    assert main(["run", "--device", "predicted", "--out", "first", "--prune"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: --prune: is for runs on a GPU, and this one is predicted"


def test_another_repeat_of_a_run_is_of_its_own_cells(
    runner: Fake, matrix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = runner({"ok": 2})
    assert main(["run", "--device", "cpu", "--out", "first", "--sweep", "seed=1,2"]) == 0
    matrix.write_text("axes: a matrix that is not read\n")
    assert main(["run", "--out", "first", "--repeat", "3"]) == 0
    assert calls[1]["planned"] == calls[0]["planned"]
    assert calls[1]["repeat"] == 3
    assert main(["run", "--out", "first", "--repeat", "0"]) == 2
    assert "--repeat 0: must be at least 1" in capsys.readouterr().err


def test_a_run_that_has_lost_its_run_json_goes_on_in_its_folder(runner: Fake, tmp_path: Path) -> None:
    calls = runner({"ok": 1})
    cells = tmp_path / "lost" / "cells"
    cells.mkdir(parents=True)
    typed = ["run", "--device", "cpu", "--out", str(tmp_path / "lost")]
    (cells / "notes.txt").write_text("")
    assert main(typed) == 2
    (cells / "c804210262f1.json").write_text("{}")
    assert main(typed) == 0
    assert len(calls) == 1


def test_cells_that_are_added_to_a_run_are_counted(runner: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    runner({"ok": 1})
    assert (
        main(["run", "--device", "cpu", "--out", "first", "--only", "algorithm=sft", "--only", "precision=fp32"]) == 0
    )
    capsys.readouterr()
    assert main(["run", "matrix.yaml", "--device", "cpu", "--out", "first"]) == 0
    assert "first holds a run of 1 cell, to which 3 are added\n" in capsys.readouterr().err
    assert main(["run", "matrix.yaml", "--device", "cpu", "--out", "first"]) == 0
    assert "added" not in capsys.readouterr().err


def test_a_run_gets_a_folder_of_its_own(runner: Fake) -> None:
    calls = runner({"ok": 2})
    assert main(["run", "--device", "cpu"]) == main(["run", "--device", "cpu"]) == 0
    folders = {call["folder"] for call in calls}
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {Path("runs")}


def test_the_table_is_printed_before_a_report_that_cannot_be_drawn(
    runner: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner({"ok": 1}, interrupted=True)

    def fail(folders: list[Path], out: Path) -> None:
        raise OSError(f"{out}: the report could not be drawn")

    monkeypatch.setattr(command, "write_report", fail)
    assert main(["run", "--device", "cpu", "--out", "first"]) == 4
    said = capsys.readouterr()
    assert said.out == "the table\n"
    assert said.err.splitlines() == [
        "go on with: vrambench run --out first",
        "error: first/report.html: the report could not be drawn",
    ]


def test_interrupted_while_it_draws_no_report_of_before_is_left(
    runner: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner({"ok": 1})

    def interrupted(folders: list[Path], out: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "write_report", interrupted)
    Path("first").mkdir()
    Path("first/run.json").write_text('{"schema": 1, "device": "cpu", "repeat": 1, "cells": []}')
    Path("first/report.html").write_text("of before")
    monkeypatch.setattr(command, "of_folder", lambda folder, *more: work.Work([], device="cpu", repeat=1, about={}))
    assert main(["run", "--out", "first"]) == 130
    told = "the report was not written; write it with: vrambench run --out first"
    assert capsys.readouterr().err.splitlines() == [told, "error: interrupted"]
    assert not Path("first/report.html").exists()


def test_interrupted_twice_it_says_how_to_go_on(
    runner: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import vrambench.bench.run.session

    def interrupted(*given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    runner({})
    monkeypatch.setattr(vrambench.bench.run.session, "run", interrupted)
    assert main(["run", "--device", "cpu", "--out", "first"]) == 130
    assert capsys.readouterr().err == "go on with: vrambench run --out first\nerror: interrupted\n"


BOTH = (
    MATRIX
    + """
default_profile: {cpu: here, predicted: there}
profiles:
  here: {workload: {steps: 2}}
  there: {repeat: 1, axes: {algorithm: [sft]}, workload: {model: gpt2}}
"""
)


def test_without_a_gpu_and_a_choice_a_run_predicts_beside_what_it_trains(
    runner: Fake, matrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[tuple[list[Path], Path]] = []
    calls = runner({"ok": 1})
    monkeypatch.setattr(work, "device_here", lambda device: "cpu")
    monkeypatch.setattr(command, "write_report", lambda folders, out: reports.append((folders, out)))
    matrix.write_text(BOTH)
    assert main(["run", "--out", "first"]) == 0
    first, beside = Path("first"), Path("first/predicted")
    assert [(call["folder"], call["device"], call["about"]["profile"]) for call in calls] == [
        (first, "cpu", "here"),
        (beside, "predicted", "there"),
    ]
    assert {one.cell.algorithm for one in calls[1]["planned"]} == {"sft"}
    assert reports == [([beside, first], first / "report.html")], "what fits a card comes first"

    matrix.unlink()
    assert main(["run", "--out", "first"]) == 0, "both go on"
    assert [call["planned"] for call in calls[2:]] == [call["planned"] for call in calls[:2]]

    matrix.write_text(BOTH)
    for typed in ("--device cpu", "--profile here", "--set steps=1", "--only algorithm=sft"):
        assert main(["run", "--out", typed.replace(" ", ""), *typed.split()]) == 0
    assert [call["device"] for call in calls[4:]] == ["cpu"] * 4, "where something is chosen that alone runs"


def test_an_interrupted_run_predicts_beside_when_it_goes_on(
    runner: Fake, matrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "device_here", lambda device: "cpu")
    matrix.write_text(BOTH)
    calls = runner({"ok": 1}, interrupted=True)
    assert main(["run", "--out", "first"]) == 130
    assert [call["folder"] for call in calls] == [Path("first")]
    runner({"ok": 1})
    assert main(["run", "--out", "first"]) == 0
    assert [call["folder"] for call in calls[1:]] == [Path("first"), Path("first/predicted")]


def test_a_predicted_run_takes_the_profile_for_predictions(runner: Fake, matrix: Path) -> None:
    calls = runner({"ok": 1})
    matrix.write_text(BOTH)
    assert main(["run", "--device", "predicted", "--out", "first"]) == 0
    assert [call["about"]["profile"] for call in calls] == ["there"]


@pytest.mark.parametrize("typed", [["--budget", "rtx-4090"], []])
def test_a_predicted_run_is_of_the_card_that_is_named_wherever_that_is(
    typed: list[str], runner: Fake, matrix: Path
) -> None:
    """Or a baseline of the one would not compare with a run of the other."""
    if not typed:
        matrix.write_text(matrix.read_text().replace("steps: 3", "steps: 3, budget: rtx-4090"))
    (calls, _) = runner({"ok": 1}), main(["run", "--device", "predicted", "--out", "first", *typed])
    assert calls[0]["executor"].environment()["gpu"]["name"] == "rtx-4090"
