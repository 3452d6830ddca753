"""Jobs on this machine, each a process of its own, forked from a server that has imported what they share.

A job says where it is on a board in shared memory, and what it measured through a pipe. The parent waits for neither: a job
that is silent, or says what is no message, is ended when its time is up, with every process that it started.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vrambench.bench.machine.environment import describe_environment, usable_threads
from vrambench.bench.measure.oom import oom_kills
from vrambench.bench.processes import kill
from vrambench.bench.run import server
from vrambench.bench.run.executor import Ended, Order, Spot, modules_of
from vrambench.bench.run.logs import last_line, trim
from vrambench.bench.run.messages import Inbox
from vrambench.bench.run.worker import BOARD_BYTES, prepare, read_board, work
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError

PREPARE_SECONDS = 1800.0
"""How long what is done once, before anything is timed, may take."""
LAST_WORDS_SECONDS = 20.0
"""How long a job may take to end after it has sent its result."""
LONGEST_GAP_SECONDS = 5.0
"""A parent that has not looked for longer was stopped, or the machine slept."""


class LocalExecutor:
    """Runs jobs on `device`, `jobs` at a time sharing the CPU's threads; `threads` for each, where that is said. `clock` tells the
    seconds in which their time runs out (None: those in which this process was awake). Raises ConfigurationError where they would
    share one GPU's memory."""

    most_lost = 2

    def __init__(
        self, device: str, jobs: int = 1, *, threads: int | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        kind = device.split(":")[0]
        if kind != "cpu" and jobs != 1:
            raise ConfigurationError(
                f"jobs: {jobs} jobs would share one GPU's memory; on {device} it can only be 1", field="jobs"
            )
        self._device = device
        self._server = server.Server(device)
        self._threads = (threads or _threads_of_each(jobs)) if device == "cpu" else 0
        self._most = jobs
        self._clock = clock or AwakeClock()
        self._jobs: list[LocalJob] = []

    def environment(self, on: str | None = None) -> dict[str, Any]:
        return describe_environment(self._device)

    def expect(self, cells: Sequence[Cell]) -> None:
        self.hold(modules_of(cells))

    def hold(self, modules: Sequence[str]) -> None:
        """Jobs are forked from what has imported these, too."""
        self._server.hold(modules)

    def prepare(self, axis: str, name: str, log: Path) -> str | None:
        process = self._server.fork(prepare, (axis, name), str(log))
        try:
            process.join(PREPARE_SECONDS)
            late = process.is_alive()
        finally:
            if process.is_alive():
                kill(process)
            self._end_strays()
        if late:
            return f"not ready after {PREPARE_SECONDS:,.4g} s; its last words: {last_line(log)}"
        return None if process.exitcode == 0 else last_line(log)

    def has_room(self, on: str | None) -> bool:
        return len(self._jobs) < self._most

    def start(self, order: Order) -> LocalJob:
        ours, theirs = server.CONTEXT.Pipe(duplex=False)
        board = server.CONTEXT.RawArray("c", BOARD_BYTES)
        kills = oom_kills()
        try:
            process = self._server.fork(work, order, self._threads, board, theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        job = LocalJob(order, process, ours, board, kills, self._clock, lambda: self._server.running)
        self._jobs.append(job)
        return job

    def wait(self, seconds: float) -> None:
        pipes = [job.pipe for job in self._jobs if not job.inbox.closed]
        wait([*(job.process.sentinel for job in self._jobs), *pipes], timeout=seconds)
        for job in list(self._jobs):
            if job.look():
                self._jobs.remove(job)
                self._end_strays()
                job.close()

    def kill(self) -> None:
        for job in self._jobs:
            kill(job.process)
        self._jobs.clear()
        self._end_strays()

    def _end_strays(self) -> None:
        """What ended jobs have left running would hold memory while the next one is measured."""
        self._server.end_all_but({job.process.pid for job in self._jobs})


def _threads_of_each(jobs: int) -> int:
    """A job's share of the processors, or OMP_NUM_THREADS where that asks for fewer."""
    share = max(1, usable_threads() // jobs)
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # for each level of nesting one
    return min(share, int(asked) or share) if asked.isdecimal() else share


class LocalJob:
    """A job's process. `look` says whether it has ended; `close` makes that known."""

    def __init__(
        self,
        order: Order,
        process: Any,
        pipe: Connection,
        board: Any,
        kills: int,
        clock: Callable[[], float],
        server_runs: Callable[[], bool],
    ) -> None:
        self.process = process
        self.pipe = pipe
        self.inbox = Inbox(pipe.fileno())
        self.ended: Ended | None = None
        self._order = order
        self._board = board
        self._kills = kills
        self._clock = clock
        self._server_runs = server_runs
        self._deadline = clock() + order.timeout_seconds
        self._said_all = False
        self._timed_out = False

    @property
    def spot(self) -> Spot:
        return read_board(self._board)

    def look(self) -> bool:
        """Takes what it has sent, and ends it if its time is up."""
        gone = not self.process.is_alive()
        self.inbox.read()
        trim(self._order.log)
        now = self._clock()
        if self.inbox.final is not None and not self._said_all:
            self._said_all = True
            self._deadline = min(self._deadline, now + LAST_WORDS_SECONDS)
        if gone or now <= self._deadline:
            return gone
        self._timed_out = self.inbox.final is None
        kill(self.process)
        self.inbox.read()
        return True  # one that hangs in a driver and cannot be ended is not waited for

    def close(self) -> None:
        """Tells how it ended."""
        code = self.process.exitcode
        lost = code == server.LOST and not self._server_runs()
        if lost:  # nobody has adopted what it started
            kill(self.process)
        self.ended = Ended(
            final=self.inbox.final,
            progress=tuple(self.inbox.progress),
            spot=self.spot,
            exit_code=code,
            timed_out_seconds=self._order.timeout_seconds if self._timed_out else None,
            out_of_host_memory=oom_kills() > self._kills,
            garbled=self.inbox.garbled,
            last_words=last_line(self._order.log),
            lost="the server of its process" if lost else None,
        )
        self.pipe.close()
        if code is not None:
            self.process.close()


class AwakeClock:
    """Seconds in which this process was looking: what passes between two looks that lie far apart does not count, so that a
    job whose parent was stopped is not ended for it."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last = now()
        self._slept = 0.0

    def __call__(self) -> float:
        now = self._now()
        gap, self._last = now - self._last, now
        if gap > LONGEST_GAP_SECONDS:
            self._slept += gap
        return now - self._slept
