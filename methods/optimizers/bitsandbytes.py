"""bitsandbytes' AdamW with 8-bit block-wise moments, in ordinary or in paged (managed) memory.

Embeddings and tensors of fewer than 4,096 elements keep 32-bit moments; only tensors of 100,000 elements and more are paged. On
the CPU there is nothing to page to: the paged optimizer is the plain 8-bit one there, as bitsandbytes says itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vrambench.methods.optimizers import Optimizer, trainable
from vrambench.methods.optimizers.adamw import AdamWOptions, adamw_settings
from vrambench.methods.tensors import shapes_only
from vrambench.methods.workload import Workload

PAGED_FROM = 100_000
"""Elements from which bitsandbytes pages a state (Optimizer8bit.get_state_buffer)."""


def build_8bit(module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """bitsandbytes.optim.AdamW8bit."""
    import bitsandbytes

    return _with_32_bit_embeddings(bitsandbytes.optim.AdamW8bit(trainable(module), **adamw_settings(workload)), module)


def build_paged_8bit(module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """bitsandbytes.optim.PagedAdamW8bit."""
    import bitsandbytes

    parameters = trainable(module)
    optimizer = bitsandbytes.optim.PagedAdamW8bit(parameters, **adamw_settings(workload))
    if any(parameter.is_meta for parameter in parameters):
        _simulate_paging(optimizer)
    return _with_32_bit_embeddings(optimizer, module)


def _simulate_paging(optimizer: Any) -> None:
    """Where there is no driver to manage memory: states that would be paged are shapes that are nobody's memory, marked as
    bitsandbytes marks its own."""

    def state_buffer(parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        if parameter.numel() < PAGED_FROM:
            return torch.zeros_like(parameter, dtype=dtype)
        with shapes_only():
            buffer: Any = torch.empty(parameter.shape, dtype=dtype)
        buffer.is_paged = True
        buffer.parameter = parameter
        return buffer

    optimizer.get_state_buffer = state_buffer
    optimizer.prefetch_state = lambda parameter: None


def with_own_manager(optimizer: Any) -> Any:
    """Gives an optimizer of bitsandbytes a manager of its own, which is returned: the common one holds what other optimizers in
    this process asked for, by the numbers of groups and parameters, and would take this one's for theirs."""
    from bitsandbytes.optim import GlobalOptimManager

    optimizer.mng = GlobalOptimManager.__new__(GlobalOptimManager)
    optimizer.mng.initialize()
    return optimizer.mng


def _with_32_bit_embeddings(optimizer: Any, module: nn.Module) -> torch.optim.Optimizer:
    """Moments of embeddings in 32 bits, as transformers' Trainer sets it for these optimizers: by module, since bitsandbytes before
    0.50 does not look at what is set by parameter after the optimizer was made (pid2config)."""
    manager = with_own_manager(optimizer)
    for part in module.modules():
        if isinstance(part, nn.Embedding) and part.weight.requires_grad:
            manager.register_module_override(part, "weight", {"optim_bits": 32})
    return optimizer


ADAMW_BNB_8BIT = Optimizer(
    summary="bitsandbytes' AdamW, 8-bit moments",
    options=AdamWOptions,
    build=build_8bit,
    requires=("bitsandbytes",),
    eight_bit=True,
)
PAGED_ADAMW_8BIT = Optimizer(
    summary="bitsandbytes' AdamW, 8-bit moments in paged memory",
    options=AdamWOptions,
    build=build_paged_8bit,
    requires=("bitsandbytes",),
    eight_bit=True,
    paged=True,
)
