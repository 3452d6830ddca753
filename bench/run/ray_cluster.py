"""A Ray cluster: connecting to it, what its nodes have, and predicting on them. This file and `ray.py` alone import ray.

with connected("ray://head:10001"):
    kinds = chosen_kinds(["H100", "L4"])
    outcomes = predict_all(cells, pool=predicting)
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError, RayTaskError

from vrambench.bench.allocator.settings import ENVIRONMENT
from vrambench.bench.predict.cache import Cache
from vrambench.bench.results.comparable import ALLOCATION
from vrambench.bench.results.forecast import Unmodelled
from vrambench.bench.run import node
from vrambench.bench.run.executor import NowhereLeft
from vrambench.methods.errors import ConfigurationError, UnknownValue

LOOK_SECONDS = 1.0
"""How often the cluster is asked for its nodes at most."""
PATIENCE_SECONDS = 30.0
"""How long a cluster may have no node that a job could run on."""
KNOCK_SECONDS = 10.0
"""How long a cluster may take to open a connection."""
HEAD_SECONDS = 2.0
"""The same of its head later on, which is asked again and again."""
TRIES = 3
"""How often Ray repeats a prediction whose worker has ended."""
KIND = "accelerator_type:"
"""What Ray puts before a GPU's kind in the name of its resource."""


@contextlib.contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """This process is a driver of the cluster at `address` (`ray://HOST:PORT`; None: the one that RAY_ADDRESS names, else the one
    that runs on this machine). Variables under which the same job reserves other amounts hold on its nodes too. Raises
    ConfigurationError where there is none."""
    variables = {name: os.environ[name] for name in ALLOCATION if name in os.environ}
    before = signal.getsignal(signal.SIGTERM)
    named = address or os.environ.get("RAY_ADDRESS")
    try:
        if named:
            _knock(named)
        ray.init(
            address or "auto",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": variables} if variables else None,
        )
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or last_line(error)
        told = (
            f"--on ray: no cluster answers at {named}: {why}"
            if named
            else "--on ray: no Ray cluster runs on this machine; `ray start --head` starts one, and ray://HOST:10001 names another"
        )
        raise ConfigurationError(told, field="on") from None
    finally:
        if signal.getsignal(signal.SIGTERM) is not before:  # Ray's own would leave without a word
            signal.signal(signal.SIGTERM, before)
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str, seconds: float = KNOCK_SECONDS) -> None:
    """Raises OSError or ValueError where nobody listens, for whom Ray would wait for minutes."""
    where = urlsplit(address if "//" in address else f"//{address}")
    if where.hostname and where.port:
        with socket.create_connection((where.hostname, where.port), timeout=seconds):
            pass


def living() -> list[dict[str, Any]]:
    """The nodes that are alive, as Ray describes them."""
    return [one for one in ray.nodes() if one["Alive"]]


class Head:
    """The cluster's head, which knows its nodes. Nothing new starts without it, and a minute after it has gone Ray ends this
    process without a word of ours: who has no answer for `patience` seconds gives the cluster up before. `gone`: it has been."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._answered = time.monotonic()
        self._where: str | None = None
        self.gone = False

    def nodes(self) -> list[dict[str, Any]] | None:
        """Those that are alive; None while the head does not answer. Raises NowhereLeft."""
        try:
            if self._where is None:
                # A driver outside the cluster talks to the head alone, which then raises ConnectionError.
                inside = not ray.util.client.ray.is_connected()
                self._where = ray.get_runtime_context().gcs_address if inside else ""
            if self._where:
                _knock(self._where, HEAD_SECONDS)  # ray.nodes() would wait for it
            alive = living()
        except OSError:
            if time.monotonic() > self._answered + self._patience:
                self.gone = True
                raise NowhereLeft("the cluster's head does not answer; start a cluster again") from None
            return None
        self._answered = time.monotonic()
        return alive


def kinds_of_gpus() -> tuple[str, ...]:
    """The kinds of GPUs in the cluster, as Ray calls them; empty where no node has one. One that Ray cannot name is ''."""
    kinds: set[str] = set()
    for one in living():
        if one["Resources"].get("GPU", 0) >= 1:
            kinds |= _kinds(one) or {""}
    return tuple(sorted(kinds))


def chosen_kinds(named: Sequence[str]) -> tuple[str, ...]:
    """The kinds that a run measures on: those `named`, else the only one there is. Raises ConfigurationError."""
    there = kinds_of_gpus()
    if not there:
        raise ConfigurationError("--on ray: no node of the cluster has a GPU; --device cpu does without", field="on")
    for one in named:
        if one not in there:
            raise UnknownValue("--on-gpus", one, there)
    if not named and len(there) > 1:
        raise ConfigurationError(
            f"--on ray: the cluster has GPUs of several kinds, whose results differ; name those to measure on, as "
            f"--on-gpus {','.join(filter(None, there))}",
            field="on",
        )
    return tuple(named) or tuple(filter(None, there))


def _kinds(described: Mapping[str, Any]) -> set[str]:
    return {name.removeprefix(KIND) for name in described["Resources"] if name.startswith(KIND)}


@dataclass(frozen=True)
class Share:
    """What each job asks for: cores, and whole GPUs."""

    cpus: int = 1
    gpus: int = 0

    def places(self, described: Mapping[str, Any], kind: str | None) -> int:
        """How many jobs a node holds at once."""
        has = described["Resources"]
        if kind is not None and f"{KIND}{kind}" not in has:
            return 0
        places = int(has.get("CPU", 0)) // self.cpus
        return min(places, int(has.get("GPU", 0)) // self.gpus) if self.gpus else places

    def options(self, kind: str | None) -> dict[str, Any]:
        """As Ray's own options of a task."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "accelerator_type": kind}

    def __str__(self) -> str:
        parts = [f"{self.cpus} core{'s'[: self.cpus > 1]}", *(["a GPU"] if self.gpus else [])]
        return " and ".join(parts)


_PREDICT = ray.remote(max_retries=TRIES, max_calls=0)(node.predict)


class PredictingPool(Executor):
    """Calls functions of `predict.many`, a core of the cluster for each. What has no node to run on for `patience` seconds, or no
    head to be sent there, fails with NowhereLeft, what ended its worker each time with BrokenExecutor."""

    def __init__(self, how: node.Predicting, patience: float = PATIENCE_SECONDS) -> None:
        self._how = how
        self._patience = patience
        self._head = Head(patience)
        self._waiting: dict[Future[Any], Any] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        assert not named
        answer: Future[Any] = Future()
        reference = _PREDICT.remote(self._how, function, arguments)
        self._waiting[answer] = reference
        reference.future().add_done_callback(lambda done: self._pass_on(done, answer))
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends what is under way."""
        self._closed.set()
        for answer, reference in list(self._waiting.items()):
            if not (answer.done() or self._head.gone):
                with contextlib.suppress(RayError, ConnectionError):
                    ray.cancel(reference, force=True)

    def _pass_on(self, done: Future[Any], answer: Future[Any]) -> None:
        self._waiting.pop(answer, None)
        error = done.exception()
        with contextlib.suppress(Exception):  # it was given up before
            if error is None:
                answer.set_result(done.result())
            elif isinstance(error, RayTaskError):  # a prediction raises nothing: the node lacks something
                told = (
                    f"--on ray: a node cannot predict: {last_line(error)}; it needs the same vrambench as this machine"
                )
                answer.set_exception(ConfigurationError(told, field="on"))
            else:
                answer.set_exception(BrokenExecutor(last_line(error)))

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._closed.wait(LOOK_SECONDS):
            try:
                alive = self._head.nodes()
                if alive is None or any(Share().places(one, None) for one in alive):
                    last = time.monotonic()
                elif time.monotonic() > last + self._patience:
                    raise NowhereLeft(f"no node of the cluster is left that has {Share()}")
            except NowhereLeft as error:
                for answer in list(self._waiting):
                    answer.set_exception(error)
                return


def predicting(
    processes: int, alloc_conf: str | None, left_out: tuple[Unmodelled, ...], cache: Cache | None
) -> PredictingPool:
    """A pool for `predict_all`, of as many processes as the cluster has cores. Its nodes look into caches of their own."""
    said = next((os.environ[name] for name in ENVIRONMENT if name in os.environ), "")
    return PredictingPool(node.Predicting(said if alloc_conf is None else alloc_conf, left_out, cache is not None))


def last_line(error: BaseException) -> str:
    """What an error of Ray's says in the end: the cause, after the stack where it was."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
