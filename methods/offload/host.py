"""What ZeRO's offloading keeps in host memory: every buffer, its size, and whether it is page-locked.

    memory = host_memory([[parameter.numel() for parameter in trainable(model)]], torch.bfloat16, setup)
    memory.host_bytes, memory.host_pinned_bytes

Of DeepSpeed 0.19 (runtime/zero/stage_1_and_2.py, stage3.py), one rank. With `pin_memory`, its default, all of it is page-locked but
the optimizer's own state, and stage 3's masters, which DeepSpeed leaves pageable. A model's full size may be asked for without the
model.
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

    `masters` and `gradients` in fp32, and `weights`: in stage 2, through which updated masters return to the device in their own
    type; in stage 3, where they are while nothing computes with them. `staging`: as large as the largest parameter (it is never
    used). `accumulated`: sums of gradients, where they are not kept on the device. `state`: the optimizer's. `cached`: what loading
    took, and torch's allocator of page-locked memory keeps.
    """

    masters: tuple[HostBuffer, ...] = ()
    weights: tuple[HostBuffer, ...] = ()
    staging: tuple[HostBuffer, ...] = ()
    gradients: tuple[HostBuffer, ...] = ()
    accumulated: tuple[HostBuffer, ...] = ()
    state: tuple[HostBuffer, ...] = ()
    cached: tuple[HostBuffer, ...] = ()

    def __iter__(self) -> Iterator[HostBuffer]:
        kept = (self.masters, self.weights, self.staging, self.gradients, self.accumulated, self.state, self.cached)
        yield from (buffer for buffers in kept for buffer in buffers)

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
    if not setup.optimizer_on_host:
        return HostMemory()
    return (_of_stage_3 if setup.zero_stage == 3 else _of_stage_2)(groups, dtype, setup)


def _of_stage_2(groups: Sequence[Sequence[int]], dtype: torch.dtype, setup: Setup) -> HostMemory:
    options: ZeroOptions = setup.workload.of(ZeroOptions)
    pinned = options.pin_memory
    flat = [aligned(sum(sizes)) for sizes in groups]
    sizes = [size for group in groups for size in group]
    sums = setup.workload.gradient_accumulation_steps > 1 and not sums_on_device(dtype, setup)
    return HostMemory(
        masters=tuple(HostBuffer(size, torch.float32, pinned) for size in flat),
        weights=tuple(HostBuffer(size, dtype, pinned) for size in flat),
        staging=(HostBuffer(max(sizes), dtype, pinned),),
        gradients=tuple(HostBuffer(size, torch.float32, pinned) for size in flat),
        accumulated=tuple(HostBuffer(size, dtype, pinned) for size in sizes) if sums else (),
        state=tuple(optimizer_state(flat, setup)),
    )


def _of_stage_3(groups: Sequence[Sequence[int]], dtype: torch.dtype, setup: Setup) -> HostMemory:
    """runtime/zero/stage3.py. Masters are copied once more after they were moved, and that copy is not page-locked; the weights'
    flat buffer always is. Each parameter's part of it was page-locked by itself before (partition_parameters.py)."""
    options: ZeroOptions = setup.workload.of(ZeroOptions)
    pinned = options.pin_memory
    parts = [sum(part) for group in groups for part in sub_groups(group, options.sub_group_size)]
    sizes = [size for group in groups for size in group]
    on_host = setup.parameters_on_host
    return HostMemory(
        masters=tuple(HostBuffer(size, torch.float32, pinned=False) for size in parts),
        weights=tuple(HostBuffer(sum(group), dtype, pinned=True) for group in groups) if on_host else (),
        gradients=tuple(HostBuffer(size, torch.float32, pinned) for size in parts),
        accumulated=(HostBuffer(sum(sizes), setup.precision.dtype(setup.workload), pinned),),
        state=tuple(optimizer_state(parts, setup)),
        cached=tuple(HostBuffer(size, dtype, pinned=True) for size in sizes) if on_host and pinned else (),
    )


def sub_groups(group: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    """Sizes of parameters that the optimizer steps on together (_create_fp16_sub_groups)."""
    if most >= sum(group):
        yield group
        return
    start = 0
    for end in range(1, len(group) + 1):
        if sum(group[start:end]) >= most or end == len(group):
            yield group[start:end]
            start = end


def sums_on_device(dtype: torch.dtype, setup: Setup) -> bool:
    """Whether gradients are summed up on the device and in fp32: where the engine is one of fp32, and what it trains is narrower
    (`_use_compact_grad_partition_buffer`)."""
    return setup.precision.dtype(setup.workload) == torch.float32 != dtype


def aligned(elements: int) -> int:
    """As many elements as a flat buffer for `elements` has."""
    return -(-elements // ALIGNMENT) * ALIGNMENT


def optimizer_state(
    sizes: Sequence[int] | Sequence[tuple[int, ...]], setup: Setup, dtype: torch.dtype = torch.float32
) -> Iterator[HostBuffer]:
    """What the cell's optimizer keeps for masters of these sizes and this type on the CPU, single numbers left out.

    One step of the optimizer shows it, on tensors that have a size and a device and no memory. DeepSpeed's CPUAdam keeps what
    AdamW keeps, both moments in fp32 (ops/adam/cpu_adam.py, `fp32_optimizer_states`).
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second, and few jobs need it

    with FakeTensorMode(allow_non_fake_inputs=True):  # bitsandbytes' tables of codes are real
        masters = nn.ParameterList([nn.Parameter(torch.empty(size, dtype=dtype)) for size in sizes])
    for master in masters:
        master.grad = torch.zeros_like(master)
    optimizer = setup.optimizer.build(masters, setup.workload)
    optimizer.step()
    for tensor in tensors_in(optimizer.state):
        if tensor.dim():
            yield HostBuffer(tensor.numel(), tensor.dtype, pinned=False)
