"""What a worker process on a node of a cluster does for a run: one cell after another, each as on the node's own machine, and
predictions. What it gives back is data; the run's folder is the driver's.

    came = measure(order, 1, Path.cwd(), tell=print)
    came.ended, came.log

Nothing here needs torch, which the processes of cells have, or knows what the cluster is made of.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vrambench.bench.machine.environment import describe_environment
from vrambench.bench.results.forecast import Unmodelled
from vrambench.bench.results.records import Sample
from vrambench.bench.run.executor import Ended, Order, Spot
from vrambench.bench.run.local import LocalExecutor

TELL_SECONDS = 0.25
"""How often a cell's place is told at most."""
NEWS_SECONDS = 0.1
"""How long news are gathered before they are handed out."""
NOT_SHARED = (
    "cells that save for others, or start from what was saved, need the run's folder on every node, and it is not on this "
    "one; name one on shared storage with --out"
)


@dataclass(frozen=True)
class Came:
    """What came of an order: how the job ended, what it printed, and the recording of its allocator where one was asked for."""

    ended: Ended
    log: bytes = b""
    recording: bytes | None = None


@dataclass(frozen=True)
class Predicting:
    """How a worker predicts: see Predictor. `cached`: what was predicted on this node before is looked up, and kept."""

    alloc_conf: str | None
    left_out: tuple[Unmodelled, ...]
    cached: bool


class Board:
    """Where jobs are, by the numbers that the driver gave them: workers say it, the driver asks for news."""

    def __init__(self) -> None:
        self._spots: dict[int, Spot] = {}
        self._changed = asyncio.Event()

    async def say(self, number: int, spot: Spot) -> None:
        self._spots[number] = spot
        self._changed.set()

    async def news(self) -> dict[int, Spot]:
        """What was said since the last time, as soon as that is something."""
        await self._changed.wait()
        await asyncio.sleep(NEWS_SECONDS)
        self._changed.clear()
        spots, self._spots = self._spots, {}
        return spots


def measure(
    order: Order, threads: int, here: Path, tell: Callable[[Spot], object], modules: tuple[str, ...] = ()
) -> Came:
    """Takes a sample, in a process of its own; `threads` on the CPU, `here` the driver's current folder, in which modules of the
    user's may be, `modules` what the run's jobs import. `order.log` and `order.recording` are the driver's: what is to be in them
    comes back."""
    if order.saved is not None and not (order.saved.parent / "run.json").exists():
        return Came(Ended(final=Sample(status="error", phase="start", reason=NOT_SHARED)))
    executor = _executor(order.device, threads, here, modules)
    with tempfile.TemporaryDirectory(prefix="vrambench-") as name:
        log, recording = Path(name) / "log", Path(name) / "recordings" / "recording"
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") if order.device != "cpu" else None
        job = executor.start(replace(order, log=log, recording=recording if order.recording else None, visible=visible))
        try:
            told, at = job.spot, 0.0
            while job.ended is None:
                executor.wait(TELL_SECONDS)
                if job.spot != told and time.monotonic() >= at + TELL_SECONDS:
                    told, at = job.spot, time.monotonic()
                    tell(told)
        finally:
            executor.kill()
        ended = replace(job.ended, environment=environment(order.device))
        return Came(ended, _read(log) or b"", _read(recording))


def prepare(
    device: str, threads: int, here: Path, modules: tuple[str, ...], axis: str, name: str
) -> tuple[str | None, bytes]:
    """Does what an axis value wants done once on this node: None, or why it failed; and what was printed."""
    with tempfile.TemporaryDirectory(prefix="vrambench-") as folder:
        log = Path(folder) / "log"
        reason = _executor(device, threads, here, modules).prepare(axis, name, log)
        return reason, _read(log) or b""


def environment(device: str) -> dict[str, Any]:
    """What jobs run on that are started from here now."""
    return dict(_described(device, os.environ.get("CUDA_VISIBLE_DEVICES")))


def predict(how: Predicting, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What `function` of `predict.many` gives in a process that predicts."""
    _begin(how)
    return function(*arguments)


@functools.cache
def _executor(device: str, threads: int, here: Path, modules: tuple[str, ...]) -> LocalExecutor:
    """The process that jobs are forked from stays from one cell to the next, in the folder where it was started."""
    with contextlib.suppress(OSError):  # which need not be on this node
        os.chdir(here)
    executor = LocalExecutor(device, threads=threads)
    executor.hold(modules)
    return executor


@functools.cache
def _described(device: str, visible: str | None) -> Mapping[str, Any]:
    """With several GPUs torch has to be asked, in a process of its own."""
    return describe_environment(device)


@functools.lru_cache(maxsize=1)
def _begin(how: Predicting) -> None:
    from vrambench.bench.predict.cache import Cache
    from vrambench.bench.predict.many import begin

    begin(how.alloc_conf, how.left_out, Cache.usual() if how.cached else None)


def _read(file: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        return file.read_bytes()
    return None
