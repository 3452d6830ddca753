"""Pruning: what is predicted far over its budget is not started, and predictions stand beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.machine.environment import describe_environment
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.results.forecast import Outcome
from vrambench.bench.results.store import RunFolder
from vrambench.bench.run.session import Predict, run
from vrambench.methods.cards import CARDS, Card
from vrambench.methods.cell import Cell

MIB = 2**20


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor()


def predicting(predictor: Predictor, budget: int, asked: list[str], failing: str | None = None) -> Predict:
    def predict(cells: Sequence[Cell], card: Card | None) -> Mapping[str, Outcome]:
        asked.extend(cell.id for cell in cells)
        return {
            cell.id: Outcome(reason="no such operator")
            if cell.id == failing
            else Outcome(forecast=predictor.forecast(cell, budget))
            for cell in cells
        }

    return predict


def test_what_is_far_over_is_pruned_kept_on_resume_and_run_when_asked(
    predictor: Predictor, plan: Any, listening: Any, tmp_path: Path
) -> None:
    cell = plan()
    asked: list[str] = []
    predict = predicting(predictor, 8 * MIB, asked)
    summary = run([cell], tmp_path / "run", listener=listening, predict=predict, prune=True)
    assert (summary.counts, summary.exit_code, listening.names) == ({"pruned": 1}, 0, [])
    (result,) = RunFolder.open(tmp_path / "run").results()
    forecast = predictor.forecast(cell.cell, 8 * MIB)
    assert result.predicted == forecast.memory
    assert result.predicted_verdict is not None
    assert (result.predicted_verdict.verdict, result.predicted_verdict.budget_bytes) == ("does not fit", 8 * MIB)
    assert result.predicted_verdict.band_bytes == forecast.band_bytes > 0
    assert result.reason is not None
    assert result.reason.startswith(
        f"predicted to need {(forecast.memory.device_bytes or 0) / 2**30:.2f} GiB on the device"
    )
    assert (result.memory.device_bytes, result.samples, result.predicted_parts) == (None, (), None)

    again = run([cell], tmp_path / "run", listener=listening, predict=predict, prune=True)
    assert (again.kept, listening.names, len(asked)) == (1, [], 1)
    retried = run([cell], tmp_path / "run", listener=listening, retry=frozenset(["pruned"]))
    assert (retried.counts, listening.names) == ({"ok": 1}, [cell.name])
    (result,) = RunFolder.open(tmp_path / "run").results()
    assert (result.status, result.predicted) == ("ok", None)


def test_a_prediction_stands_beside_what_was_measured(
    predictor: Predictor, plan: Any, listening: Any, tmp_path: Path
) -> None:
    over, failing, invalid = plan(), plan(seed=1), plan({"precision": "nf4"})
    asked: list[str] = []
    predict = predicting(predictor, 8 * MIB, asked, failing.id)
    summary = run([over, failing, invalid], tmp_path / "run", listener=listening, predict=predict)
    assert summary.counts == {"ok": 2, "invalid": 1}
    assert listening.done == [1, 2], "the invalid one had ended before any started"
    assert asked == [over.id, failing.id], "a cell that is forbidden is not predicted"
    results = {result.id: result for result in RunFolder.open(tmp_path / "run").results()}
    assert results[over.id].predicted == predictor.forecast(over.cell).memory
    assert results[over.id].memory.allocated_bytes is not None
    parts, forecast = results[over.id].predicted_parts, predictor.forecast(over.cell)
    assert parts
    assert (parts.held, parts.roles) == (forecast.held, forecast.roles)
    assert [phase.at_peak for phase in parts.phases] == [phase.at_peak for phase in forecast.phases]
    assert results[failing.id].predicted is None
    assert f"{failing.name}: not predicted: no such operator" in listening.messages


def test_just_over_the_budget_is_run(predictor: Predictor, plan: Any, listening: Any, tmp_path: Path) -> None:
    cell = plan()
    need = predictor.forecast(cell.cell).memory.device_bytes
    assert need is not None
    predict = predicting(predictor, int(need / 1.2), [])
    summary = run([cell], tmp_path / "run", listener=listening, predict=predict, prune=True)
    assert summary.counts == {"ok": 1}


def test_predictions_are_for_the_gpu_that_is_there(
    predictor: Predictor, plan: Any, listening: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = {"name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "total_bytes": 80 * 2**30}
    environment = describe_environment("cpu") | {"gpu": gpu}
    monkeypatch.setattr("vrambench.bench.run.local.describe_environment", lambda device: environment)
    cards = []

    def predict(cells: Sequence[Cell], card: Card | None) -> Mapping[str, Outcome]:
        cards.append(card)
        return {}

    run([plan()], tmp_path / "run", listener=listening, predict=predict)
    assert cards == [CARDS["h100-80gb"]]
