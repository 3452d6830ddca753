"""Predictions of many cells in processes of their own: the same as in one, and one cell's failure is its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.many import outcome, predict_all
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError


@pytest.mark.slow
def test_processes_predict_as_one_does_and_a_failure_is_its_cell_s_own(plan: Any) -> None:
    cells = [plan(batch_size=size).cell for size in range(1, 9)]
    broken = plan(model="./there-is-none").cell
    told: list[tuple[int, int]] = []
    outcomes = predict_all([*cells, broken, cells[0]], tell=lambda done, total: told.append((done, total)))
    assert set(outcomes) == {cell.id for cell in cells} | {broken.id}
    predictor = Predictor()
    for cell in (cells[0], cells[-1]):
        forecast = outcomes[cell.id].forecast
        assert forecast is not None
        here = predictor.forecast(cell)
        assert forecast.model_copy(update={"seconds": 0.0}) == here.model_copy(update={"seconds": 0.0})
    assert outcomes[broken.id].forecast is None
    assert "./there-is-none" in (outcomes[broken.id].reason or "")
    assert told[0] == (0, 9)
    assert told[-1] == (9, 9)
    assert told == sorted(told)


def test_nothing_to_predict_starts_nothing() -> None:
    assert predict_all([], tell=lambda done, total: pytest.fail("told")) == {}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConfigurationError("model: is not there"), "model: is not there"),
        (RuntimeError("two\nlines"), "RuntimeError: two"),
        (KeyError(), "KeyError"),
    ],
)
def test_whatever_a_prediction_raises_is_its_reason(error: Exception, reason: str, plan: Any) -> None:
    class Raising(Predictor):
        def forecast(self, cell: Cell, budget_bytes: int | None = None, card: Any = None) -> Any:
            raise error

    told = outcome(Raising(), plan().cell.flat(), None)
    assert (told.forecast, told.reason) == (None, reason)


def test_the_card_that_is_named_is_the_one_that_is_predicted_for(plan: Any) -> None:
    forecast = outcome(Predictor(), plan().cell.flat(), "rtx-4090").forecast
    assert forecast is not None
    assert any("rtx-4090" in note for note in forecast.notes)


@pytest.mark.slow
def test_nothing_in_the_current_directory_is_run_by_a_process_that_predicts(plan: Any, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("signal", "pickle", "json", "torch", "types", "warnings", "vrambench"):
        (here / f"{name}.py").write_text(f"open('{name}-ran', 'w'); raise SystemExit('the wrong module')")
    script = tmp_path / "vrambench-script"  # as the console script: its own folder is on the path, not the current one
    script.write_text(
        "from vrambench.bench.predict.many import predict_all; from vrambench.methods.cell import from_flat;"
        f"(told,) = predict_all([from_flat({plan().cell.flat()!r})]).values();"
        "print(told.reason); assert told.forecast"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=here, env=without_safe_path(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(here.glob("*-ran"))


def without_safe_path() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
