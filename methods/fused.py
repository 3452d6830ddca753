"""Functions that PyTorch runs as one operator on CUDA and as several elsewhere, on the simulated device.

Sources: aten/src/ATen/native/Dropout.cpp, dropout (is_fused_kernel_acceptable); SoftMax.cpp, softmax and log_softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F


@contextmanager
def fused(stands_for: Literal["cpu", "cuda"]) -> Iterator[None]:
    """Within, meta tensors take CUDA's operators where they stand for CUDA's. Dropout keeps a mask of one byte an element for the
    backward pass, and not one of its input's type; softmax of fp16 in fp32 makes no copy of its input."""
    if stands_for == "cpu":
        yield
        return
    real = F.dropout, F.softmax, F.log_softmax
    F.dropout = _dropout(F.dropout)
    F.softmax = _softmax(F.softmax, torch.ops.aten._softmax)
    F.log_softmax = _softmax(F.log_softmax, torch.ops.aten._log_softmax)
    try:
        yield
    finally:
        F.dropout, F.softmax, F.log_softmax = real


def _dropout(real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def dropout(
        input: torch.Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> torch.Tensor:
        if not input.is_meta or not training or inplace or not 0 < p < 1 or not input.numel():
            return real(input, p, training, inplace)
        return torch.native_dropout(input, p, True)[0]

    return dropout


def _softmax(real: Callable[..., torch.Tensor], operator: Any) -> Callable[..., torch.Tensor]:
    def softmax(
        input: torch.Tensor,
        dim: int | None = None,
        _stacklevel: int = 3,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        if not input.is_meta or dim is None or input.dtype != torch.float16 or dtype != torch.float32:
            return real(input, dim, _stacklevel, dtype)
        made: torch.Tensor = operator(input, dim, True)
        return made

    return softmax
