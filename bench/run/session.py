"""Runs planned cells, each in a fresh process, and stores what every one gave.

    summary = run(planned, Path("runs/first"), device="cpu", jobs=2)

However a job ends, its result has the status that says so, the next cell runs, and what is stored stays. What a job runs in
is the executor's affair (`executor.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vrambench.bench.plan.plan import PlannedCell
from vrambench.bench.predict.unseen.hardware import card_described
from vrambench.bench.processes import interruptible
from vrambench.bench.results.comparable import changed_versions, same_allocation, same_hardware
from vrambench.bench.results.records import FAILED, Result, Sample, Status
from vrambench.bench.results.store import RunFolder, Unreadable
from vrambench.bench.run.executor import Executor, Order, Running, Spot
from vrambench.bench.run.local import LocalExecutor
from vrambench.bench.run.samples import keep, noted, representative, sample_of
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError

if TYPE_CHECKING:
    from vrambench.bench.results.forecast import Forecast, Outcome
    from vrambench.bench.results.run_info import RunInfo
    from vrambench.methods.cards import Card

Predict = Callable[[Sequence[Cell], "Card | None"], Mapping[str, "Outcome"]]

EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 4, 130
POLL_SECONDS = 0.25


class Listener(Protocol):
    """Whoever shows a run's progress. `started`: how many of all cells are `done` already, those that were kept, too;
    `finished`: once for each sample of a cell."""

    def started(self, name: str, done: int, total: int) -> None: ...

    def phase(self, name: str, spot: Spot) -> None: ...

    def finished(self, result: Result) -> None: ...

    def message(self, text: str) -> None: ...


@dataclass(frozen=True)
class Summary:
    """How a run ended: results by status (kept ones too), and whether it was interrupted."""

    folder: Path
    counts: dict[Status, int]
    kept: int
    interrupted: bool

    @property
    def exit_code(self) -> int:
        if self.interrupted:
            return EXIT_INTERRUPTED
        return EXIT_FAILED if any(self.counts.get(status) for status in FAILED) else EXIT_OK


@dataclass(frozen=True)
class _Asked:
    """What a session was asked for, as `run` describes it."""

    device: str
    jobs: int
    timeout: float
    retry: frozenset[str]
    repeat: int
    about: dict[str, Any]
    prune: bool
    record: bool


@dataclass
class _Task:
    """A cell on its way: the samples that it has so far, and its prediction where one was made."""

    planned: PlannedCell
    samples: list[Sample] = field(default_factory=list)
    forecast: Forecast | None = None
    lost: list[str] = field(default_factory=list)
    """What ended under the sample that is being taken, each time."""


def run(
    planned: Sequence[PlannedCell],
    folder: Path,
    *,
    device: str = "cpu",
    jobs: int = 1,
    timeout: float = 1800.0,
    retry: frozenset[str] = frozenset(),
    repeat: int = 1,
    listener: Listener,
    about: dict[str, Any] | None = None,
    predict: Predict | None = None,
    prune: bool = False,
    record: bool = False,
    executor: Executor | None = None,
) -> Summary:
    """Runs what `folder` does not hold yet; `timeout` in seconds for each job, `retry` the statuses to run again,
    `repeat` samples for each cell, `about` more to store in run.json (the command line, the profile). `predict`: asked
    for the outcomes of what is to run, on the known card that the GPU is (None: on none), whose memory and verdict then stand
    beside what is measured; with `prune`, a cell that is predicted to need far more than its budget is not started.
    `record`: what the GPU's allocator does is recorded, under `recordings`. `executor`: what runs the jobs, processes on this
    machine where none is given.

    Raises ConfigurationError where another run holds the folder, or it was begun on other hardware or by a newer version.
    """
    if not math.isfinite(timeout):
        raise ConfigurationError(f"timeout: {timeout:g} is no number of seconds; 86400 is a day", field="timeout")
    chosen = executor or LocalExecutor(device, jobs)
    store = RunFolder(folder)
    store.acquire()
    try:
        asked = _Asked(device, jobs, timeout, retry, repeat, about or {}, prune, record)
        return _Session(planned, store, chosen, asked, listener, predict).run()
    finally:
        store.release()


class _Session:
    def __init__(
        self,
        planned: Sequence[PlannedCell],
        store: RunFolder,
        executor: Executor,
        asked: _Asked,
        listener: Listener,
        predict: Predict | None,
    ) -> None:
        self.store = store
        self.executor = executor
        self.asked = asked
        self.listener = listener
        self.predict = predict
        self.environment = executor.environment()
        kinds = {cell.on for cell in planned if cell.on is not None}
        self.environments = {None: self.environment} | {on: executor.environment(on) for on in kinds}
        self.tasks = [_Task(cell) for cell in planned]
        self.running: list[tuple[_Task, Running]] = []
        self.kept = 0

    def run(self) -> Summary:
        found = self._found()
        self._write_info(found)
        waiting = [task for task in self.tasks if not self._keep(task, found[task.planned.id])]
        interrupted = False
        try:
            with interruptible():
                waiting = self._without_invalid(waiting)
                if waiting and self.predict:
                    waiting = self._predicted(waiting, self.predict)
                if waiting:
                    self.executor.expect([task.planned.cell for task in waiting])
                    waiting = self._prepare(waiting)
                self._loop(waiting)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self.executor.kill()
        stored = [self.store.read_result(task.planned.id) for task in self.tasks]
        counts = Counter(result.status for result in stored if result)
        return Summary(self.store.path, dict(counts), self.kept, interrupted)

    def _found(self) -> dict[str, Result | Unreadable | None]:
        """What the folder holds for each cell. Raises ConfigurationError for what a newer version wrote."""
        found = {task.planned.id: self.store.read(task.planned.id) for task in self.tasks}
        for one in found.values():
            if isinstance(one, Unreadable) and one.newer:
                raise ConfigurationError(
                    f"out: {one.file} is {one.reason}; name another folder with --out", field="out"
                )
        return found

    def _write_info(self, found: Mapping[str, Result | Unreadable | None]) -> None:
        """run.json: a resumed run keeps its beginning, and adds the cells that are new, and when and by which command it
        went on. One with nothing left to do leaves the file as it is."""
        before: RunInfo | None = None
        if (self.store.path / "run.json").exists():
            before = RunFolder.open(self.store.path).run
        cells = {task.planned.id: _listed(task.planned) for task in self.tasks}
        if before:
            stored = before.document()
            differences = same_hardware(stored.get("environment", {}), self.environment)
            if differences:
                raise ConfigurationError(
                    f"out: the run in {self.store.path} was begun elsewhere ({'; '.join(differences)}); "
                    "its results cannot stand beside this machine's: name another folder with --out",
                    field="out",
                )
            begun = stored.get("environment", {})
            for change in (*same_allocation(begun, self.environment), *changed_versions(begun, self.environment)):
                self.listener.message(f"unlike when the run was begun: {change}")
            cells = {cell["id"]: cell for cell in stored["cells"]} | cells
            if all(self._ended(one) for one in found.values()):
                self.store.run = before
                return
        self.store.write_info(
            {
                **self._times(before),
                "device": self.asked.device,
                "repeat": self.asked.repeat,
                "timeout_seconds": self.asked.timeout,
                "jobs": self.asked.jobs,
                **_commands(self.asked.about, before),
                "environment": self.environment,
                "cells": list(cells.values()),
            }
        )

    def _times(self, before: RunInfo | None) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if before is None:
            return {"started_at": now, "resumed_at": []}
        return {"started_at": before.started_at or now, "resumed_at": [*before.resumed_at, now]}

    def _keep(self, task: _Task, found: Result | Unreadable | None) -> bool:
        """Whether the folder holds this cell's result already; samples of one that still lacks some are taken over."""
        if isinstance(found, Unreadable):
            aside = self.store.set_aside(task.planned.id)
            if aside:
                self.listener.message(f"{aside.name}: {found.reason}; set aside, the cell runs again")
            return False
        if found is None or not self._ended(found):
            if found and found.status == "ok":
                task.samples = list(found.samples)
            return False
        self.kept += 1
        return True

    def _ended(self, found: Result | Unreadable | None) -> bool:
        """Whether nothing is left to do for a cell of which that was found."""
        if not isinstance(found, Result) or found.status in self.asked.retry:
            return False
        return found.status != "ok" or len(found.samples) >= self.asked.repeat

    def _without_invalid(self, tasks: list[_Task]) -> list[_Task]:
        """Stores the invalid cells' results, and gives the others."""
        for task in tasks:
            finding = task.planned.rejection
            if finding is not None:
                self._store(task, Sample(status="invalid", reason=finding.reason), rule=finding.rule)
        return [task for task in tasks if task.planned.rejection is None]

    def _predicted(self, tasks: list[_Task], predict: Predict) -> list[_Task]:
        """Has each cell predicted, stores the results of those that are pruned, and gives the others."""
        self.listener.message(f"predicting {len(tasks)} cells" if len(tasks) > 1 else "predicting 1 cell")
        outcomes: dict[str, Outcome] = {}
        for on, environment in self.environments.items():
            there = {task.planned.id: task.planned.cell for task in tasks if task.planned.on == on}
            found = predict(list(there.values()), card_described(environment["gpu"])) if there else {}
            outcomes |= {name: found[cell.id] for name, cell in there.items() if cell.id in found}
        left = []
        for task in tasks:
            outcome = outcomes.get(task.planned.id)
            task.forecast = outcome.forecast if outcome else None
            if outcome and outcome.reason:
                self.listener.message(f"{task.planned.name}: not predicted: {outcome.reason}")
            if self.asked.prune and task.forecast and task.forecast.far_over and not task.samples:
                self._store(task, Sample(status="pruned", reason=_far_over(task.forecast)))
            else:
                left.append(task)
        return left

    def _prepare(self, tasks: list[_Task]) -> list[_Task]:
        """Runs each axis value's one-time preparation; cells whose value could not be prepared are errors."""
        wanted = {
            (axis, name): getattr(value, "prepare", None)
            for task in tasks
            for (axis, value), name in zip(
                task.planned.cell.values.items(), task.planned.cell.axes.values(), strict=True
            )
        }
        failed: dict[tuple[str, str], str] = {}
        for (axis, name), function in wanted.items():
            if function is not None:
                self.listener.message(f"preparing {axis} {name}")
                log = self.store.log(f"prepare-{name.replace(':', '.')}")
                reason = self.executor.prepare(axis, name, log)
                if reason is not None:
                    failed[axis, name] = reason
        left: list[_Task] = []
        for task in tasks:
            axes = task.planned.cell.axes
            broken = next((reason for (axis, name), reason in failed.items() if axes[axis] == name), None)
            if broken is None:
                left.append(task)
            else:
                self._store(task, Sample(status="error", phase="prepare", reason=broken))
        return left

    def _loop(self, waiting: list[_Task]) -> None:
        while waiting or self.running:
            while task := self._next(waiting):
                waiting.remove(task)
                self._start(task, len(self.tasks) - len(waiting) - len(self.running) - 1)
            self.executor.wait(POLL_SECONDS)
            for task, job in list(self.running):
                if (spot := job.spot).phase:
                    self.listener.phase(task.planned.name, spot)
                if job.ended is not None:
                    self.running.remove((task, job))
                    if self._takes_another(task, job):
                        waiting.insert(0, task)

    def _next(self, waiting: Sequence[_Task]) -> _Task | None:
        """The first that there is room for and that starts from nothing which another is still to save."""
        rooms = {on: self.executor.has_room(on) for on in {task.planned.on for task in waiting}}
        unsaved = {task.planned.cell.workload.save_as for task in (*waiting, *(task for task, _ in self.running))}
        placed = [task for task in waiting if rooms[task.planned.on]]
        ready = (task for task in placed if not unsaved.intersection(task.planned.cell.workload.starts_from))
        # Where each waits for another, or one for itself, the first says that nothing is saved yet.
        return next(ready, placed[0] if placed and not self.running else None)

    def _start(self, task: _Task, done: int) -> None:
        cell = task.planned.cell
        saves = cell.workload.save_as or cell.workload.starts_from
        order = Order(
            cell.flat(),
            self.asked.device,
            self.store.log(task.planned.id),
            self.asked.timeout,
            self.store.path.absolute() / "saved" if saves else None,
            self.store.recording(task.planned.id).absolute() if self.asked.record else None,
            task.planned.on,
        )
        self.listener.started(task.planned.name, done, len(self.tasks))
        self.running.append((task, self.executor.start(order)))

    def _takes_another(self, task: _Task, job: Running) -> bool:
        """Stores what an ended job gave. Whether its cell runs once more: for its next sample, or for one that was lost."""
        assert job.ended is not None
        if job.ended.lost and job.ended.final is None:
            task.lost.append(job.ended.lost)
            if len(task.lost) < self.executor.most_lost:
                self.listener.message(f"{task.planned.name}: {job.ended.lost} has ended; it runs again")
                return True
        task.forecast = job.ended.forecast or task.forecast
        environment = self.environments[task.planned.on]
        task.samples.append(noted(sample_of(job.ended), task.lost, environment, job.ended.environment or environment))
        task.lost.clear()
        self._store(task, task.samples[-1], environment=job.ended.environment)
        return task.samples[-1].status in ("ok", "oom") and len(task.samples) < self.asked.repeat

    def _store(
        self, task: _Task, sample: Sample, *, rule: str | None = None, environment: dict[str, Any] | None = None
    ) -> None:
        planned = task.planned
        samples = tuple(task.samples)
        shown = representative(samples) if samples else sample
        forecast = task.forecast
        result = Result(
            **dict(shown),
            id=planned.id,
            name=planned.name,
            cell=planned.cell.flat(),
            rule=rule,
            predicted=forecast.memory if forecast else None,
            predicted_verdict=forecast.stored_verdict if forecast else None,
            predicted_parts=forecast.stored_parts if forecast and shown.source in ("measured", "verified") else None,
            environment=environment or self.environments[planned.on],
            samples=samples,
        )
        keep(self.store, result)
        self.listener.finished(result)


def _commands(about: Mapping[str, Any], before: RunInfo | None) -> dict[str, Any]:
    """What the caller says of the run; of a resumed one the first command stays, and this one is added to those after it."""
    said = dict(about)
    if before is None or "command" not in said:
        return said
    resumed = [*before.resumed_with, said.pop("command")]
    return said | ({"command": before.command} if before.command else {}) | {"resumed_with": resumed}


def _far_over(forecast: Forecast) -> str:
    need, budget = forecast.memory.device_bytes or 0, forecast.budget_bytes
    return (
        f"predicted to need {need / 2**30:.2f} GiB on the device, {need / budget:.1f} times the budget of "
        f"{budget / 2**30:.2f} GiB; not started"
    )


def _listed(planned: PlannedCell) -> dict[str, Any]:
    on = {} if planned.on is None else {"on": planned.on}
    return {"id": planned.id, "name": planned.name, **on, **planned.cell.flat()}
