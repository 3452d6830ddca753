"""Tensor storages: which are alive, the bytes that are live at each moment of a step, and their peak in each phase.

A dispatch mode sees every operator's tensors. A storage counts from the moment it is first seen until it is gone. So this holds
what tensors hold, on any device, simulated ones too, and nothing that an operator allocates and frees inside itself.

`Storages` is the counter that a CPU job's `StorageTrace` and the predictor's tracer (predict/tracing/tracer.py) share. A
`StorageTrace` costs some 100 microseconds per operator: trace a step of its own, never a timed one.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from operator import attrgetter
from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vrambench.bench.measure.collector import collector_held

NESTED = (list, tuple)
"""Not `list | tuple`, which is made anew at each of an operator's arguments and asked in twice the time."""


class Storage(weakref.ref[torch.UntypedStorage]):
    """A storage that is alive. `key`: its address; `nbytes`: its size when it was last seen; `ident`: the counter's user's own."""

    __slots__ = ("ident", "key", "nbytes")
    key: int
    nbytes: int
    ident: int


class Storages:
    """The storages that are alive on devices of type `device_type`. `ended` is told of each that is gone or was resized."""

    def __init__(self, device_type: str, ended: Callable[[Storage], None]) -> None:
        self.counts: Callable[[torch.Tensor], bool] = attrgetter(f"is_{device_type}")
        """Whether a tensor is on such a device."""
        self._live: dict[int, Storage] = {}
        self._ended = ended

    def of(self, tensor: torch.Tensor) -> Storage | None:
        """`tensor`'s storage, if it was added."""
        return self.at(tensor.untyped_storage()._cdata)

    def at(self, key: int) -> Storage | None:
        """The storage of this address, if it was added."""
        return self._live.get(key)

    def appeared(self, tensor: torch.Tensor) -> Storage | None:
        """`tensor`'s storage where it is new or of another size than before, to be added; None for all others."""
        if not self.counts(tensor):
            return None
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            return None  # sparse and opaque tensors have no storage
        key, nbytes = storage._cdata, storage.nbytes()
        known = self._live.get(key)
        if known is not None:
            if known.nbytes == nbytes:
                return None
            self._ended(known)
        found = Storage(storage, self._gone)
        found.key, found.nbytes = key, nbytes
        return found

    def add(self, storage: Storage) -> None:
        """From here on, `storage` is alive. In a resized one's case it takes the place of what it was."""
        self._live[storage.key] = storage

    def forget(self) -> None:
        """Nobody is told any more of what goes, and nobody is held here who could be told."""
        self._live.clear()
        self._ended = lambda storage: None

    def _gone(self, storage: Storage) -> None:
        if self._live.get(storage.key) is storage:
            del self._live[storage.key]
            self._ended(storage)


class StorageTrace(TorchDispatchMode):
    """Counts storages on devices of type `device_type` while it is entered.

    with StorageTrace("cpu") as trace:
        trace.begin_phase("learn")
        ...
    trace.peak_bytes, trace.phase_peaks
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and asking costs as much as seeing

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._storages = Storages(device_type, self._ended)
        self._held = ExitStack()
        self.phase: str | None = None
        self.live_bytes = 0
        self.peak_bytes = 0
        self.phase_peaks: dict[str, int] = {}

    def __enter__(self) -> StorageTrace:
        self._held.enter_context(collector_held())
        for tensor in existing_tensors():
            self._see(tensor)
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._held.close()

    def begin_phase(self, name: str) -> None:
        """From here on, peaks count for `name` (the maximum over all its stretches)."""
        self.phase = name
        self._raise_peaks()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if made_of_others(types):
            return NotImplemented  # a tensor made of others: its own operators come here next
        kwargs = kwargs or {}
        result = self._call(func, args, kwargs)
        for tensor in tensors_of((result, args, tuple(kwargs.values()))):
            self._see(tensor)
        return result

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _see(self, tensor: torch.Tensor) -> None:
        storage = self._storages.appeared(tensor)
        if storage is not None:
            self._storages.add(storage)
            self.live_bytes += storage.nbytes
            self._raise_peaks()

    def _ended(self, storage: Storage) -> None:
        self.live_bytes -= storage.nbytes

    def _raise_peaks(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        if self.phase is not None:
            self.phase_peaks[self.phase] = max(self.phase_peaks.get(self.phase, 0), self.live_bytes)


def tensors_of(values: Iterable[Any]) -> list[torch.Tensor]:
    """Every tensor of an operator's arguments or results: they are nested in lists at most."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, NESTED) and value:
            found += tensors_of(value)
    return found


def made_of_others(types: Iterable[type]) -> bool:
    """Whether tensors of one of these types hold nothing themselves, but other tensors (torchao's state)."""
    return any(hasattr(kind, "__tensor_flatten__") for kind in types)


def existing_tensors() -> Iterator[torch.Tensor]:
    """Every tensor that Python can reach now, and their gradients (held by C++ alone); of those made of others, the others."""
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and not made_of_others((type(thing),)):
            yield thing
            if thing.is_leaf and thing.grad is not None:
                yield thing.grad


def storage_bytes(tensors: Iterable[torch.Tensor], device_type: str, counted: set[int]) -> int:
    """Bytes of the tensors' storages on devices of type `device_type`, each once.

    `counted` holds the storages that count no more, and is added to.
    """
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if tensor.device.type == device_type and storage._cdata not in counted:
            counted.add(storage._cdata)
            total += storage.nbytes()
    return total
