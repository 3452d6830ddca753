"""PyTorch's attention kernels as functions that transformers' models call: the same kernel in every world.

On CUDA and the CPU these call `scaled_dot_product_attention`, whose kernel the job pins with `Device.attention`. On meta, where
PyTorch would fall back to explicit products and make query x key tensors that no GPU makes, they call the operator that the GPU
would take.

A sequence has one length and no padding, so no mask is needed: attention is causal where queries and keys are as many, and a
single query (decoding) sees every key it is given, which is the filled part of the cache. Where sequences are longer than a
layer's sliding window, the flash kernel is told the window, and the efficient one is given the mask that transformers makes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.sdpa_attention import repeat_kv

from vrambench.methods.amp import lowered
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.sdpa import efficient_masked

CPU_TAKES_GROUPS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9)
"""Whether the CPU's flash kernel takes grouped heads."""

Attended = tuple[torch.Tensor, None]

READ = frozenset({"is_causal", "scaling", "dropout", "sliding_window"})
WITHOUT_EFFECT = frozenset(
    {"position_ids", "cache_position", "use_cache", "logits_to_keep", "return_dict", "num_items_in_batch"}
)
"""Arguments that models hand to attention: those that are read here, and those that no attention function reads. (So are the
many that ask for more output, `output_...`.) Another one would change what is computed: `s_aux`, `softcap`."""


class Call(NamedTuple):
    """What a layer asks of attention. `window`: how many tokens back a query sees, itself included; None where it sees all."""

    causal: bool
    scale: float
    dropout: float
    window: int | None


def flash(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> Attended:
    """query [B,H,Tq,D], key and value [B,Hkv,Tk,D] of one type -> [B,Tq,H,D]. Grouped heads reach the kernel as they
    are (but on the CPU before torch 2.9, where they are repeated).

    Raises ConfigurationError for a mask, for several queries over more keys than queries, and for an argument that would change the
    result and is not known here.
    """
    call = _unmasked(module, query, key, attention_mask, options)
    if query.shape[-1] != value.shape[-1]:
        sizes = f"query heads of {query.shape[-1]} and value heads of {value.shape[-1]}"
        raise _cannot(module, f"has {sizes}, which the flash kernel does not take (attention: efficient does)")
    key, value = _in_window(query, key, value, call)
    if query.device.type == "cpu" or (call.window is None and not query.is_meta):
        return _sdpa(query, key, value, call), None
    if not query.is_meta and torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)  # autocast knows the other operator only
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    # As PyTorch does before the kernel: it takes head sizes in multiples of eight.
    size = query.shape[-1]
    if size % 8:
        query, key, value = (F.pad(tensor, (0, 8 - size % 8)) for tensor in (query, key, value))
    if call.window is None:
        made = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, call.dropout, call.causal, False, scale=call.scale
        )
        return made[0][..., :size].transpose(1, 2).contiguous(), None
    out = flash_dense(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), call)[0]
    return out[..., :size].contiguous(), None


def flash_dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call
) -> tuple[torch.Tensor, torch.Tensor]:
    """The flash kernel itself, which takes a window: query [B,Tq,H,D], key and value [B,Tk,Hkv,D] -> [B,Tq,H,D], and its sums of
    rows [B,H,Tq] in fp32."""
    back = {} if call.window is None else {"window_size_left": call.window - 1, "window_size_right": 0}
    lengths = query.shape[1], key.shape[1]
    made = torch.ops.aten._flash_attention_forward(
        query, key, value, None, None, *lengths, call.dropout, call.causal, False, scale=call.scale, **back
    )
    return made[0], made[1]


def efficient(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> Attended:
    """As `flash`, with the memory-efficient kernel, which takes no grouped heads: keys and values are repeated for
    it. `attention_mask`: bool [B,1,Tq,Tk], true where a query sees a key."""
    if attention_mask is None:
        call = _unmasked(module, query, key, None, options)
        key, value = _in_window(query, key, value, call)
        if call.window is not None:
            raise _cannot(module, f"has a sliding window of {call.window} tokens, and gives no mask that says so")
    else:
        call = checked(module, query, options)._replace(causal=False, window=None)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if not query.is_meta:
        size, widest = value.shape[-1], max(query.shape[-1], value.shape[-1])
        if query.device.type == "cpu" and query.shape[-1] != size:
            # Its one fused kernel takes heads of one size; zeros change nothing.
            query, key, value = (F.pad(tensor, (0, widest - tensor.shape[-1])) for tensor in (query, key, value))
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=call.dropout, is_causal=call.causal, scale=call.scale
        )
        if out.shape[-1] != size:
            out = out[..., :size]
        return out.transpose(1, 2).contiguous(), None
    made = lowered(efficient_masked, query, key, value, attention_mask, call.dropout, call.causal, call.scale)
    return made.transpose(1, 2).contiguous(), None


def explicit(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> Attended:
    """As `flash`, in plain products, which keep query x key scores for every head: softmax(q k' * scale) v."""
    call = _unmasked(module, query, key, attention_mask, options)
    key, value = _in_window(query, key, value, call)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = (query * call.scale) @ key.transpose(-2, -1)
    if call.causal:
        scores = scores.masked_fill(_hidden(query.shape[2], key.shape[2], call.window, query.device), float("-inf"))
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    out = F.dropout(weights, p=call.dropout) @ value
    return out.transpose(1, 2).contiguous(), None


def checked(
    module: nn.Module, query: torch.Tensor, options: dict[str, Any], also: frozenset[str] = frozenset()
) -> Call:
    """What `options` ask for, where nothing among them would change the result and is unknown (`also` are known)."""
    for name, given in options.items():
        if given is not None and name not in READ | WITHOUT_EFFECT | also and not name.startswith("output_"):
            raise _cannot(module, f"gives attention the argument {name!r}, which no kernel here knows")
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scaling = options.get("scaling")
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    return Call(bool(is_causal), scale, float(options.get("dropout") or 0.0), options.get("sliding_window"))


def _unmasked(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    options: dict[str, Any],
) -> Call:
    """As `checked`, for a call that needs no mask: with the window only where several queries have more keys than it holds."""
    if attention_mask is not None:
        raise _cannot(module, "gives attention a mask, and sequences here have one length and no padding")
    call = checked(module, query, options)
    queries, keys = query.shape[2], key.shape[2]
    if call.causal and queries not in (1, keys):
        raise _cannot(module, f"has {queries} queries over {keys} keys; either one token is decoded or all attend")
    beyond = call.window is not None and keys > call.window
    return call._replace(causal=call.causal and queries > 1, window=call.window if beyond else None)


def _in_window(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call
) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys and values that a single query sees: the last ones, where a window ends before them."""
    if call.window is None or query.shape[2] > 1:
        return key, value
    return key[:, :, -call.window :], value[:, :, -call.window :]


def _sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call) -> torch.Tensor:
    """scaled_dot_product_attention -> [B,Tq,H,D]. On the CPU, whose kernel knows no window, one is a mask."""
    if query.device.type == "cpu" and not CPU_TAKES_GROUPS:
        key, value = (repeat_kv(tensor, query.shape[1] // tensor.shape[1]) for tensor in (key, value))
    windowed = call.causal and call.window is not None
    seen = _hidden(query.shape[2], key.shape[2], call.window, query.device).logical_not() if windowed else None
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=seen,
        dropout_p=call.dropout,
        is_causal=call.causal and not windowed,
        scale=call.scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return out.transpose(1, 2).contiguous()


def _hidden(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """bool [queries, keys]: true where a query does not see a key, which is later or beyond the window."""
    every = torch.ones((queries, keys), dtype=torch.bool, device=device)
    return every.triu(1) if window is None else every.triu(1).logical_or_(every.tril(-window))


def _cannot(module: nn.Module, why: str) -> ConfigurationError:
    return ConfigurationError(f"model: its attention ({type(module).__name__}) {why}", field="model")
