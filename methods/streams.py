"""A second stream beside the device's work, for copies to the host and back: what CUDA, the CPU and the simulated device do
differently for activation offloading.

On the CPU, host and device are one: a copy is a copy, and nothing runs beside anything. On the simulated device nothing is
computed, and a tracer is told what a caching allocator must know: what is allocated on the second stream (COPYING), what of that
the work uses beyond what it waits for (USED_BY_WORK), when the host has waited for both (SYNCHRONIZES), and what the host holds
(ON_HOST).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

from vrambench.methods.device import Device, memory_named

COPYING = "Streams.copying"
USED_BY_WORK = "Streams.used_by_work"
"""With the storage's `_cdata`."""
SYNCHRONIZES = "Streams.synchronize"
ON_HOST = "Streams.on_host"
"""With the bytes that are taken, negative where they are given back."""


class Stream(Protocol):
    """What is used of torch.cuda.Stream."""

    def wait_event(self, event: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def record_event(self) -> Any: ...

    def synchronize(self) -> None: ...


class NoStream:
    """Where all is done in order, there is nothing to wait for."""

    def wait_event(self, event: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def record_event(self) -> Any:
        return None

    def synchronize(self) -> None:
        pass


@dataclass(frozen=True)
class HostShape:
    """On the simulated device: a tensor in page-locked host memory, without the memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def held_bytes(self) -> int:
        return page_locked_bytes(math.prod(self.shape) * self.dtype.itemsize)


def page_locked_bytes(nbytes: int) -> int:
    """What page-locked memory for `nbytes` takes: torch's host allocator rounds it up to a power of two (CachingHostAllocatorImpl::
    allocate), so up to twice what was asked for."""
    return 1 << (nbytes - 1).bit_length()


OnHost: TypeAlias = torch.Tensor | HostShape
"""A contiguous tensor on the host."""


class Streams:
    """The CPU's. `work`: the stream of everything else; `copies`: the second one."""

    pinned = False

    def __init__(self, device: Device, host: torch.device) -> None:
        self._device = device.torch
        self._host = host
        self.work: Stream = NoStream()
        self.copies: Stream = NoStream()

    def copying(self) -> AbstractContextManager[Any]:
        """What is done inside runs on `copies`, and what is allocated there is that stream's."""
        return nullcontext()

    def used_by_work(self, tensor: torch.Tensor) -> None:
        """`tensor`, which is of `copies`, is used on `work`, nobody knows for how long: once it is freed, its memory waits for
        `work` to come as far (Tensor.record_stream)."""

    def synchronize(self) -> None:
        """The host waits for both."""
        self.work.synchronize()
        self.copies.synchronize()

    def empty_on_host(self, shape: tuple[int, ...], dtype: torch.dtype) -> OnHost:
        return torch.empty(shape, dtype=dtype, device=self._host, pin_memory=self.pinned)

    def to_host(self, tensor: torch.Tensor) -> OnHost:
        """A copy of `tensor`, which is contiguous, on the host."""
        kept = self.empty_on_host(tensor.shape, tensor.dtype)
        if isinstance(kept, torch.Tensor):
            kept.copy_(tensor, non_blocking=True)
        return kept

    def from_host(self, kept: OnHost, tensor: torch.Tensor | None = None) -> torch.Tensor:
        """A copy of it on the device, in `tensor` where one is given."""
        if tensor is None:
            tensor = torch.empty(kept.shape, dtype=kept.dtype, device=self._device)
        if isinstance(kept, torch.Tensor):
            tensor.copy_(kept, non_blocking=True)
        return tensor

    def let_go(self, kept: OnHost) -> None:
        """The host's copy is needed no more."""


class CudaStreams(Streams):
    pinned = True

    def __init__(self, device: Device, host: torch.device) -> None:
        super().__init__(device, host)
        self.work = torch.cuda.default_stream(device.torch)
        self.copies = torch.cuda.Stream(device.torch)

    def copying(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = torch.cuda.stream(self.copies)  # type: ignore[arg-type]
        return context

    def used_by_work(self, tensor: torch.Tensor) -> None:
        tensor.record_stream(self.work)  # type: ignore[arg-type]


class SimulatedStreams(Streams):
    """Where the simulated device stands for a CPU, its host's tensors are its own."""

    def __init__(self, device: Device, host: torch.device) -> None:
        super().__init__(device, device.torch if device.stands_for == "cpu" else host)
        self._shapes_only = device.stands_for != "cpu"

    @contextmanager
    def copying(self) -> Iterator[None]:
        with torch.profiler.record_function(COPYING), memory_named("activations"):
            yield

    def used_by_work(self, tensor: torch.Tensor) -> None:
        _tell(USED_BY_WORK, tensor.untyped_storage()._cdata)

    def synchronize(self) -> None:
        _tell(SYNCHRONIZES, 0)

    def empty_on_host(self, shape: tuple[int, ...], dtype: torch.dtype) -> OnHost:
        if not self._shapes_only:
            return super().empty_on_host(shape, dtype)
        kept = HostShape(tuple(shape), dtype)
        _tell(ON_HOST, kept.held_bytes)
        return kept

    def let_go(self, kept: OnHost) -> None:
        if isinstance(kept, HostShape):
            _tell(ON_HOST, -kept.held_bytes)


def _tell(name: str, value: int) -> None:
    with torch.profiler.record_function(name, str(value)):
        pass


@functools.cache
def streams_of(device: Device) -> Streams:
    """The two streams of `device`; all that a process trains shares the second one."""
    kind = {"cuda": CudaStreams, "meta": SimulatedStreams, "cpu": Streams}[device.kind]
    return kind(device, torch.device("cpu"))
