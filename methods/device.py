"""Where a job runs: what CUDA, the CPU and the simulated device do differently, in one small object.

Training code asks this object and never the machine. `get_device("cuda:0")` gives one; `meta` has no memory and no values:
a job on it does every allocation that the real job would do, and none of the arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import dtype as Dtype  # `torch` is a field of Device
from torch.amp import GradScaler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

from vrambench.methods.amp import LISTS, CastPolicy, SimulatedScaler
from vrambench.methods.batches import Batch
from vrambench.methods.batches import Kind as BatchKind
from vrambench.methods.errors import ConfigurationError, UnknownValue
from vrambench.methods.experts import experts_of_gpu
from vrambench.methods.fused import fused
from vrambench.methods.sdpa import on_simulated_device, working_on

MOST_PASSES = 4
"""Backward passes for one optimizer step that are followed on the simulated device."""

Item = TypeVar("Item")
Kind = Literal["cpu", "cuda", "meta"]

EMPTIES_CACHE = "Device.empty_cache"
REPEATS = "Device.repeated"
WALKS_PARAMETERS = "Device.walk"
"""Profiler name for work that goes through parameters of any layer, one by one, and names each by an operator on it."""

MEMORY = "memory: "


def memory_named(kind: str) -> torch.profiler.record_function:
    """A block in which everything that is allocated is `kind` to whoever traces memory, and to profilers."""
    return torch.profiler.record_function(MEMORY + kind)


# The CPU has one fused kernel, which it calls flash attention; it stands there for both of CUDA's.
KERNELS: dict[Kind, dict[str, SDPBackend]] = {
    "cuda": {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    },
    "cpu": {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.FLASH_ATTENTION,
        "math": SDPBackend.MATH,
    },
}


@dataclass(frozen=True)
class Device:
    """`kind` and the torch device that tensors of the job live on."""

    kind: Kind
    torch: torch.device
    layers: int | None = None
    """Simulated only: how many of each model's equal layers are built, None for all."""
    stands_for: Literal["cpu", "cuda"] = "cuda"
    """Simulated only: whose autocast it has."""
    capability: tuple[int, int] | None = None
    """Simulated only: the GPU's compute capability, None for one with every attention kernel."""
    order: tuple[BatchKind, ...] = ()
    """Simulated only: of sequences of several lengths, which batches the first steps have (see Batches)."""

    @property
    def simulated(self) -> bool:
        """Nothing is computed here: shapes and allocations only."""
        return self.kind == "meta"

    def alike(self, items: Sequence[Item], group: int = 1) -> Sequence[Item]:
        """All of `items`, whose work, by groups of `group` items, allocates and frees alike from the second group on; on the
        simulated device the first two groups. A group is what one optimizer step takes."""
        return items[: 2 * group] if self.simulated else items

    def passes(self, accumulation: int) -> int:
        """How many of so many backward passes for one optimizer step are done: on the simulated device a few, since those from the
        second on are alike."""
        return min(accumulation, MOST_PASSES) if self.simulated else accumulation

    def micro_batches(self, items: Sequence[Item], accumulation: int) -> Sequence[Item]:
        """Of `items`, a backward pass each, those that are done: `passes` of each optimizer step, its last one among them; on the
        simulated device of the first two steps."""
        if not self.simulated:
            return items
        done = self.passes(accumulation)
        steps = [items[start : start + accumulation] for start in (0, accumulation)]
        return [item for step in steps for item in (*step[: done - 1], *step[done - 1 :][-1:])]

    def growing(self, items: Sequence[Item]) -> Iterator[Item]:
        """All of `items`, whose work from the second on differs in sizes only, which grow linearly. On the simulated device, only
        the first, the second and the last, and a tracer sees REPEATS around the work on the second and on the last."""
        for number, item in enumerate(items):
            if number == 0 or not self.simulated:
                yield item
            elif number in (1, len(items) - 1):
                with torch.profiler.record_function(REPEATS, str(number)):
                    yield item

    def map_alike(self, function: Callable[[Item], Any], items: Sequence[Item]) -> list[Any]:
        """[function(item) for item in items], for work that allocates and frees alike and gives results of one shape. On the
        simulated device only the first and the last are worked on, with results of that shape in the others' place."""
        if not self.simulated or len(items) < 3:
            return [function(item) for item in items]
        first = function(items[0])
        others = [tree_map_only(torch.Tensor, torch.empty_like, first) for _ in items[2:]]
        return [first, *others, function(items[-1])]

    def synchronize(self) -> None:
        """Waits until the device has done what it was asked."""
        if self.kind == "cuda":
            torch.cuda.synchronize(self.torch)

    def empty_cache(self) -> None:
        """Gives cached, unused blocks back to the driver."""
        if self.kind == "cuda":
            torch.cuda.empty_cache()
        elif self.simulated:  # for whoever traces it
            with torch.profiler.record_function(EMPTIES_CACHE):
                pass

    def empty_cache_in(self, step: int, every: int) -> None:
        """`empty_cache`, where `every` divides the optimizer step's number, from 0 (Trainer.training_step); 0 never does."""
        if every and step % every == 0:
            self.empty_cache()

    def autocast(self, dtype: Dtype | None) -> AbstractContextManager[Any]:
        """Autocast to `dtype` on this device; nothing where dtype is None."""
        if dtype is None:
            return nullcontext()
        if self.simulated:
            return CastPolicy(dtype, LISTS[self.stands_for])
        return torch.autocast(self.kind, dtype)

    def grad_scaler(self, enabled: bool) -> GradScaler:
        """The loss scaler of fp16 autocast; one that does nothing where `enabled` is false."""
        return SimulatedScaler(enabled) if self.simulated else GradScaler(self.kind, enabled=enabled)

    @contextmanager
    def attention(self, kernel: str) -> Iterator[None]:
        """Pins scaled dot product attention to one kernel, so that every world runs the same one, where `kernel` names one of
        PyTorch's. `sdpa` leaves the choice to PyTorch, as it is on a GPU. The simulated device attends, and takes its experts'
        products, as a GPU does."""
        if self.simulated:
            with on_simulated_device(self.capability), fused(self.stands_for), experts_of_gpu(self.capability):
                yield
            return
        pinned = KERNELS[self.kind].get(kernel)
        with sdpa_kernel(pinned) if pinned is not None else nullcontext():
            yield

    def working_on(self, batch: Batch | None) -> AbstractContextManager[None]:
        """While `batch` is trained on: the simulated device knows of it what masks and positions without values do not say."""
        return working_on(batch) if self.simulated and batch is not None else nullcontext()


def get_device(name: str) -> Device:
    """The device called `cpu`, `meta`, `cuda` or `cuda:N`; `auto` is the first GPU, or the CPU where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|meta|cuda(:\d+)?", name):
        raise UnknownValue("device", name, ("auto", "cpu", "cuda", "cuda:N", "meta"))
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigurationError(f"device: {name!r} was asked for, but torch sees no GPU here", field="device")
        device = torch.device("cuda", device.index or 0)
        if device.index >= torch.cuda.device_count():
            raise ConfigurationError(f"device: {name!r}: there are {torch.cuda.device_count()} GPUs", field="device")
    return Device(device.type, device)  # type: ignore[arg-type]
