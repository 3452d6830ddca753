"""Attention for sequences of one fixed length, the same kernel in every world.

`implementation("flash")` gives the name under which transformers finds a kernel's function here; a model whose config
names it builds no mask at all. With one length and no padding none is needed: attention is causal where queries and
keys are as many, and a single query (decoding) sees every key it is given, which is the filled part of the cache.

On CUDA and the CPU this calls `scaled_dot_product_attention`, whose kernel the job pins with `Device.attention`. On
meta, where PyTorch would fall back to explicit products and make query x key tensors that no GPU makes, it calls the
operator that the GPU would take.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vrambench.methods.errors import ConfigurationError

CPU_TAKES_GROUPS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9)
"""Whether the CPU's flash kernel takes grouped heads."""

Attended = tuple[torch.Tensor, None]

READ = frozenset({"is_causal", "scaling", "dropout", "sliding_window"})
WITHOUT_EFFECT = frozenset({"position_ids", "cache_position", "use_cache", "logits_to_keep", "return_dict"})
"""Arguments that models hand to attention: those that are read here, and those that no attention function reads. (So are the
many that ask for more output, `output_...`.) Another one would change what is computed: `s_aux`, `softcap`."""


def implementation(kernel: str) -> str:
    """What to set as a config's `_attn_implementation` for `kernel` (flash, efficient or math)."""
    name, function = IMPLEMENTATIONS[kernel]
    ALL_ATTENTION_FUNCTIONS.register(name, function)
    return name


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

    Raises ConfigurationError for a mask, for several queries over more keys than queries, beyond a model's sliding window, and
    for an argument that would change the result and is not known here.
    """
    causal, scale, dropout = _checked(module, query, key, attention_mask, options)
    if query.shape[-1] != value.shape[-1]:
        sizes = f"query heads of {query.shape[-1]} and value heads of {value.shape[-1]}"
        raise _cannot(module, f"has {sizes}, which the flash kernel does not take (attention: efficient does)")
    if not query.is_meta:
        if query.device.type == "cpu" and not CPU_TAKES_GROUPS:
            key, value = (repeat_kv(tensor, query.shape[1] // tensor.shape[1]) for tensor in (key, value))
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=dropout,
            is_causal=causal,
            scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return out.transpose(1, 2).contiguous(), None
    # As PyTorch does before the kernel: it takes head sizes in multiples of eight.
    size = query.shape[-1]
    if size % 8:
        query, key, value = (F.pad(tensor, (0, 8 - size % 8)) for tensor in (query, key, value))
    out = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, False, scale=scale)[0]
    return out[..., :size].transpose(1, 2).contiguous(), None


def efficient(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> Attended:
    """As `flash`, with the memory-efficient kernel, which takes no grouped heads: keys and values are repeated for
    it."""
    causal, scale, dropout = _checked(module, query, key, attention_mask, options)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if not query.is_meta:
        size, widest = value.shape[-1], max(query.shape[-1], value.shape[-1])
        if query.device.type == "cpu" and query.shape[-1] != size:
            # Its one fused kernel takes heads of one size; zeros change nothing.
            query, key, value = (F.pad(tensor, (0, widest - tensor.shape[-1])) for tensor in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal, scale=scale)
        if out.shape[-1] != size:
            out = out[..., :size]
        return out.transpose(1, 2).contiguous(), None
    # The kernel keeps its row sums where a gradient will need them.
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    out = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, keep, dropout, causal, scale=scale
    )[0]
    return out.transpose(1, 2).contiguous(), None


def explicit(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> Attended:
    """As `flash`, in plain products, which keep query x key scores for every head: softmax(q k' * scale) v."""
    causal, scale, dropout = _checked(module, query, key, attention_mask, options)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = (query * scale) @ key.transpose(-2, -1)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    out = F.dropout(weights, p=dropout) @ value
    return out.transpose(1, 2).contiguous(), None


# Names without the word "flash": transformers takes that for the flash-attn package and asks for it.
IMPLEMENTATIONS = {
    "flash": ("vrambench_fa", flash),
    "efficient": ("vrambench_efficient", efficient),
    "math": ("vrambench_math", explicit),
}


def _checked(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    options: dict[str, Any],
) -> tuple[bool, float, float]:
    """Whether it is causal, the scale and the dropout, for a call that this file's rule holds for."""
    if attention_mask is not None:
        raise _cannot(module, "gives attention a mask, and sequences here have one length and no padding")
    for name, given in options.items():
        if given is not None and name not in READ | WITHOUT_EFFECT and not name.startswith("output_"):
            raise _cannot(module, f"gives attention the argument {name!r}, which no kernel here knows")
    queries, keys = query.shape[2], key.shape[2]
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if is_causal and queries not in (1, keys):
        raise _cannot(module, f"has {queries} queries over {keys} keys; either one token is decoded or all attend")
    window = options.get("sliding_window")
    if window is not None and keys > window:
        raise _cannot(module, f"sees no further back than its sliding window of {window} tokens, and there are {keys}")
    scaling = options.get("scaling")
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    return bool(is_causal) and queries > 1, scale, float(options.get("dropout") or 0.0)


def _cannot(module: nn.Module, why: str) -> ConfigurationError:
    return ConfigurationError(f"model: its attention ({type(module).__name__}) {why}", field="model")
