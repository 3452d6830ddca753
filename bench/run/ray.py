"""Jobs on a Ray cluster: each is a task that asks for a whole GPU, or for cores, and runs on its node as it would on that machine.

    with connected("ray://head:10001"):
        executor = RayExecutor("cuda:0", Share(gpus=1), kinds=("H100", "L4"))

Ray repeats nothing (`max_retries=0`): a job whose node or worker has ended is lost, which the session hears, and whatever else ends
a job is its result. The driver alone stores.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vrambench.bench.results.records import Sample
from vrambench.bench.run import node
from vrambench.bench.run.executor import Ended, NowhereLeft, Order, Spot, modules_of
from vrambench.bench.run.ray_cluster import LOOK_SECONDS, PATIENCE_SECONDS, Head, Share, last_line, living
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError

KILL_SECONDS = 20.0
"""How long jobs may take to end, with what they started, before their workers are ended."""
TRIES = 3
"""How often Ray itself repeats what has no effect but its answer."""


def _measure(order: Order, threads: int, here: Path, modules: tuple[str, ...], board: Any, number: int) -> node.Came:
    where = ray.get_runtime_context().get_node_id()

    def tell(spot: Spot) -> None:
        board.say.remote(number, spot._replace(where=where))

    tell(Spot("start"))
    return node.measure(order, threads, here, tell, modules)


# A worker that stays has its server of jobs already; Ray would end those of tasks with a GPU after each.
_MEASURE = ray.remote(max_retries=0, max_calls=0)(_measure)
_ABOUT = ray.remote(max_retries=TRIES, max_calls=0)(node.environment)
_PREPARE = ray.remote(max_retries=0, max_calls=0, num_cpus=0)(node.prepare)
_BOARD = ray.remote(num_cpus=0, max_restarts=-1)(node.Board)


class RayJob:
    """A job somewhere in the cluster, or waiting for a place."""

    def __init__(self, order: Order, kind: str | None, number: int, reference: Any) -> None:
        self.order = order
        self.kind = kind
        self.number = number
        self.reference = reference
        self.spot = Spot()
        self.ended: Ended | None = None


class RayExecutor:
    """Runs jobs on `device` of whichever node has room, each with its `share`; `kinds` of GPUs, where that matters. `most` jobs at
    a time (None: as many as there are places). A cluster that has had no place for `patience` seconds, and runs no job, or whose
    head has gone for as long, is given up."""

    most_lost = 5

    def __init__(
        self,
        device: str,
        share: Share,
        kinds: Sequence[str] = (),
        *,
        most: int | None = None,
        patience: float | None = None,
    ) -> None:
        self._device = device
        self._share = share
        self._kinds: tuple[str | None, ...] = tuple(kinds) or (None,)
        self._most = most
        self._patience = PATIENCE_SECONDS if patience is None else patience
        self._head = Head(self._patience)
        self._here = Path.cwd()
        self._modules: tuple[str, ...] = ()
        self._jobs: list[RayJob] = []
        self._started = 0
        self._wanted: set[str | None] = set()
        self._described: dict[str | None, dict[str, Any]] = {}
        self._names: dict[str, str] = {}
        self._places: dict[str | None, int] = {}
        self._last_look = -float("inf")
        self._last_place = time.monotonic()
        self._board: Any = None
        self._news: Any = None

    @property
    def places(self) -> int:
        """How many jobs the cluster holds at once."""
        self._look()
        return sum(self._places.values())

    def environment(self, on: str | None = None) -> dict[str, Any]:
        """A node with a place is asked. Of several kinds together there is no one GPU: `gpus` has each."""
        if on is None and len(self._kinds) > 1:
            each = {kind: self.environment(kind) for kind in self._kinds if kind}
            first = next(iter(each.values()))
            gpus = {kind: about["gpu"] for kind, about in each.items()}
            return {**first, "key": "-".join(map(str.lower, each)), "gpu": None, "gpus": gpus}
        kind = self._kind(on)
        if kind not in self._described:
            reference = _ABOUT.options(**self._share.options(kind)).remote(self._device)
            self._wanted.add(kind)
            while not ray.wait([reference], timeout=LOOK_SECONDS)[0]:
                self._check_places()
            try:
                self._described[kind] = ray.get(reference)
            except RayError as error:
                raise ConfigurationError(
                    f"--on ray: a node cannot run jobs: {last_line(error)}; it needs the same vrambench, with the same "
                    "packages, as this machine",
                    field="on",
                ) from None
        return self._described[kind]

    def expect(self, cells: Sequence[Cell]) -> None:
        self._modules = modules_of(cells)

    def prepare(self, axis: str, name: str, log: Path) -> str | None:
        """On every node that jobs may run on."""
        there = [one for one in living() if any(self._share.places(one, kind) for kind in self._kinds)]
        there_only = [NodeAffinitySchedulingStrategy(one["NodeID"], soft=False) for one in there]
        references = [
            _PREPARE.options(scheduling_strategy=one).remote(
                self._device, self._share.cpus, self._here, self._modules, axis, name
            )
            for one in there_only
        ]
        reasons = []
        for reference in references:
            with contextlib.suppress(NodeDiedError, WorkerCrashedError):  # a node that has gone runs no cell either
                reason, printed = ray.get(reference)
                _append(log, printed)
                reasons.append(reason)
        return next(filter(None, reasons), None)

    def has_room(self, on: str | None) -> bool:
        kind = self._kind(on)
        self._wanted.add(kind)
        self._look()
        taken = Counter(job.kind for job in self._jobs)
        room = taken[kind] < self._places.get(kind, 0)
        return room and (self._most is None or len(self._jobs) < self._most)

    def start(self, order: Order) -> RayJob:
        if self._board is None:
            self._board = _BOARD.remote()
        self._started += 1
        kind = self._kind(order.on)
        reference = _MEASURE.options(**self._share.options(kind)).remote(
            replace(order, device=self._device), self._share.cpus, self._here, self._modules, self._board, self._started
        )
        job = RayJob(order, kind, self._started, reference)
        self._jobs.append(job)
        return job

    def wait(self, seconds: float) -> None:
        self._hear(seconds)
        if self._jobs:
            done, _ = ray.wait([job.reference for job in self._jobs], num_returns=len(self._jobs), timeout=0)
            for job in [job for job in self._jobs if job.reference in done]:
                job.ended = _ended(job)
                self._jobs.remove(job)
        self._check_places()

    def kill(self) -> None:
        references = [job.reference for job in self._jobs]
        self._jobs.clear()
        if self._head.gone:  # nobody passes it on; the nodes end what they run for a driver that has gone
            return
        for force, patience in ((False, KILL_SECONDS), (True, LOOK_SECONDS)):
            for reference in references:
                with contextlib.suppress(RayError, ConnectionError):
                    ray.cancel(reference, force=force)
            if references:
                with contextlib.suppress(RayError, ConnectionError):
                    _, references = ray.wait(references, num_returns=len(references), timeout=patience)

    def _kind(self, on: str | None) -> str | None:
        return on if on is not None or len(self._kinds) > 1 else self._kinds[0]

    def _hear(self, seconds: float) -> None:
        """Waits until a job has ended or somebody says where one is, and takes that."""
        if self._board is not None and self._news is None:
            self._news = self._board.news.remote()
        references = [*(job.reference for job in self._jobs), *([self._news] if self._news is not None else [])]
        if not references:
            time.sleep(seconds)
            return
        ready, _ = ray.wait(references, num_returns=1, timeout=seconds)
        if self._news is None or self._news not in ready:
            return
        try:
            spots = ray.get(self._news)
        except RayError:  # its node has ended: Ray starts another, which knows nothing yet
            time.sleep(min(seconds, LOOK_SECONDS))
            spots = {}
        self._news = None
        for job in self._jobs:
            if job.number in spots:
                spot = spots[job.number]
                job.spot = spot._replace(where=self._names.get(spot.where, spot.where))

    def _look(self) -> None:
        """Brings up to date which places there are. Raises NowhereLeft where the cluster's head has gone."""
        if time.monotonic() < self._last_look + LOOK_SECONDS:
            return
        alive = self._head.nodes()
        self._last_look = time.monotonic()
        if alive is None:
            return
        self._places = {kind: sum(self._share.places(one, kind) for one in alive) for kind in self._kinds}
        names = Counter(one["NodeName"] for one in alive)
        self._names |= {
            one["NodeID"]: one["NodeName"] + (f" ({one['NodeID'][:6]})" if names[one["NodeName"]] > 1 else "")
            for one in alive
        }

    def _check_places(self) -> None:
        """Raises NowhereLeft where nothing runs, and nothing that waits has had a place for too long."""
        self._look()
        wanted = self._wanted | {job.kind for job in self._jobs}
        self._wanted = set()
        runs = any(job.spot.where for job in self._jobs)
        if runs or not wanted or any(self._places.get(kind) for kind in wanted):
            self._last_place = time.monotonic()
        elif time.monotonic() > self._last_place + self._patience:
            of_kind = f" of kind {' or '.join(sorted(filter(None, wanted)))}" if any(wanted) else ""
            raise NowhereLeft(f"no node of the cluster is left that has {self._share}{of_kind}")


def _ended(job: RayJob) -> Ended:
    """How a job ended whose task is done. What is to be in files is put there."""
    try:
        came: node.Came = ray.get(job.reference)
    except OutOfMemoryError:  # Ray's own killer, which comes before the system's
        return Ended(spot=job.spot, exit_code=-signal.SIGKILL, out_of_host_memory=True)
    except RayTaskError as error:
        return Ended(final=Sample(status="error", phase="start", reason=f"its node failed: {last_line(error)}"))
    except NodeDiedError:
        return Ended(spot=job.spot, exit_code=None, lost="the node that it ran on")
    except RayError:
        return Ended(spot=job.spot, exit_code=None, lost="the worker that it ran in")
    _append(job.order.log, came.log)
    if came.recording is not None and job.order.recording is not None:
        job.order.recording.parent.mkdir(exist_ok=True)
        job.order.recording.write_bytes(came.recording)
    return came.ended


def _append(log: Path, printed: bytes) -> None:
    with contextlib.suppress(OSError), log.open("ab") as file:  # a full disk is told where the result is stored
        file.write(printed)
