"""Runs planned cells, each in a fresh process, and stores what every one gave.

    summary = run(planned, Path("runs/first"), device="cpu", jobs=2)

However a job ends, its result has the status that says so, the next cell runs, and what is stored stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vrambench.bench.machine.environment import describe_environment, same_hardware, usable_threads
from vrambench.bench.measure.measurement import Progress
from vrambench.bench.measure.oom import NATIVE_EXIT, oom_kills
from vrambench.bench.plan.plan import PlannedCell
from vrambench.bench.predict.unseen.hardware import card_described
from vrambench.bench.processes import kill
from vrambench.bench.results.records import FAILED, OutOfMemory, Result, Sample, Status, Throughput
from vrambench.bench.results.store import RunFolder, dump_result
from vrambench.bench.run import server
from vrambench.bench.run.worker import BOARD_BYTES, JobOrder, prepare, read_board, work
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError

if TYPE_CHECKING:
    from vrambench.bench.results.forecast import Forecast, Outcome
    from vrambench.methods.cards import Card

Predict = Callable[[Sequence[Cell], "Card | None"], Mapping[str, "Outcome"]]

EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 4, 130
POLL_SECONDS = 0.25
PREPARE_SECONDS = 1800.0
"""How long what is done once, before anything is timed, may take."""
LAST_WORDS_SECONDS = 20.0
"""How long a job may take to end after it has sent its result."""


class Listener(Protocol):
    """Whoever shows a run's progress."""

    def started(self, name: str, index: int, total: int) -> None: ...

    def phase(self, name: str, phase: str, step: int | None, live_bytes: int | None) -> None: ...

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


@dataclass
class _Task:
    """A cell on its way: the samples that it has so far, and its prediction where one was made."""

    planned: PlannedCell
    index: int
    samples: list[Sample] = field(default_factory=list)
    forecast: Forecast | None = None


@dataclass
class _Running:
    task: _Task
    process: Any
    pipe: Connection
    board: Any
    deadline: float
    oom_kills: int
    progress: list[Progress] = field(default_factory=list)
    final: Sample | None = None
    timed_out: bool = False
    said_all: bool = False
    """The job has closed its end of the pipe."""


def run(
    planned: Sequence[PlannedCell],
    folder: Path,
    *,
    device: str = "cpu",
    jobs: int = 1,
    timeout: float = 600.0,
    retry: frozenset[str] = frozenset(),
    repeat: int = 1,
    listener: Listener,
    about: dict[str, Any] | None = None,
    predict: Predict | None = None,
    prune: bool = False,
) -> Summary:
    """Runs what `folder` does not hold yet; `timeout` in seconds for each job, `retry` the statuses to run again,
    `repeat` samples for each cell, `about` more to store in run.json (the command line, the profile). `predict`: asked
    for the outcomes of what is to run, on the known card that the GPU is (None: on none), whose memory then stands
    beside what is measured; with `prune`, a cell that is predicted to need far more than its budget is not started.

    Raises ConfigurationError where another run holds the folder, or it was begun on other hardware.
    """
    kind = device.split(":")[0]
    if kind != "cpu" and jobs != 1:
        raise ConfigurationError(
            f"jobs: {jobs} jobs would share one GPU's memory; on {device} it can only be 1", field="jobs"
        )
    store = RunFolder(folder)
    store.acquire()
    try:
        return _Run(planned, store, device, jobs, timeout, retry, repeat, listener, about or {}, predict, prune).run()
    finally:
        store.release()


class _Run:
    def __init__(
        self,
        planned: Sequence[PlannedCell],
        store: RunFolder,
        device: str,
        jobs: int,
        timeout: float,
        retry: frozenset[str],
        repeat: int,
        listener: Listener,
        about: dict[str, Any],
        predict: Predict | None = None,
        prune: bool = False,
    ) -> None:
        self.store = store
        self.device = device
        self.jobs = jobs
        self.timeout = timeout
        self.retry = retry
        self.repeat = repeat
        self.listener = listener
        self.about = about
        self.predict = predict
        self.prune = prune
        self.server = server.Server(device)
        self.environment = describe_environment(device)
        self.tasks = [_Task(cell, index) for index, cell in enumerate(planned, 1)]
        self.running: list[_Running] = []
        self.kept = 0
        self.threads = max(1, usable_threads() // jobs) if device == "cpu" else 0

    def run(self) -> Summary:
        self._write_info()
        waiting = [task for task in self.tasks if not self._keep(task)]
        interrupted = False
        try:
            with _interruptible():
                waiting = self._without_invalid(waiting)
                if waiting and self.predict:
                    waiting = self._predicted(waiting, self.predict)
                if waiting:
                    waiting = self._prepare(waiting)
                self._loop(waiting)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            for job in self.running:
                kill(job.process)
        stored = [self.store.read_result(task.planned.cell.id) for task in self.tasks]
        counts = Counter(result.status for result in stored if result)
        return Summary(self.store.path, dict(counts), self.kept, interrupted)

    def _write_info(self) -> None:
        """run.json: a resumed run keeps its beginning, and adds the cells that are new, and when and by which command it
        went on. One with nothing left to do leaves the file as it is."""
        cells = {task.planned.cell.id: _listed(task.planned) for task in self.tasks}
        before: dict[str, Any] = {}
        if (self.store.path / "run.json").exists():
            before = RunFolder.open(self.store.path).info
            differences = same_hardware(before.get("environment", {}), self.environment)
            if differences:
                raise ConfigurationError(
                    f"out: the run in {self.store.path} was begun elsewhere ({'; '.join(differences)}); "
                    "its results cannot stand beside this machine's: name another folder with --out",
                    field="out",
                )
            cells = {cell["id"]: cell for cell in before.get("cells", [])} | cells
            if all(self._ended(self.store.read_result(task.planned.cell.id)) for task in self.tasks):
                self.store.info = before
                return
        about, resumed = dict(self.about), {}
        if before and "command" in about:
            resumed = {"resumed_with": [*before.get("resumed_with", []), about.pop("command")]}
            about |= {"command": before["command"]} if "command" in before else {}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.store.write_info(
            {
                "started_at": before.get("started_at", now),
                "resumed_at": [*before.get("resumed_at", []), now] if before else [],
                "device": self.device,
                "repeat": self.repeat,
                "timeout_seconds": self.timeout,
                "jobs": self.jobs,
                **about,
                **resumed,
                "environment": self.environment,
                "cells": list(cells.values()),
            }
        )

    def _keep(self, task: _Task) -> bool:
        """Whether the folder holds this cell's result already; samples of one that still lacks some are taken over."""
        result = self.store.read_result(task.planned.cell.id)
        if result is None:
            aside = self.store.set_aside(task.planned.cell.id)
            if aside:
                self.listener.message(f"{aside.name}: not a readable result; set aside, the cell runs again")
            return False
        if not self._ended(result):
            if result.status == "ok" and result.status not in self.retry:
                task.samples = list(result.samples)
            return False
        self.kept += 1
        return True

    def _ended(self, result: Result | None) -> bool:
        """Whether nothing is left to do for a cell with that result."""
        if result is None or result.status in self.retry:
            return False
        return result.status != "ok" or len(result.samples) >= self.repeat

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
        outcomes = predict([task.planned.cell for task in tasks], card_described(self.environment["gpu"]))
        left = []
        for task in tasks:
            outcome = outcomes.get(task.planned.cell.id)
            task.forecast = outcome.forecast if outcome else None
            if outcome and outcome.reason:
                self.listener.message(f"{task.planned.name}: not predicted: {outcome.reason}")
            if self.prune and task.forecast and task.forecast.far_over and not task.samples:
                self._store(task, Sample(status="pruned", reason=_far_over(task.forecast)))
            else:
                left.append(task)
        return left

    def _prepare(self, tasks: list[_Task]) -> list[_Task]:
        """Runs what axis values want done once before anything is timed; cells whose value could not be prepared are errors."""
        wanted = {
            (axis, name): getattr(value, "prepare", None)
            for task in tasks
            for (axis, value), name in zip(
                task.planned.cell.values.items(), task.planned.cell.axes.values(), strict=True
            )
        }
        failed: dict[tuple[str, str], Path] = {}
        for (axis, name), function in wanted.items():
            if function is None:
                continue
            log = self.store.log(f"prepare-{name.replace(':', '.')}")
            self.listener.message(f"preparing {axis} {name}")
            process = self.server.fork(prepare, (axis, name), str(log))
            try:
                process.join(PREPARE_SECONDS)
            finally:
                if process.is_alive():
                    kill(process)
            if process.exitcode != 0:
                failed[axis, name] = log
        left: list[_Task] = []
        for task in tasks:
            broken = next((log for (axis, name), log in failed.items() if task.planned.cell.axes[axis] == name), None)
            if broken is None:
                left.append(task)
            else:
                self._store(task, Sample(status="error", phase="prepare", reason=_last_line(broken)))
        return left

    def _loop(self, waiting: list[_Task]) -> None:
        waiting = list(waiting)
        while waiting or self.running:
            while waiting and len(self.running) < self.jobs:
                self._start(waiting.pop(0))
            pipes = [job.pipe for job in self.running if not job.said_all]
            wait([*(job.process.sentinel for job in self.running), *pipes], timeout=POLL_SECONDS)
            for job in list(self.running):
                self._look_at(job)
                if not job.process.is_alive():
                    self._read(job)
                    self.running.remove(job)
                    task = job.task
                    task.samples.append(self._sample(job))
                    job.process.close()
                    self._store(task, task.samples[-1])
                    if task.samples[-1].status in ("ok", "oom") and len(task.samples) < self.repeat:
                        waiting.insert(0, task)

    def _start(self, task: _Task) -> None:
        ours, theirs = server.CONTEXT.Pipe(duplex=False)
        board = server.CONTEXT.RawArray("c", BOARD_BYTES)
        cell = task.planned.cell
        order = JobOrder(cell.flat(), self.device, str(self.store.log(cell.id)), self.threads)
        self.listener.started(task.planned.name, task.index, len(self.tasks))
        process = self.server.fork(work, order, board, theirs)
        theirs.close()
        deadline = time.monotonic() + self.timeout
        self.running.append(_Running(task, process, ours, board, deadline, oom_kills()))

    def _look_at(self, job: _Running) -> None:
        self._read(job)
        spot = read_board(job.board)
        if spot.phase:
            self.listener.phase(job.task.planned.name, spot.phase, spot.step, spot.live_bytes)
        if time.monotonic() > job.deadline and job.process.is_alive():
            job.timed_out = job.final is None
            kill(job.process)

    def _read(self, job: _Running) -> None:
        """Takes what the job has sent."""
        try:
            while not job.said_all and job.pipe.poll():
                said = job.pipe.recv()
                if isinstance(said, Progress):
                    job.progress.append(said)
                else:
                    job.final = said
                    job.deadline = min(job.deadline, time.monotonic() + LAST_WORDS_SECONDS)
        except (EOFError, OSError):
            job.said_all = True

    def _sample(self, job: _Running) -> Sample:
        """What an ended job gave: its own last word, or what it had measured with the way in which it ended."""
        code = job.process.exitcode
        if job.final is not None:
            if code == 0:
                return job.final
            note = f"the process ended with {_ending(code)} after its result was complete"
            return job.final.model_copy(update={"notes": (*job.final.notes, note)})
        spot = read_board(job.board)
        more: dict[str, Any] = {"phase": spot.phase or "start"}
        if job.timed_out:
            more |= {"status": "timeout", "reason": f"not done after {self.timeout:g} s"}
        elif code is not None and code < 0:
            name = signal.Signals(-code).name
            more |= {"status": "crashed", "signal": name, "reason": f"ended by {name}"}
            if name == "SIGKILL" and oom_kills() > job.oom_kills:
                more |= {
                    "status": "oom",
                    "reason": "the system's out-of-memory killer ended the process",
                    "oom": OutOfMemory(where="host"),
                }
        else:
            words = _last_line(self.store.log(job.task.planned.cell.id))
            more |= {"status": "error", "reason": f"ended with {_ending(code)}: {words}"}
            if NATIVE_EXIT.search(words):
                more |= {"status": "oom", "oom": OutOfMemory(where="device")}
        return Sample(**_so_far(job.progress), **more)

    def _store(self, task: _Task, sample: Sample, *, rule: str | None = None) -> None:
        planned = task.planned
        samples = tuple(task.samples)
        shown = representative(samples) if samples else sample
        result = Result(
            **dict(shown),
            id=planned.cell.id,
            name=planned.name,
            cell=planned.cell.flat(),
            rule=rule,
            predicted=task.forecast.memory if task.forecast else None,
            environment=self.environment,
            samples=samples,
        )
        self._write(result)
        self.listener.finished(result)

    def _write(self, result: Result) -> None:
        """Stores a result; where the folder's disk cannot take it, it goes where something can, and the run ends."""
        try:
            self.store.write_result(result)
        except OSError as error:
            elsewhere = _rescue(result)
            raise StorageError(
                f"{self.store.path}: {error.strerror}; the result of {result.name} ({result.id}) is kept in {elsewhere}; "
                "make room and run again with the same --out to go on"
            ) from error


def _far_over(forecast: Forecast) -> str:
    need, budget = forecast.memory.device_bytes or 0, forecast.budget_bytes
    return (
        f"predicted to need {need / 2**30:.2f} GiB on the device, {need / budget:.1f} times the budget of "
        f"{budget / 2**30:.2f} GiB; not started"
    )


def _so_far(progress: Sequence[Progress]) -> dict[str, Any]:
    """What a job that cannot speak any more had measured."""
    if not progress:
        return {}
    return {
        "source": progress[-1].source,
        "notes": progress[-1].notes,
        "memory": progress[-1].memory,
        "phases": tuple(phase for each in progress for phase in each.phases),
        "parameters": progress[0].parameters,
        "throughput": Throughput(
            step_seconds=tuple(each.step_seconds for each in progress if each.step_seconds is not None)
        ),
    }


class StorageError(OSError):
    """The run folder could not take a result."""


def representative(samples: Sequence[Sample]) -> Sample:
    """The sample that stands for a cell: the first that is not ok, or else the one with the median step time."""
    for sample in samples:
        if sample.status != "ok":
            return sample
    ordered = sorted(
        samples, key=lambda sample: sorted(sample.throughput.step_seconds)[len(sample.throughput.step_seconds) // 2]
    )
    return ordered[(len(ordered) - 1) // 2]


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ending(code: int | None) -> str:
    return f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1].strip()[:500]
    return "no output"


def _rescue(result: Result) -> str:
    """Keeps a result that its folder could not take; as a last resort it is printed."""
    for folder in (Path(tempfile.gettempdir()), Path.home()):
        with contextlib.suppress(OSError):
            handle, name = tempfile.mkstemp(dir=folder, prefix=f"vrambench-{result.id}-", suffix=".json")
            with os.fdopen(handle, "w") as file:
                file.write(dump_result(result))
            return name
    print(dump_result(result), file=sys.stderr)
    return "the lines above"


def _listed(planned: PlannedCell) -> dict[str, Any]:
    return {"id": planned.cell.id, "name": planned.name, **planned.cell.flat()}
