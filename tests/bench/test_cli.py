"""The command line: exit codes, one line for each mistake, clean stdout, and what run and report hand on."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.commands import app as cli
from vrambench.bench.results.forecast import Outcome
from vrambench.bench.results.store import RunFolder
from vrambench.bench.run.session import Summary
from vrambench.methods.cards import CARDS
from vrambench.methods.errors import ConfigurationError

MATRIX = """
axes:
  precision: [fp32, nf4]
  adapter: [none]
  optimizer: [adamw_torch]
  offload: [none]
  algorithm: [sft, ppo]
workload: {model: tiny, steps: 3}
repeat: 2
"""


@pytest.fixture
def matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small matrix in the current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "matrix.yaml"
    path.write_text(MATRIX)
    return path


def test_help_is_quick_and_lists_what_exists() -> None:
    code = "import sys; from vrambench.bench.commands.app import main; main(['--help']); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    commands = [line.split()[0] for line in told.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    assert commands == ["plan", "fit", "run", "report", "doctor"]
    assert told.splitlines()[-1] == "False"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vrambench {importlib.metadata.version('vrambench')}\n"


def test_nothing_typed_shows_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().out.startswith("Usage: vrambench")


@pytest.mark.usefixtures("matrix")
@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("plam", "no such command 'plam'. Did you mean 'plan'?"),
        ("plan --foo", "no such option: --foo"),
        ("plan --profile", "option '--profile' requires an argument"),
        ("plan absent.yaml", "absent.yaml: cannot be read: No such file or directory"),
        ("plan .", ".: cannot be read: Is a directory"),
        ("plan --profile smoke", "profile: matrix.yaml has no profiles, so there is no 'smoke'"),
        ("plan --device cude", "--device: 'cude' is not one of auto, cpu, cuda, cuda:N; did you mean 'cuda'?"),
        ("plan --device cpu:1", "--device: 'cpu:1' is not one of auto, cpu, cuda, cuda:N; did you mean 'cpu'?"),
        ("plan --only algorithm=ppoo", "--only algorithm: 'ppoo' is not one of sft, ppo; did you mean 'ppo'?"),
        ("plan --set steps=0", "--set steps=0: steps: 0: must be at least 1"),
        ("plan --budget 24Gx", "--budget 24Gx: budget: '24Gx' is not a size; write 24GiB, 16GB or a card: "),
        ("plan --precision fp32 --precision nf4", "--precision is given 2 times; write --precision fp32,nf4"),
        ("plan --model tiny --model gpt2", "--model is given 2 times: tiny, gpt2"),
        ("plan --repeat 1 --repeat 2", "--repeat is given 2 times: 1, 2"),
        ("plan --repeat many", "invalid value for '--repeat': 'many': "),
        ("plan --repeat 0", "--repeat 0: must be at least 1"),
        ("run --jobs 0", "invalid value for '--jobs': '0': "),
        ("run --timeout soon", "invalid value for '--timeout': "),
        ("run --retry oops", "--retry: 'oops' is not one of timeout, crashed, error, pruned"),
        ("run --device cpu --prune", "--prune: predictions are for CUDA, and this run is on the CPU"),
        ("run --device cpu --predict", "--predict: predictions are for CUDA, and this run is on the CPU"),
        ("run --device meta", "--device meta: nothing can be measured there; auto, cpu, cuda or cuda:N"),
        ("run --device tpu", "device: 'tpu' is not one of auto, cpu, cuda, cuda:N, meta"),
        ("run --out matrix.yaml", "--out matrix.yaml: is there already, and is no run's folder; name another"),
        ("run --out .", "--out .: is there already, and is no run's folder; name another"),
        ("report", "missing argument 'RUN...'"),
        ("report nowhere -o .", "-o .: is a folder; name a file"),
        ("report nowhere -o there/report.html", "-o there/report.html: there is no folder there"),
        (
            "report nowhere -o matrix.yaml",
            "-o matrix.yaml: is there already, and is no report of ours; --force overwrites it",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(typed: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(typed.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "axes: [\n", "\tx: 1\n"])
def test_a_broken_matrix_is_one_line(text: str, matrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix.write_text(text)
    assert cli.main(["plan"]) == 2
    assert capsys.readouterr().err.startswith("error: matrix.yaml:")


@pytest.mark.usefixtures("matrix")
def test_plan_shows_every_cell_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--device", "cpu", "--adapter", "none,lora"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if "nf4 none adamw_torch none sft" in line]
    assert "invalid" in row
    assert "quantized-full: without an adapter a quantised model" in row
    assert any("nf4 lora adamw_torch none ppo" in line and " valid " in line for line in lines)
    assert lines[-1] == "8 cells: 6 valid (0 with warnings), 2 invalid; matrix.yaml, full coverage, on cpu"


@pytest.mark.usefixtures("matrix")
def test_plan_shows_predictions_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["plan", "--device", "cpu", "--predict", "--only", "algorithm=sft", "--budget", "rtx-3090", "--json"]
    assert cli.main(typed) == 0
    captured = capsys.readouterr()
    assert "predicted 1 of 1 cells" in captured.err
    valid, invalid = json.loads(captured.out)["cells"]
    assert valid["fit"] == "fits"
    assert valid["margin_bytes"] == int(23.68 * 2**30) - valid["predicted"]["device_bytes"]
    assert (invalid["verdict"], invalid["fit"], invalid["predicted"], invalid["margin_bytes"]) == (
        "invalid",
        *[None] * 3,
    )


@pytest.mark.usefixtures("matrix")
def test_plan_predicts_by_default_for_cuda_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import vrambench.bench.predict.many

    asked: list[int] = []

    def failing(cells: list[Any], card: str | None, *, alloc_conf: str | None, tell: Any) -> dict[str, Outcome]:
        asked.append(len(cells))
        return {cell.id: Outcome(reason="no such operator") for cell in cells}

    monkeypatch.setattr(vrambench.bench.predict.many, "predict_all", failing)
    assert cli.main(["plan", "--device", "cpu"]) == 0
    assert cli.main(["plan", "--device", "cuda", "--no-predict"]) == 0
    assert asked == []
    assert "of budget" not in capsys.readouterr().out
    assert cli.main(["plan", "--device", "cuda"]) == 0
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
    assert cli.main(["plan", "--json", "--device", "cuda", "--no-predict"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["device"], document["repeat"], document["counts"]["cells"]) == ("cuda", 2, 4)
    assert "a library says hello" in captured.err


def test_warnings_of_the_matrix_go_to_stderr(
    matrix: Path, runner: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    runner({"ok": 1})
    matrix.write_text(MATRIX + "exclude: [{adapter: lora}]\n")
    for typed in ("plan --json --device cpu", "run --device cpu --out first"):
        assert cli.main(typed.split()) == 0
        captured = capsys.readouterr()
        assert "warning: matrix.yaml:10: exclude[0]: matches no combination" in captured.err
        assert "matches no combination" not in captured.out


def test_without_a_matrix_here_the_shipped_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.default_matrix() == Path(__file__).parents[2] / "matrix.yaml"
    (tmp_path / "matrix.yaml").write_text(MATRIX)
    assert cli.default_matrix() == Path("matrix.yaml")


@pytest.mark.usefixtures("matrix")
@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (ConfigurationError("x: wrong"), 2, "error: x: wrong\n"),
        (KeyboardInterrupt(), 130, ""),
        (OSError(28, "No space left on device", "results"), 4, "error: results: No space left on device\n"),
        (ZeroDivisionError(), 4, "error: vrambench failed; the lines above say where\n"),
    ],
)
def test_errors_become_exit_codes_in_one_place(
    raised: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import vrambench.bench.plan.plan

    def fail(*given: Any, **more: Any) -> None:
        raise raised

    monkeypatch.setattr(vrambench.bench.plan.plan, "select", fail)
    assert cli.main(["plan", "--device", "cpu"]) == code
    err = capsys.readouterr().err
    assert err.endswith(message)
    assert ("Traceback" in err) == isinstance(raised, ZeroDivisionError)


Fake = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def runner(matrix: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a runner in place that stores run.json alone, and a report of no content; gives what the runner was called
    with."""
    import vrambench.bench.run.session

    calls: list[dict[str, Any]] = []

    def make(counts: dict[str, int], interrupted: bool = False) -> list[dict[str, Any]]:
        def run(planned: Any, folder: Path, *, about: dict[str, Any], repeat: int, device: str, **more: Any) -> Summary:
            calls.append(
                {"planned": planned, "folder": folder, "about": about, "repeat": repeat, "device": device, **more}
            )
            store = RunFolder(folder)
            store.acquire()
            cells = [{"id": one.cell.id, "name": one.name, **one.cell.flat()} for one in planned]
            store.write_info({"device": device, "repeat": repeat, "cells": cells, **about})
            store.release()
            return Summary(folder, counts, 0, interrupted)  # type: ignore[arg-type]

        monkeypatch.setattr(vrambench.bench.run.session, "run", run)
        monkeypatch.setattr(cli, "_write_report", lambda folders, out: out)
        monkeypatch.setattr(cli, "_print_results", lambda folders, out: print("the table", file=out))
        return calls

    return make


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
    assert cli.main(["run", "--device", "cpu", "--out", "first"]) == code


def test_run_hands_on_what_was_typed(runner: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    calls = runner({"ok": 2})
    typed = "run --device cpu --out first --jobs 2 --timeout 30 --retry error,timeout --only algorithm=ppo"
    assert cli.main(typed.split()) == 0
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
    monkeypatch.setattr(cli, "_device_name", lambda device: "cuda:0")
    monkeypatch.setattr(cli, "_has_bf16", lambda device: True)
    monkeypatch.setattr(
        vrambench.bench.predict.many,
        "predict_all",
        lambda cells, card, *, alloc_conf, tell: cards.append(card) or {"seen": cells},
    )
    calls = runner({"ok": 2})
    assert cli.main(["run", "--device", "cuda", "--out", "first", "--budget", "rtx-4090", typed]) == 0
    (call,) = calls
    assert call["prune"] is prune
    assert call["predict"](["a cell"], None) == {"seen": ["a cell"]}
    call["predict"](["a cell"], CARDS["h100-80gb"])
    assert cards == ["rtx-4090", "h100-80gb"], "the GPU that is there, else the one that the budget names"


def test_an_interrupted_run_says_how_to_go_on(runner: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    runner({"ok": 1}, interrupted=True)
    assert cli.main(["run", "--device", "cpu", "--out", "the first"]) == 130
    assert "go on with: vrambench run --out 'the first'" in capsys.readouterr().err


def test_the_same_folder_without_selectors_resumes(runner: Fake, matrix: Path) -> None:
    calls = runner({"ok": 2})
    assert cli.main(["run", "--device", "cpu", "--out", "first", "--sweep", "seed=1,2"]) == 0
    matrix.write_text("axes: a matrix that has since been broken\n")
    assert cli.main(["run", "--out", "first", "--jobs", "2"]) == 0
    first, second = calls
    assert second["planned"] == first["planned"]
    assert (second["device"], second["repeat"], second["jobs"]) == ("cpu", 2, 2)
    assert second["about"]["matrix"] == "matrix.yaml"


def test_a_run_gets_a_folder_of_its_own(runner: Fake) -> None:
    calls = runner({"ok": 2})
    assert cli.main(["run", "--device", "cpu"]) == cli.main(["run", "--device", "cpu"]) == 0
    folders = {call["folder"] for call in calls}
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {Path("runs")}


def test_report_overwrites_a_report_and_with_force_anything(
    matrix: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[list[Path], Path]] = []
    monkeypatch.setattr(cli, "_write_report", lambda folders, out: asked.append((folders, out)) or out)
    ours = matrix.parent / "report.html"
    ours.write_text('<!doctype html><html><head><meta name="generator" content="vrambench 0.1.0"></head></html>')
    assert cli.main(["report", "one", "two"]) == 0
    assert cli.main(["report", "one", "-o", "matrix.yaml", "--force"]) == 0
    assert asked == [([Path("one"), Path("two")], Path("report.html")), ([Path("one")], Path("matrix.yaml"))]
    assert capsys.readouterr().out == "wrote report.html\nwrote matrix.yaml\n"


def test_doctor_says_what_cannot_be_prepared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from vrambench.methods.offload import OFFLOADS

    def fail() -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setitem(OFFLOADS._found, "zero2_optimizer", replace(OFFLOADS.get("zero2_optimizer"), prepare=fail))
    assert cli.main(["doctor", "--prepare", "--json"]) == 4
    told = capsys.readouterr()
    said = "offload zero2_optimizer cannot be prepared: RuntimeError: no compiler"
    assert told.err.endswith(f"error: {said}\n")
    last = json.loads(told.out)["findings"][-1]
    assert (last["name"], last["state"]) == ("offload zero2_optimizer", "missing"), "all else is told too"
