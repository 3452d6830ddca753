"""A job's process: its board, and where its modules come from."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.results.records import Sample, Throughput
from vrambench.bench.results.store import RunFolder
from vrambench.bench.run.executor import Spot
from vrambench.bench.run.samples import representative
from vrambench.bench.run.session import run
from vrambench.bench.run.worker import BOARD_BYTES, read_board, write_board
from vrambench.methods.errors import ConfigurationError


@pytest.mark.parametrize(
    "spot", [Spot("load", None, None), Spot("learn", 12, 3 * 2**30), Spot("optimizer_step", 0, None)]
)
def test_the_board_says_what_was_written(spot: Spot) -> None:
    board = (ctypes.c_char * BOARD_BYTES)()
    assert spot.phase is not None
    write_board(board, spot.phase, spot.step, spot.peak_bytes)
    assert read_board(board) == spot


def test_an_empty_or_overlong_board_is_no_error() -> None:
    board = (ctypes.c_char * BOARD_BYTES)()
    assert read_board(board) == Spot(None, None, None)
    write_board(board, "x" * 500, 1, 1)
    assert read_board(board).step is None


MINE = """
from typing import ClassVar
import torch
from vrambench.methods.optimizers import Optimizer
from vrambench.methods.registry import Options

class SGDOptions(Options):
    namespace: ClassVar[str] = "mine"
    momentum: float = 0.0
    nesterov: bool = False

def make(groups, module, workload):
    return torch.optim.SGD(groups, lr=workload.learning_rate, **dict(workload.of(SGDOptions)))

SGD = Optimizer(summary="plain SGD", options=SGDOptions, make=make)

def reward(prompts, responses):
    return responses.float().mean(dim=1)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("packed")
def test_nothing_in_the_current_directory_hides_a_module(tmp_path: Path) -> None:
    """A user's folder full of files that are named as ours and our libraries' are; the user's own values are found in it."""
    for name in ("torch", "json", "types", "pydantic", "transformers", "psutil", "vrambench", "peft", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    for name in ("bench", "methods", "reports"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "matrix.yaml").write_text(
        "workload: {model: tiny, prompt_tokens: 4, response_tokens: 4, batch_size: 2, rollout_batch: 2, steps: 1,\n"
        "           warmup_steps: 1, budget: 2GiB, reward: 'mine:reward', mine: {momentum: 0.5}}\n"
        "axes: {precision: [fp32], adapter: [lora], optimizer: ['mine:SGD'], offload: [none], algorithm: [ppo]}\n"
    )
    command = [
        str(Path(sys.executable).with_name("vrambench")),
        "run",
        "matrix.yaml",
        "--out",
        "run",
        "--device",
        "cpu",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = [json.loads(path.read_text()) for path in (tmp_path / "run" / "cells").glob("*.json")]
    assert result["status"] == "ok"
    assert result["cell"]["optimizer"] == "mine:SGD"
    assert result["cell"]["mine"] == {"momentum": 0.5, "nesterov": False}
    # One momentum of the gradients' size: this optimizer was at work, with its option.
    assert result["roles"]["policy"]["optimizer_bytes"] == result["roles"]["policy"]["gradients_bytes"]


def test_a_cell_is_run_as_often_as_asked_and_every_sample_is_kept(plan: Any, listening: Any, tmp_path: Path) -> None:
    planned = plan(steps=3)
    run([planned], tmp_path / "run", repeat=3, listener=listening)
    result = RunFolder.open(tmp_path / "run").read_result(planned.cell.id)
    assert result is not None
    assert [sample.status for sample in result.samples] == ["ok"] * 3
    assert listening.done == [0, 0, 0], "a cell is done with its last sample"
    assert Sample(**{name: getattr(result, name) for name in Sample.model_fields}) in result.samples
    more = run([planned], tmp_path / "run", repeat=4, listener=listening)
    assert more.kept == 0
    again = RunFolder.open(tmp_path / "run").read_result(planned.cell.id)
    assert again is not None
    assert again.samples[:3] == result.samples, "only what was missing was run"
    assert len(again.samples) == 4


THREADS = """
import torch

def reward(prompts, responses):
    print("threads", torch.get_num_threads(), flush=True)
    return responses.float().mean(dim=1)
"""


@pytest.mark.parametrize(
    ("processors", "jobs", "asked", "threads"), [(8, 2, None, 4), (8, 2, "2", 2), (8, 1, "16,1", 8), (1, 2, "none", 1)]
)
def test_a_job_has_its_share_of_the_threads_or_as_few_as_asked(
    processors: int,
    jobs: int,
    asked: str | None,
    threads: int,
    plan: Any,
    listening: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "told.py").write_text(THREADS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vrambench.bench.run.local.usable_threads", lambda: processors)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    planned = plan({"algorithm": "ppo"}, reward="told:reward", ppo={"epochs": 1})
    run([planned], tmp_path / "run", jobs=jobs, listener=listening)
    assert f"threads {threads}\n" in RunFolder.open(tmp_path / "run").log(planned.cell.id).read_text()


def test_a_failed_sample_stands_for_its_cell_and_else_the_median_one() -> None:
    def sample(seconds: float, status: Any = "ok") -> Sample:
        return Sample(status=status, throughput=Throughput(step_seconds=(seconds,)))

    assert representative([sample(3), sample(1), sample(2)]) == sample(2)
    assert representative([sample(1), sample(2, "timeout"), sample(3)]) == sample(2, "timeout")
    assert representative([sample(5)]) == sample(5)


def test_several_jobs_on_one_gpu_are_refused(plan: Any, listening: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^jobs: 2 jobs would share one GPU's memory"):
        run([plan()], tmp_path / "run", device="cuda", jobs=2, listener=listening)


def test_a_run_begun_on_other_hardware_is_not_mixed_with_this_one(plan: Any, listening: Any, tmp_path: Path) -> None:
    run([plan()], tmp_path / "run", listener=listening)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    info["environment"]["cpu"]["model"] = "another processor"
    (tmp_path / "run" / "run.json").write_text(json.dumps(info))
    with pytest.raises(ConfigurationError, match="was begun elsewhere"):
        run([plan(), plan(seed=1)], tmp_path / "run", listener=listening)


def test_a_resumed_run_keeps_its_first_command(plan: Any, listening: Any, tmp_path: Path) -> None:
    """Cells that no rule lets run: what is written is all that is looked at."""
    folder, file = tmp_path / "run", tmp_path / "run" / "run.json"
    cells = [plan({"precision": "int8"}), plan({"precision": "nf4"}), plan({"precision": "nf4"}, seed=1)]

    def go(number: int, command: str) -> Any:
        run(cells[:number], folder, listener=listening, about={"command": command, "matrix": "matrix.yaml"})
        return json.loads(file.read_text())

    info = go(1, "the first")
    assert (info["command"], info["resumed_at"], info.get("resumed_with")) == ("the first", [], None)
    started, written = info["started_at"], file.read_bytes()
    go(1, "nothing is left to do")
    assert file.read_bytes() == written
    info = go(2, "the second")
    assert (info["command"], info["resumed_with"], info["started_at"]) == ("the first", ["the second"], started)
    info = go(3, "the third")
    assert (info["command"], info["resumed_with"]) == ("the first", ["the second", "the third"])
    assert len(info["resumed_at"]) == 2
    assert [cell["id"] for cell in info["cells"]] == [one.cell.id for one in cells]


def test_an_invalid_cell_is_a_result_and_is_never_started(plan: Any, listening: Any, tmp_path: Path) -> None:
    planned = plan({"precision": "int8"})
    summary = run([planned], tmp_path / "run", listener=listening)
    result = RunFolder.open(tmp_path / "run").read_result(planned.cell.id)
    assert result is not None
    assert (result.status, result.rule, result.samples) == ("invalid", "quantized-full", ())
    assert result.reason
    assert (summary.exit_code, listening.names) == (0, [])
    assert not (tmp_path / "run" / "logs" / f"{planned.cell.id}.log").exists()
