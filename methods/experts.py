"""The products of mixtures of experts on the simulated device, in every type and on every GPU that takes them.

    with experts_of_gpu((9, 0)):        transformers' experts go the way that they go on a GPU of that compute capability

Source: transformers' integrations/moe.py, and torch's native/GroupedMMUtils.h (create_grouped_gemm_output_tensor) and
native/cuda/GroupedBlas.cpp (_grouped_mm_cuda). One fused kernel takes bf16 from capability 9.0 on; all else is a plain product for
each expert, written straight into the result. Neither is on autocast's lists, so tokens are cast to the experts' type.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.integrations import moe

GROUPED_CAPABILITY = (8, 0)
"""Below, transformers has an operator of its own, whose backward pass makes the experts' gradient even where they are frozen."""

ALIGNED_BYTES = 16


@contextmanager
def experts_of_gpu(capability: tuple[int, int] | None) -> Iterator[None]:
    """Within, grouped products of meta tensors are those of a GPU of that capability, a recent one where it is None."""
    _grouped_products()
    asked = getattr(moe, "_can_use_grouped_mm", None)  # transformers before 5.1 has no other way
    if asked is None or capability is None or capability >= GROUPED_CAPABILITY:
        yield
        return

    def able(tokens: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> bool:
        return not weight.is_meta and bool(asked(tokens, weight, offs))

    moe._can_use_grouped_mm = able
    try:
        yield
    finally:
        moe._can_use_grouped_mm = asked


@functools.cache
def _grouped_products() -> torch.library.Library:
    """torch's own operator on meta takes bf16 alone, and pads nothing where torch was built without CUDA."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_grouped_mm", _grouped_mm, "Meta", allow_override=True)
    return library


def _grouped_mm(
    left: torch.Tensor,
    right: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """[T,K] by [E,K,N] is [T,N]; [K,T] by [T,N] (the gradient of weights) is [E,K,N]; [E,M,K] by [E,K,N] is [E,M,N]. Rows of the
    result begin at multiples of 16 bytes."""
    if left.dtype != right.dtype:
        raise RuntimeError(f"grouped products of {left.dtype} and {right.dtype}: both must have one type")
    sizes = [left.shape[-2], right.shape[-1]]
    if left.dim() == right.dim():
        groups = left.shape[0] if left.dim() == 3 else offs.shape[0] if offs is not None else 0
        sizes = [groups, *sizes]
    dtype = out_dtype or left.dtype
    step = ALIGNED_BYTES // dtype.itemsize
    width = -(-sizes[-1] // step) * step
    strides = [sizes[-2] * width, width, 1][-len(sizes) :]
    return torch.empty_strided(sizes, strides, dtype=dtype, device=left.device)
