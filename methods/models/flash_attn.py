"""The flash-attn package's attention on the simulated device, where the package cannot run: what it allocates, nothing computed.

Its kernel is the one that PyTorch ships, and keeps the same. Its wrapper differs: tensors stay [B,T,H,D], and gradients and outputs
that are not contiguous are not copied. Source: flash_attn/flash_attn_interface.py (FlashAttnFunc) and csrc/flash_attn/flash_api.cpp
(mha_fwd, mha_bwd) of flash-attn 2.7 and 2.8; transformers' flash_attention_forward around it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.flash_attention import get_target_dtype

from vrambench.methods.amp import lower_dtype
from vrambench.methods.models.kernels import Attended, Call, checked, flash_dense

ALSO_READ = frozenset({"softcap"})


def flash_attention_2(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> Attended:
    """query [B,H,Tq,D], key and value [B,Hkv,Tk,D] -> [B,Tq,H,D], on meta. Narrower value heads are padded to the queries' size.

    Raises ConfigurationError for an argument that the package does not know.
    """
    call = checked(module, query, options, ALSO_READ)
    size, value_size = query.shape[-1], value.shape[-1]
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if value_size != size:
        value = F.pad(value, (0, size - value_size))
    dtype = (lower_dtype() or get_target_dtype(query, module)) if query.dtype == torch.float32 else None
    if dtype is not None:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    _look_for_packing(query, options.get("position_ids"))
    window = call.window if call.window is not None and key.shape[1] > call.window else None
    out = _FlashAttention.apply(query, key, value, call._replace(window=window))
    return out[..., :value_size] if value_size != size else out, None


class _FlashAttention(torch.autograd.Function):
    """FlashAttnFunc."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call) -> torch.Tensor:
        size = query.shape[-1]
        if size % 8:
            query, key, value = (F.pad(tensor, (0, 8 - size % 8)) for tensor in (query, key, value))
        out, sums = flash_dense(query, key, value, call)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, out, sums)
        return out[..., :size]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, _, sums = ctx.saved_tensors
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        (grad,) = grads
        size = grad.shape[-1]
        if size % 8:
            grad = F.pad(grad, (0, 8 - size % 8))
        batch, queries, heads, head = query.shape
        rows = -(-queries // 128) * 128
        rounded = -(-head // 32) * 32 if head <= 128 else -(-head // 64) * 64
        work = [sums.new_empty(batch, heads, rows), sums.new_empty(batch, rows, heads, rounded)]
        if key.shape[2] != heads:
            work += [key.new_empty(batch, key.shape[1], heads, head) for _ in range(2)]
        del work
        return *(gradient[..., :size] for gradient in gradients), None


def _look_for_packing(query: torch.Tensor, position_ids: torch.Tensor | None) -> None:
    """What transformers allocates to see whether a single row holds several sequences (_is_packed_sequence)."""
    if position_ids is None or query.shape[0] != 1 or position_ids.shape[-1] == 1:
        return
    ((torch.arange(position_ids.shape[1], device="meta") + position_ids.min()) - position_ids).abs().sum().bool()
