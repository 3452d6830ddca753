"""Cells and listeners that tests of the runner share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

import pytest
import torch

from vrambench.bench.plan.plan import PlannedCell
from vrambench.bench.plan.validity import check
from vrambench.bench.predict import many
from vrambench.bench.results.records import Result
from vrambench.bench.run.executor import Spot
from vrambench.methods.cell import resolve
from vrambench.methods.workload import PARTS

AXES = {"precision": "fp32", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
WORKLOAD = {
    "model": "tiny",
    "prompt_tokens": 4,
    "response_tokens": 4,
    "batch_size": 2,
    "rollout_batch": 2,
    "steps": 2,
    "warmup_steps": 1,
    "budget": "2GiB",
    "zero": {"reduce_bucket_size": 100_000},
}


def plan_cell(axes: dict[str, str] | None = None, **workload: Any) -> PlannedCell:
    """A small cell: fp32 SFT of the tiny model, but for what is said."""
    unsaid = PARTS if "lengths" in workload else ()
    small = {name: value for name, value in WORKLOAD.items() if name not in unsaid}
    cell = resolve(AXES | (axes or {}), small | workload)
    return PlannedCell(cell, cell.name, check(cell, "cpu"))


class Listening:
    """Keeps what a run said."""

    def __init__(self, on_started: Callable[[str], None] = lambda name: None) -> None:
        self.on_started = on_started
        self.results: list[Result] = []
        self.messages: list[str] = []
        self.names: list[str] = []
        self.done: list[int] = []

    def started(self, name: str, done: int, total: int) -> None:
        self.names.append(name)
        self.done.append(done)
        self.on_started(name)

    def phase(self, name: str, spot: Spot) -> None:
        pass

    def finished(self, result: Result) -> None:
        self.results.append(result)

    def message(self, text: str) -> None:
        self.messages.append(text)


class Here(Executor):
    """A pool that predicts in this process, which has imported all that another would import for 4 s of a CPU."""

    def __init__(self, processes: int, *settings: Any) -> None:
        from vrambench.bench.predict.forecast import Predictor

        many._predictor = Predictor(*settings)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*args, **kwargs))
        return done


@contextlib.contextmanager
def predicting_here() -> Iterator[None]:
    """As the fixture `predicted_here`, for others that outlive a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many, "_predictor", None)
        for user in ("predict.many", "run.predicted"):
            patch.setattr(f"vrambench.bench.{user}.new_pool", Here)
        yield


@pytest.fixture
def predicted_here() -> Iterator[None]:
    """For tests whose subject is what predictions come to: they start no process."""
    with predicting_here():
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two threads on two busy cores wait for each other for seconds."""
    torch.set_num_threads(1)


@pytest.fixture
def listening() -> Listening:
    return Listening()


@pytest.fixture
def plan() -> Callable[..., PlannedCell]:
    """`plan_cell`, as a fixture."""
    return plan_cell
