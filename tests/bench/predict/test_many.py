"""Predictions of many cells in processes of their own: the same as in one, and one cell's failure is its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.conftest import plan_cell
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.many import outcome, predict_all
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError

SCRIPT = """
import json, sys
from vrambench.bench.predict.many import predict_all
from vrambench.methods.cell import from_flat
cells, told = list(map(from_flat, json.load(sys.stdin))), []
outcomes = predict_all([*cells, cells[0]], tell=lambda done, total: told.append((done, total)))
print(json.dumps([told, {name: (one.forecast and one.forecast.model_dump_json(), one.reason) for name, one in outcomes.items()}]))
"""


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    """The last one cannot be predicted."""
    return [*(plan_cell(batch_size=size).cell for size in range(1, 9)), plan_cell(model="./there-is-none").cell]


@pytest.fixture(scope="module")
def predicted(cells: list[Cell], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The cells predicted by processes that a script starts, in a folder of files that are named as what it imports: the folder,
    and what the script prints."""
    folder = tmp_path_factory.mktemp("predicted")
    here = folder / "here"
    here.mkdir()
    for name in ("signal", "pickle", "json", "torch", "types", "warnings", "vrambench"):
        (here / f"{name}.py").write_text(f"open('{name}-ran', 'w'); raise SystemExit('the wrong module')")
    script = folder / "vrambench-script"  # as the console script: its own folder is on the path, not the current one
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    given = json.dumps([cell.flat() for cell in cells])
    words = [sys.executable, str(script)]
    done = subprocess.run(words, cwd=here, env=environment, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return here, done.stdout


@pytest.mark.slow
def test_processes_predict_as_one_does_and_a_failure_is_its_cell_s_own(
    predicted: tuple[Path, str], cells: list[Cell]
) -> None:
    told, outcomes = json.loads(predicted[1])
    assert set(outcomes) == {cell.id for cell in cells}
    *good, broken = cells
    predictor = Predictor()
    for cell in (good[0], good[-1]):
        forecast = Forecast.model_validate_json(outcomes[cell.id][0])
        here = predictor.forecast(cell)
        assert forecast.model_copy(update={"seconds": 0.0}) == here.model_copy(update={"seconds": 0.0})
    forecast, reason = outcomes[broken.id]
    assert forecast is None
    assert "./there-is-none" in reason
    assert told[0] == [0, 9]
    assert told[-1] == [9, 9]
    assert told == sorted(told)


@pytest.mark.slow
def test_nothing_in_the_current_directory_is_run_by_a_process_that_predicts(predicted: tuple[Path, str]) -> None:
    assert not list(predicted[0].glob("*-ran"))


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
