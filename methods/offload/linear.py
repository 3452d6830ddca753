"""The linear layer as ZeRO-3's engine has it, for the simulated device: unless told otherwise (memory_efficient_linear), DeepSpeed
puts a function of its own in the place of torch.nn.functional.linear, so that no weight that has been gathered is kept for the
backward pass (DeepSpeed 0.19.8, runtime/zero/linear.py).

    with efficient_linear():
        loss = module(tokens)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F


class _Linear(torch.autograd.Function):
    """LinearFunctionForZeroStage3, line by line: what it allocates depends on each."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        ctx.save_for_backward(input, weight, bias)
        if input.dim() == 2 and bias is not None:
            return torch.addmm(bias, input, weight.t())
        output = input.matmul(weight.t())
        if bias is not None:
            output += bias
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        input, weight, bias = ctx.saved_tensors
        for_input = gradient.matmul(weight) if ctx.needs_input_grad[0] else None
        for_weight = for_bias = None
        if ctx.needs_input_grad[1]:
            rows = gradient.reshape(-1, gradient.shape[-1])
            for_weight = rows.t().matmul(input.reshape(-1, input.shape[-1]))
        if bias is not None and ctx.needs_input_grad[2]:
            for_bias = gradient.sum(list(range(gradient.dim() - 1)))
        return for_input, for_weight, for_bias


@contextmanager
def efficient_linear() -> Iterator[None]:
    """Meanwhile, linear layers are DeepSpeed's."""
    usual = F.linear

    def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        return _Linear.apply(input, weight, bias)

    F.linear = linear
    try:
        yield
    finally:
        F.linear = usual
