"""Traces tensor storages: the bytes that are live at each moment of a step, and their peak in each phase.

A dispatch mode sees every operator's tensors; a storage counts from the moment it is first seen until it is gone. So the trace
holds what tensors hold, on any device, simulated ones too, and nothing that an operator allocates and frees inside itself. It costs
some 100 microseconds per operator: trace a step of its own, never a timed one.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vrambench.bench.measure.collector import collector_held


class StorageTrace(TorchDispatchMode):
    """Counts storages on devices of type `device_type` while it is entered.

    with StorageTrace("cpu") as trace:
        trace.begin_phase("learn")
        ...
    trace.peak_bytes, trace.phase_peaks
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._device_type = device_type
        self._sizes: dict[int, int] = {}
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
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((result, args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != self._device_type:
            return
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            return  # sparse and opaque tensors have no storage
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known is None:
            weakref.finalize(storage, self._gone, key).atexit = False
        elif known == size:
            return
        self._sizes[key] = size
        self.live_bytes += size - (known or 0)
        self._raise_peaks()

    def _gone(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key, 0)

    def _raise_peaks(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        if self.phase is not None:
            self.phase_peaks[self.phase] = max(self.phase_peaks.get(self.phase, 0), self.live_bytes)


def existing_tensors() -> Iterator[torch.Tensor]:
    """Every tensor that Python can reach now, and their gradients (held by C++ alone)."""
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
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
