"""Global buffers of PyTorch's CUDA reductions: sum, mean, norms, arg-reductions.

A reduction with much to add up for each output, and too few outputs to fill the GPU, is split over several thread blocks
that meet in global memory. The buffer is far larger than what is stored in it: for a gradient summed over rows
([tokens, width] -> [width], as of every norm's weight and every bias) it holds a whole block's lanes per output, tens of
megabytes at the widths of language models.

Source: aten/src/ATen/native/cuda/Reduce.cuh of torch 2.13, `setReduceConfig`, `ReduceConfig` and `gpu_reduce_kernel`; the
order of dimensions from `TensorIterator::reorder_dimensions` and `coalesce_dimensions`. Tensors over 2 GiB are reduced in
halves there, which is not followed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vrambench.bench.predict.unseen.hardware import Hardware

MAX_THREADS = 512
MIN_VALUES_PER_THREAD, MAX_VALUES_PER_THREAD = 16, 256
WARP = 32
VECTOR = 4


def reduction_buffers(
    source: torch.Tensor, dims: Sequence[int], accumulator_bytes: int, hardware: Hardware
) -> tuple[int, ...]:
    """Bytes of the staging buffer and of the semaphores when `source` is reduced over `dims` (all of them where empty);
    nothing where every output is one block's work."""
    if source.numel() == 0:
        return ()
    reduced, kept = _dimensions(source, dims)
    if not reduced:
        return ()
    return _configure(reduced, kept, hardware).buffers(accumulator_bytes)


@dataclass(frozen=True)
class _Launch:
    outputs: int
    blocks_per_output: int
    block_width: int
    output_vector: int
    reduces_in_width: bool
    grid: int
    split: bool

    def buffers(self, accumulator_bytes: int) -> tuple[int, ...]:
        if not self.split:
            return ()
        staging = accumulator_bytes * self.outputs * self.blocks_per_output
        if not self.reduces_in_width:
            staging *= self.block_width * self.output_vector
        return staging, 4 * self.grid


def _configure(reduced: list[tuple[int, int]], kept: list[tuple[int, int]], hardware: Hardware) -> _Launch:
    inputs, outputs = _product(reduced), _product(kept)
    along = not kept or reduced[0][1] < kept[0][1]
    width, height = (inputs, outputs) if along else (outputs, inputs)
    vector = 1
    if (reduced if along else kept)[0][1] == 1:
        if along and width >= 128 and len(reduced) == 1:
            width //= VECTOR
        elif not along:
            vector = _output_vector(kept[0][0], [stride for _, stride in (*reduced, *kept[1:])])
            width //= vector
    block_width, block_height = _block(width, height, MAX_THREADS // vector)
    step_input, step_output = (block_width, 1) if along else (1, block_width)
    split_warps = _ceil(inputs, step_input) >= min(block_height * 16, MAX_VALUES_PER_THREAD)
    if split_warps:
        step_input *= block_height
    else:
        step_output *= block_height
    values = _ceil(inputs, step_input)
    grid = _ceil(outputs // vector, step_output)
    target = hardware.multiprocessors * (hardware.threads_per_multiprocessor // (block_width * block_height))
    blocks = 1
    if split_warps and values >= MAX_VALUES_PER_THREAD and grid <= target:
        most = min(_ceil(target, grid), _ceil(values, MIN_VALUES_PER_THREAD))
        blocks = max(most, _ceil(values, MAX_VALUES_PER_THREAD))
    return _Launch(outputs, blocks, block_width, vector, along, grid, blocks > 1)


def _block(width: int, height: int, threads: int) -> tuple[int, int]:
    """A thread block's shape: powers of two, the width a warp at first and then what the height leaves."""
    widest = _power(width) if width < threads else threads
    highest = _power(height) if height < threads else threads
    block_width = min(widest, WARP)
    block_height = min(highest, threads // block_width)
    return min(widest, threads // block_height), block_height


def _dimensions(source: torch.Tensor, dims: Sequence[int]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Reduced and kept dimensions as (size, stride in elements), fastest first, neighbours in memory merged."""
    over = {dim % source.dim() for dim in dims} if dims else set(range(source.dim()))
    sizes = [(size, source.stride(dim), dim) for dim, size in enumerate(source.shape) if size != 1]
    reduced = sorted((stride, size) for size, stride, dim in sizes if dim in over)
    kept = [(size, stride) for size, stride, dim in reversed(sizes) if dim not in over]
    return _merged([(size, stride) for stride, size in reduced]), _merged(kept)


def _merged(dims: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for size, stride in dims:
        if merged and merged[-1][0] * merged[-1][1] == stride:
            merged[-1] = merged[-1][0] * size, merged[-1][1]
        else:
            merged.append((size, stride))
    return merged


def _output_vector(size: int, strides: list[int]) -> int:
    vector = VECTOR
    while any(number % vector for number in (size, *strides)):
        vector //= 2
    return vector


def _product(dims: list[tuple[int, int]]) -> int:
    product = 1
    for size, _ in dims:
        product *= size
    return product


def _power(number: int) -> int:
    """The largest power of two that is not above `number`."""
    return 1 << (max(number, 1).bit_length() - 1)


def _ceil(number: int, by: int) -> int:
    return -(-number // by)
