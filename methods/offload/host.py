"""What ZeRO's optimizer offload keeps in host memory: every buffer, its size, and whether it is page-locked.

    memory = host_memory([[parameter.numel() for parameter in trainable(model)]], torch.bfloat16, setup)
    memory.host_bytes, memory.host_pinned_bytes

Of DeepSpeed 0.19 (runtime/zero/stage_1_and_2.py), one rank. With `pin_memory`, its default, all of it is page-locked but the
optimizer's own state, which DeepSpeed leaves pageable. A model's full size may be asked for without the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vrambench.methods.offload.learner import tensors_in
from vrambench.methods.offload.zero import ZeroOptions
from vrambench.methods.setup import Setup
from vrambench.methods.streams import page_locked_bytes

ALIGNMENT = 2  # elements (`nccl_start_alignment_factor`) times one rank


@dataclass(frozen=True)
class HostBuffer:
    """`elements` numbers of type `dtype`, page-locked or not."""

    elements: int
    dtype: torch.dtype
    pinned: bool

    @property
    def nbytes(self) -> int:
        """What was asked for."""
        return self.elements * self.dtype.itemsize

    @property
    def held_bytes(self) -> int:
        """What it takes."""
        return page_locked_bytes(self.nbytes) if self.pinned else self.nbytes


@dataclass(frozen=True)
class HostMemory:
    """The buffers of one trained model; from its first optimizer step on, all of them are held.

    `masters` and `gradients` in fp32, and `weights`, through which updated masters return to the device in their own type: one for
    each parameter group. `staging`: as large as the largest parameter (it is never used). `accumulated`: each parameter's sum of
    gradients, where there are several micro-batches and the sum is not kept on the device. `state`: the optimizer's.
    """

    masters: tuple[HostBuffer, ...]
    weights: tuple[HostBuffer, ...]
    staging: HostBuffer
    gradients: tuple[HostBuffer, ...]
    accumulated: tuple[HostBuffer, ...]
    state: tuple[HostBuffer, ...]

    def __iter__(self) -> Iterator[HostBuffer]:
        yield from (*self.masters, *self.weights, self.staging, *self.gradients, *self.accumulated, *self.state)

    @property
    def host_pinned_bytes(self) -> int:
        """Page-locked bytes in the host allocator's blocks, as torch.cuda.host_memory_stats counts them."""
        return sum(buffer.held_bytes for buffer in self if buffer.pinned)

    @property
    def host_bytes(self) -> int:
        """Everything, page-locked and pageable."""
        return sum(buffer.held_bytes for buffer in self)


def host_memory(groups: Sequence[Sequence[int]], dtype: torch.dtype, setup: Setup) -> HostMemory:
    """Of a model that trains parameters of these sizes (elements, by the optimizer's parameter groups) and of type `dtype`."""
    options: ZeroOptions = setup.workload.of(ZeroOptions)
    pinned = options.pin_memory
    flat = [aligned(sum(sizes)) for sizes in groups]
    sizes = [size for group in groups for size in group]
    sums = setup.workload.gradient_accumulation_steps > 1 and not sums_on_device(dtype, setup)
    return HostMemory(
        masters=tuple(HostBuffer(size, torch.float32, pinned) for size in flat),
        weights=tuple(HostBuffer(size, dtype, pinned) for size in flat),
        staging=HostBuffer(max(sizes), dtype, pinned),
        gradients=tuple(HostBuffer(size, torch.float32, pinned) for size in flat),
        accumulated=tuple(HostBuffer(size, dtype, pinned) for size in sizes) if sums else (),
        state=tuple(optimizer_state(flat, setup)),
    )


def sums_on_device(dtype: torch.dtype, setup: Setup) -> bool:
    """Whether gradients are summed up on the device and in fp32: where the engine is one of fp32, and what it trains is narrower
    (`_use_compact_grad_partition_buffer`)."""
    return setup.precision.dtype(setup.workload) == torch.float32 != dtype


def aligned(elements: int) -> int:
    """As many elements as a flat buffer for `elements` has."""
    return -(-elements // ALIGNMENT) * ALIGNMENT


def optimizer_state(flat: Sequence[int], setup: Setup) -> Iterator[HostBuffer]:
    """What the cell's optimizer keeps for fp32 masters of these sizes on the CPU, single numbers left out.

    One step of the optimizer shows it, on tensors that have a size and a device and no memory. DeepSpeed's CPUAdam keeps what
    AdamW keeps, both moments in fp32 (ops/adam/cpu_adam.py, `fp32_optimizer_states`).
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second, and few jobs need it

    with FakeTensorMode(allow_non_fake_inputs=True):  # bitsandbytes' tables of codes are real
        masters = nn.ParameterList([nn.Parameter(torch.empty(size)) for size in flat])
    for master in masters:
        master.grad = torch.zeros_like(master)
    optimizer = setup.optimizer.build(masters, setup.workload)
    optimizer.step()
    for tensor in tensors_in(optimizer.state):
        if tensor.dim():
            yield HostBuffer(tensor.numel(), tensor.dtype, pinned=False)
