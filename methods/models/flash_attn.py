"""The flash-attn package's attention on the simulated device, where the package cannot run: what it allocates, nothing computed.

Its kernel is the one that PyTorch ships, and keeps the same. Its wrapper differs: tensors stay [B,T,H,D], and gradients and outputs
that are not contiguous are not copied. Where sequences are of several lengths they lie one after the other, [N,H,D]: those of a
padded batch are picked out, and what comes out is put back among zeros; those of a flat one lie so already. Source:
flash_attn/flash_attn_interface.py (FlashAttnFunc, FlashAttnVarlenFunc), bert_padding.py (pad_input) and
csrc/flash_attn/flash_api.cpp (mha_fwd, mha_bwd, mha_varlen_fwd, mha_varlen_bwd) of flash-attn 2.7 and 2.8; transformers'
flash_attention_forward and modeling_flash_attention_utils.py (_flash_attention_forward) around it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.flash_attention import get_target_dtype

from vrambench.methods.amp import lower_dtype
from vrambench.methods.batches import Batch
from vrambench.methods.models.kernels import Attended, Call, checked, flash_dense
from vrambench.methods.sdpa import batch_at_work, padded

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
    window = call.window if call.window is not None and key.shape[1] > call.window else None
    call = call._replace(window=window)
    batch = batch_at_work()
    if attention_mask is not None:
        assert batch is not None
        out = _unpadded(query, key, value, attention_mask, batch)
    elif _looks_packed(query, options.get("position_ids"), batch):
        assert batch is not None
        out = _one_row(query, key, value, options["position_ids"], len(batch.documents))
    else:
        out = _FlashAttention.apply(query, key, value, call)
    return out[..., :value_size] if value_size != size else out, None


class _FlashAttention(torch.autograd.Function):
    """FlashAttnFunc."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call) -> torch.Tensor:
        size = query.shape[-1]
        query, key, value = _in_eights(query, key, value)
        out, sums = flash_dense(query, key, value, call)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, out, sums)
        return out[..., :size]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors
        return *_gradients(saved, grads[0], -(-saved[0].shape[1] // 128) * 128), None


class _Varlen(torch.autograd.Function):
    """FlashAttnVarlenFunc, of so many `sequences` one after the other."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: int) -> torch.Tensor:
        size = query.shape[-1]
        query, key, value = _in_eights(query, key, value)
        out = torch.empty_like(query)
        sums = query.new_empty(query.shape[1], len(query), dtype=torch.float32)
        ctx.sequences = sequences
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, out, sums)
        return out[..., :size]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors
        return *_gradients(saved, grads[0], len(saved[0]) + 128 * ctx.sequences), None


def _gradients(saved: tuple[torch.Tensor, ...], grad: torch.Tensor, rows: int) -> tuple[torch.Tensor, ...]:
    """Of queries, keys and values: mha_bwd, mha_varlen_bwd. `saved`: what forward saved, which checkpointing gives once. `rows`: of
    the queries, as its buffers round them."""
    query, key, value, _, sums = saved
    gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
    size = grad.shape[-1]
    (grad,) = _in_eights(grad)
    *batch, _, heads, head = query.shape
    work = [sums.new_empty(*batch, heads, rows), sums.new_empty(*batch, rows, heads, _rounded(head))]
    if key.shape[-2] != heads:
        work += [key.new_empty(*key.shape[:-2], heads, head) for _ in range(2)]
    del work
    return tuple(gradient[..., :size] for gradient in gradients)


def _in_eights(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """With heads of a multiple of eight numbers, as the kernels take them."""
    missing = -tensors[0].shape[-1] % 8
    return tuple(F.pad(tensor, (0, missing)) for tensor in tensors) if missing else tensors


def _rounded(head: int) -> int:
    """A head's size, as the kernels of the backward pass round it."""
    return -(-head // 32) * 32 if head <= 128 else -(-head // 64) * 64


class _Pad(torch.autograd.Function):
    """IndexPutFirstAxis: [n,H,D] at `indices` [n] of `rows` rows of zeros."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
        ctx.save_for_backward(indices)
        return values.new_zeros(rows, *values.shape[1:])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        return grads[0][indices], None, None


def _unpadded(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, batch: Batch
) -> torch.Tensor:
    """_upad_input, the kernel and pad_input: [B,T,H,D] from [B,T,H,D], where the mask hides some of the tokens."""
    mask.sum(dim=-1, dtype=torch.int32)
    indices = torch.nonzero_static(mask.flatten(), size=batch.tokens).flatten()
    picked = (tensor.reshape(-1, *tensor.shape[2:])[indices] for tensor in (key, value, query))
    key, value, flat = picked
    out = _Varlen.apply(flat, key, value, len(batch.rows))
    return _Pad.apply(out, indices, mask.numel()).view(*mask.shape, *out.shape[1:])


def _one_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, position_ids: torch.Tensor, documents: int
) -> torch.Tensor:
    """_prepare_from_posids and the kernel: [1,T,H,D] from [1,T,H,D], of several documents."""
    query, key, value = (tensor.contiguous().view(-1, *tensor.shape[2:]) for tensor in (query, key, value))
    flat = position_ids.reshape(-1)
    torch.nonzero_static(flat == flat.min(), size=documents).view(-1).to(torch.int32)
    return _Varlen.apply(query, key, value, documents)[None]


def _looks_packed(query: torch.Tensor, position_ids: torch.Tensor | None, batch: Batch | None) -> bool:
    """Whether a single row holds several sequences, with what transformers allocates to see it (_is_packed_sequence)."""
    if position_ids is None or query.shape[0] != 1 or position_ids.shape[-1] == 1:
        return False
    ((torch.arange(position_ids.shape[1], device="meta") + position_ids.min()) - position_ids).abs().sum().bool()
    return batch is not None and batch.flat and len(batch.documents) > 1


def flash_attention_mask(
    *, kv_length: int, attention_mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor | None:
    """transformers' own, on meta: the mask where it hides any token."""
    if attention_mask is None:
        return None
    attention_mask = attention_mask[:, -kv_length:]
    attention_mask.all()
    return attention_mask if padded() else None
