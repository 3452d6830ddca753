"""A run that predicts: each cell is a job that gives what is predicted of it, in processes of their own.

    run(planned, folder, device=PREDICTED, executor=PredictingExecutor(card="rtx-4090", jobs=2), listener=...)

A result has the source `predicted`, and what no prediction tells (times, what was learnt) is unknown. A cell that does not fit is
`oom`, with the bytes that it would take without a limit. One that cannot be predicted is an error.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from vrambench.bench.machine.environment import describe_environment
from vrambench.bench.predict.alloc_conf import read
from vrambench.bench.predict.cache import Cache
from vrambench.bench.predict.many import end, kept_outcomes, new_pool, predicted
from vrambench.bench.processes import deaf_to_interrupts, fresh_start
from vrambench.bench.results import PREDICTED
from vrambench.bench.results.forecast import Forecast, Outcome, Unmodelled
from vrambench.bench.results.records import Sample
from vrambench.bench.run.executor import Ended, Order, Spot
from vrambench.methods.cards import CARDS
from vrambench.methods.cell import Cell, from_flat

LOST = "the process that predicted it"


class PredictedJob:
    """A cell that is being predicted."""

    spot = Spot("predict")

    def __init__(self, order: Order, future: Future[list[Outcome]]) -> None:
        self.order = order
        self.future = future
        self.deadline = time.monotonic() + order.timeout_seconds
        self.ended: Ended | None = None


class PredictingExecutor:
    """Predicts `jobs` cells at a time for `card` (its name in CARDS; None: for the card whose memory a cell's budget is).
    `left_out`, `cache`: see Predictor."""

    most_lost = 2

    def __init__(
        self, card: str | None, jobs: int, left_out: tuple[Unmodelled, ...] = (), cache: Cache | None = None
    ) -> None:
        self._conf = read(None)  # a mistake in the environment's allocator settings is told here, once
        self._card = card
        self._processes = jobs
        self._left_out = left_out
        self._cache = cache
        self._pool: ProcessPoolExecutor | None = None
        self._jobs: list[PredictedJob] = []

    def environment(self, on: str | None = None) -> dict[str, Any]:
        """This machine's software, and the card as the GPU."""
        return describe_environment("cpu") | {"device": PREDICTED, "key": self._card, "gpu": described(self._card)}

    def expect(self, cells: Sequence[Cell]) -> None:
        """A process that predicts imports what it needs."""

    def prepare(self, axis: str, name: str, log: Path) -> str | None:
        """Nothing is to be done before a prediction."""
        return None

    def has_room(self, on: str | None) -> bool:
        return len(self._jobs) < self._processes

    def start(self, order: Order) -> PredictedJob:
        job = PredictedJob(order, self._kept(order) or self._asked(order))
        self._jobs.append(job)
        return job

    def _kept(self, order: Order) -> Future[list[Outcome]] | None:
        """What was predicted before, for which no process is started."""
        if self._cache is None:
            return None
        found = kept_outcomes([from_flat(order.cell)], self._card, self._conf, self._left_out, self._cache)
        if not found:
            return None
        future: Future[list[Outcome]] = Future()
        future.set_result([*found.values()])
        return future

    def _asked(self, order: Order) -> Future[list[Outcome]]:
        with fresh_start(), deaf_to_interrupts():  # the pool starts its processes as they are needed
            try:
                return self._submitted(order)
            except BrokenProcessPool:  # a process of it ended since; what it had under way is lost, which `wait` tells
                if self._pool is not None:
                    end(self._pool)
                self._pool = None
                return self._submitted(order)

    def _submitted(self, order: Order) -> Future[list[Outcome]]:
        self._pool = self._pool or new_pool(self._processes, None, self._left_out, self._cache)
        return self._pool.submit(predicted, [order.cell], self._card)

    def wait(self, seconds: float) -> None:
        wait([job.future for job in self._jobs], timeout=seconds, return_when=FIRST_COMPLETED)
        for job in self._jobs:
            if job.future.done():
                job.ended = _ended(job.future)
            elif time.monotonic() > job.deadline:
                job.ended = Ended(timed_out_seconds=job.order.timeout_seconds)
        if any(job.ended and (job.ended.lost or job.ended.timed_out_seconds is not None) for job in self._jobs):
            # Whose process is whose is not known: all end, and what else was under way runs again.
            for job in self._jobs:
                job.ended = job.ended or Ended(lost=LOST)
            self.kill()
        self._jobs = [job for job in self._jobs if job.ended is None]

    def kill(self) -> None:
        if self._pool is not None:
            end(self._pool)
        self._pool = None
        self._jobs.clear()


def described(card: str | None) -> dict[str, Any] | None:
    """A card of the table, as an environment describes a GPU that is there."""
    if card is None:
        return None
    known = CARDS[card]
    return {
        "name": card,
        "key": card,
        "compute_capability": ".".join(map(str, known.capability)),
        "total_bytes": known.marked_bytes,
        "usable_bytes": known.usable_bytes,
        "driver": None,
        "driver_cuda": None,
    }


def _ended(future: Future[list[Outcome]]) -> Ended:
    try:
        (outcome,) = future.result()
    except BrokenProcessPool:
        return Ended(lost=LOST)
    if outcome.forecast is None:
        return Ended(final=Sample(status="error", phase="predict", source=PREDICTED, reason=outcome.reason))
    return Ended(final=predicted_sample(outcome.forecast), forecast=outcome.forecast)


def predicted_sample(forecast: Forecast) -> Sample:
    """A forecast as a job's sample."""
    more: dict[str, Any] = {"status": "ok"}
    if not forecast.fits:
        need, budget = (f"{nbytes / 2**30:.2f} GiB" for nbytes in (forecast.unlimited_bytes, forecast.budget_bytes))
        told = f"it takes {need} without a limit, and has {budget}"
        more = {"status": "oom", "reason": told, "oom": forecast.oom, "phase": forecast.oom_phase}
    return Sample(
        source=PREDICTED,
        memory=forecast.memory,
        phases=forecast.stored_phases,
        roles=forecast.roles,
        parameters=forecast.parameters,
        held=forecast.held,
        seconds={"predict": forecast.seconds},
        notes=forecast.notes,
        **more,
    )
