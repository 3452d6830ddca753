"""Predictions of many cells in processes of their own: the same as in one, and one cell's failure is its own."""

from __future__ import annotations

from typing import Any

import pytest

from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.many import outcome, predict_all
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError


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
