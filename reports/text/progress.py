"""What is seen of a run at work, on stderr: a live display on a terminal, else a plain line for each cell that ends.

    with listening(Output(sys.stderr), size=str, seconds=str) as listener:
        run(planned, folder, listener=listener)

`size` and `seconds` turn bytes and seconds into text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from vrambench.bench.results.records import FAILED, Result
from vrambench.bench.run.executor import Spot
from vrambench.bench.run.session import Listener
from vrambench.reports.text.terminal import Output, visible

Size = Callable[[int], str]
Duration = Callable[[float], str]

COLOURS = {"ok": "green", "oom": "yellow", "invalid": "dim"} | dict.fromkeys(FAILED, "red")


class TimeLeft(ProgressColumn):
    """By the mean time of the cells that have ended here. Rich's own column looks back 30 seconds, in which no long cell ends."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        ended, at = task.completed - task.fields["before"], task.fields["last_at"]
        if ended <= 0 or task.elapsed is None or task.remaining is None:
            return Text("-:--:--")
        left = at / ended * task.remaining - (task.elapsed - at)
        return Text(str(timedelta(seconds=max(0, round(left)))))


@contextmanager
def listening(console: Output, size: Size, seconds: Duration) -> Iterator[Listener]:
    """The listener that suits the console."""
    if not console.is_terminal:
        yield PlainListener(console, size, seconds)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeLeft(),
        TextColumn("{task.fields[running]}", markup=False),
        console=console,
        transient=True,
    ) as progress:
        yield LiveListener(progress, console, size, seconds)


def ending(result: Result, size: Size, seconds: Duration) -> str:
    """How a cell ended, in a line: status, peak, time; for one that did not end well the phase and the reason."""
    memory = result.memory
    peak = memory.device_bytes if memory.device_bytes is not None else memory.allocated_bytes
    parts: list[str] = [result.status]
    if result.status != "invalid":
        parts += [f"peak {size(peak)}"] if peak is not None else []
        parts += [seconds(result.seconds["total"])] if "total" in result.seconds else []
    if result.status != "ok":
        parts += [f"in {result.phase}"] if result.phase else []
        parts += [f"{result.rule}: {result.reason}" if result.rule else result.reason or ""]
    return "  ".join(part for part in parts if part)


class PlainListener:
    """One line per cell, when it ends."""

    def __init__(self, console: Output, size: Size, seconds: Duration) -> None:
        self._console = console
        self._size = size
        self._seconds = seconds

    def started(self, name: str, done: int, total: int) -> None:
        """Nothing: a line comes when the cell ends."""

    def phase(self, name: str, spot: Spot) -> None:
        """Nothing."""

    def finished(self, result: Result) -> None:
        self.message(f"{result.id}  {result.name}: {ending(result, self._size, self._seconds)}")

    def message(self, text: str) -> None:
        self._console.tell(text)


class LiveListener:
    """Cells done and time left; below, each running cell with its phase and its peak so far; above, the cells that
    ended."""

    def __init__(self, progress: Progress, console: Output, size: Size, seconds: Duration) -> None:
        self._progress = progress
        self._console = console
        self._size = size
        self._seconds = seconds
        self._cells: TaskID | None = None
        self._running: dict[str, str] = {}
        self._peaks: dict[str, int] = {}

    def started(self, name: str, done: int, total: int) -> None:
        self._running[name] = "start"
        self._peaks[name] = 0
        if self._cells is None:
            self._cells = self._progress.add_task("cells", total=total, before=done, last_at=0.0, running="")
        self._progress.update(self._cells, completed=done)  # a cell may start anew, for another sample
        self._show()

    def phase(self, name: str, spot: Spot) -> None:
        self._peaks[name] = max(self._peaks.get(name, 0), spot.peak_bytes or 0)
        phase = spot.phase or "start"
        where = f" on {spot.where}" if spot.where else ""
        self._running[name] = (phase if spot.step is None else f"{phase}, step {spot.step}") + where
        self._show()

    def finished(self, result: Result) -> None:
        self._running.pop(result.name, None)
        colour = COLOURS.get(result.status, "white")
        self._console.tell(f"{result.name}: {ending(result, self._size, self._seconds)}", colour)
        if self._cells is not None:
            self._progress.advance(self._cells)
            task = next(one for one in self._progress.tasks if one.id == self._cells)
            self._progress.update(self._cells, last_at=task.elapsed)
        self._show()

    def message(self, text: str) -> None:
        self._console.tell(text)

    def _show(self) -> None:
        if self._cells is None:
            return
        lines = []
        for name, phase in self._running.items():
            peak = f", peak {self._size(self._peaks[name])}" if self._peaks.get(name) else ""
            lines.append(visible(f"{name}: {phase}{peak}"))
        self._progress.update(self._cells, running="\n".join(lines))
