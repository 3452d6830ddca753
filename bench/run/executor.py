"""Who runs a cell. A session asks for one sample after another and is told how each ended; whether that is a process here
(`local.py`), one of a cluster, or several ranks with a GPU each, it does not know.

    running = executor.start(order)
    while running.ended is None:
        executor.wait(0.25)             # returns earlier where something happens
        show(running.spot)
    sample = sample_of(running.ended)   # samples.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vrambench.bench.measure.progress import Progress
from vrambench.bench.results.forecast import Forecast
from vrambench.bench.results.records import Sample
from vrambench.methods.cell import Cell


@dataclass(frozen=True)
class Order:
    """One sample to take: `cell` as in result files, `device` a name, `log` where the job prints, `timeout_seconds` how long
    it may take, `saved` the folder of what the run's cells save for others (None where the cell has no part in that), `recording`
    the file for what the GPU's allocator does, `on` the kind of GPU, where a run measures on several; `visible` is what
    CUDA_VISIBLE_DEVICES is for the job (None: what it is here)."""

    cell: dict[str, Any]
    device: str
    log: Path
    timeout_seconds: float
    saved: Path | None = None
    recording: Path | None = None
    on: str | None = None
    visible: str | None = None


def modules_of(cells: Sequence[Cell]) -> tuple[str, ...]:
    """What the jobs of these cells import beside torch and transformers, each module once."""
    return tuple(dict.fromkeys(name for cell in cells for name in cell.requires))


class Spot(NamedTuple):
    """Where a job is, and the most that it had allocated before; `where` on another machine, by that one's name. None: it does not
    say."""

    phase: str | None = None
    step: int | None = None
    peak_bytes: int | None = None
    where: str | None = None


@dataclass(frozen=True)
class Ended:
    """How a job ended, and what it gave."""

    final: Sample | None = None
    """The whole sample, as the job sent it at its end."""
    progress: tuple[Progress, ...] = ()
    """What it had measured, step by step."""
    spot: Spot = field(default_factory=Spot)
    exit_code: int | None = 0
    """Negative: the number of the signal that ended it. None: it cannot be told, or it could not be ended."""
    timed_out_seconds: float | None = None
    """Its time, where it was ended because that was up."""
    out_of_host_memory: bool = False
    """It may be the system's out-of-memory killer that ended it: it ended some process meanwhile."""
    garbled: int = 0
    """Messages of the job that could not be read."""
    last_words: str = ""
    """The last line that it printed."""
    forecast: Forecast | None = None
    """What is predicted, where that was the job."""
    lost: str | None = None
    """What it ran under and ended with, by no fault of its own: it may be started again."""
    environment: dict[str, Any] | None = None
    """Where it ran, where that is told by job."""


class NowhereLeft(OSError):
    """Nothing is left that any job could run on."""


class Running(Protocol):
    """A job that was started."""

    @property
    def spot(self) -> Spot:
        """Where it is, as far as it is known without asking it."""

    @property
    def ended(self) -> Ended | None:
        """How it ended; None while it runs. What it started is gone by then."""


class Executor(Protocol):
    """Runs jobs, each in whatever is fresh for it."""

    most_lost: int
    """A sample that was lost so often is an error: it may be the cell that ends what it runs under."""

    def environment(self, on: str | None = None) -> dict[str, Any]:
        """The hardware and software that jobs run on, as `describe_environment` gives it; of that kind of GPU, or of all that the
        run measures on."""

    def expect(self, cells: Sequence[Cell]) -> None:
        """Is told, before any job, which cells are to come: what their jobs are forked from may import for all what they need."""

    def prepare(self, axis: str, name: str, log: Path) -> str | None:
        """Does what an axis value wants done once before anything is timed; None, or why it failed."""

    def has_room(self, on: str | None) -> bool:
        """Whether one more job may be started now, on that kind of GPU where the run measures on several."""

    def start(self, order: Order) -> Running:
        """Starts a job. Raises OSError where none can be started."""

    def wait(self, seconds: float) -> None:
        """Returns when a job that runs has ended or has something to say, at the latest after `seconds`; ends jobs whose
        time is up. `ended` and `spot` are only brought up to date here. Raises NowhereLeft."""

    def kill(self) -> None:
        """Ends every job that still runs, and what it started."""
