"""How a model attends: by transformers' names (sdpa, flash_attention_2, eager) or by one pinned kernel of PyTorch's (flash,
efficient, math).

    implementation("flash", config, tokens=4096, simulated=False)     what to set as a config's `_attn_implementation`
    unable(config, "flash")                                           in words why that architecture cannot attend so, or None
    settled(config, "flash")                                          what `attention: auto` stands for
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from vrambench.methods.models.flash_attn import flash_attention_2, flash_attention_mask
from vrambench.methods.models.kernels import efficient, explicit, flash
from vrambench.methods.models.modeling import ALL_ATTENTION_FUNCTIONS
from vrambench.methods.sdpa import WIDEST_FLASH_HEAD, Asked, Capability, Choice, choose

PYTORCH = ("flash", "efficient", "math", "sdpa")
"""What calls PyTorch's kernels, which know neither sinks nor capped scores."""


PICKS_TOKENS = ("index_topk", "index_topk_blocks", "indexer_budget", "keep_window_size", "rel_extent")
"""Fields of architectures whose layers pick or weigh the tokens that a query sees (DeepSeek V3.2, MiniMax M3, Doge, Inkling): by a
mask, which they make for transformers' sdpa and eager attention alone."""


class Registered(NamedTuple):
    """A function of this package under a name of its own. `mask`: what makes its masks, where it takes any."""

    name: str
    function: Callable[..., Any]
    mask: Callable[..., Any] | None = None


# Names without the word "flash": transformers takes that for the flash-attn package and asks for it.
IMPLEMENTATIONS = {
    "flash": Registered("vrambench_fa", flash),
    "efficient": Registered("vrambench_efficient", efficient),
    "math": Registered("vrambench_math", explicit),
}
MASKED = Registered("vrambench_efficient_masked", efficient, sdpa_mask)
"""The efficient kernel where sequences are longer than what a layer sees, or not all as long."""
SIMULATED_PACKAGE = Registered("vrambench_fa2", flash_attention_2, flash_attention_mask)
"""The flash-attn package on the simulated device."""


def implementation(
    kernel: str,
    config: PreTrainedConfig | None = None,
    *,
    tokens: int = 0,
    masked: bool = False,
    simulated: bool = False,
) -> str:
    """What to set as the `_attn_implementation` of `config` for `kernel` and sequences of `tokens`. `masked`: batches may need a
    mask for padding or for several documents in a row."""
    if config is not None and own_code(config):
        return "eager"
    chosen = IMPLEMENTATIONS.get(kernel)
    if kernel == "efficient" and config is not None and (masked or tokens > sight(config)):
        chosen = MASKED
    if kernel == "flash_attention_2" and simulated:
        chosen = SIMULATED_PACKAGE
    if chosen is None:
        return kernel
    ALL_ATTENTION_FUNCTIONS.register(chosen.name, chosen.function)
    if chosen.mask is not None:
        ALL_MASK_ATTENTION_FUNCTIONS.register(chosen.name, chosen.mask)
    return chosen.name


def own_code(config: PreTrainedConfig) -> bool:
    """Whether an architecture attends by code of its own, which transformers' table of attention functions does not reach, or not
    at all: its `attention` is eager, whatever is asked for."""
    made = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return made is not None and not hasattr(sys.modules[made.__module__], "ALL_ATTENTION_FUNCTIONS")


def unable(config: PreTrainedConfig, kernel: str) -> str | None:
    """Why models of that configuration cannot attend by `kernel`, in words that follow their name; None where they can."""
    made = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if made is None or kernel == "eager" or own_code(config):
        return None
    if kernel != "sdpa" and picks_tokens(config):
        return "picks or weighs the tokens that a query sees by a mask that it makes for sdpa and eager attention alone"
    if kernel in PYTORCH and (not made._supports_sdpa or capped(config)):
        return "has sinks in its attention or caps its scores, which PyTorch's kernels do not"
    compatible = made._compatible_flash_implementations
    if kernel == "flash_attention_2" and not (
        made._supports_flash_attn and (not compatible or "flash_attention_2" in compatible)
    ):
        return "is not written for the flash-attn package"
    if kernel == "flash" and not one_head_size(config):
        return "has query heads and value heads of two sizes, which the flash kernel does not take (efficient does)"
    return None


def capped(config: PreTrainedConfig) -> bool:
    """Whether scores are soft-capped before their softmax (Gemma 2). sdpa leaves that out, and not every transformers says so."""
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None


def settled(config: PreTrainedConfig, kernel: str) -> str:
    """What `attention: auto` stands for where a cell's precision would have `kernel`: the first of it, efficient, sdpa and eager
    that the architecture can."""
    return next(name for name in (kernel, "efficient", "sdpa", "eager") if unable(config, name) is None)


def picks_tokens(config: PreTrainedConfig) -> bool:
    """Whether layers pick or weigh the tokens that a query sees."""
    text = config.get_text_config()
    return any(getattr(text, field, None) for field in PICKS_TOKENS)


def one_head_size(config: PreTrainedConfig) -> bool:
    """Whether queries' and values' heads are of one size: not so in multi-head latent attention (DeepSeek-V3)."""
    query, value = head_sizes(config)
    return not query or not value or query == value


def head_sizes(config: PreTrainedConfig) -> tuple[int, int]:
    """Of queries and of values; 0 where the configuration does not say."""
    text: Any = config.get_text_config()
    parts = getattr(text, "qk_nope_head_dim", None), getattr(text, "qk_rope_head_dim", None)
    heads, width = getattr(text, "num_attention_heads", None), getattr(text, "hidden_size", None)
    equal = width // heads if isinstance(heads, int) and isinstance(width, int) and heads else 0
    query = sum(part for part in parts if part) or getattr(text, "head_dim", None) or equal
    return query, getattr(text, "v_head_dim", None) or query


def choices(
    config: PreTrainedConfig, tokens: int, dtype: torch.dtype, capability: Capability | None, *, masked: bool = False
) -> tuple[Choice, ...]:
    """The kernels that sdpa comes to in a model's layers for whole sequences, each once (see `sdpa.choose`). `masked`: some
    batches have a mask in every layer."""
    text: Any = config.get_text_config()
    size, value_size = head_sizes(config)
    keys, queries = getattr(text, "num_key_value_heads", None), getattr(text, "num_attention_heads", None)
    shared = bool(keys and queries and keys != queries)
    kinds = getattr(text, "layer_types", None)
    limited = tokens >= sight(config)
    kinds_of_mask = [False, True] if masked or (limited and kinds and len(set(kinds)) > 1) else [limited]
    if picks_tokens(config):
        kinds_of_mask = [True]
    found = []
    for mask in kinds_of_mask:
        # transformers leaves the sharing of heads to PyTorch where there is no mask (use_gqa_in_sdpa).
        grouped = shared and not mask and size == value_size <= WIDEST_FLASH_HEAD
        found.append(choose(Asked(dtype, size, value_size, mask, grouped), capability))
    return tuple(dict.fromkeys(found))


def chunked(config: PreTrainedConfig) -> bool:
    """Whether layers see the tokens of their own chunk only (Llama 4)."""
    return "chunked_attention" in (getattr(config.get_text_config(), "layer_types", None) or ())


def sight(config: PreTrainedConfig) -> float:
    """How many tokens a query sees in the layer that sees the fewest, itself included; no limit where all layers see all."""
    text: Any = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    window = (
        getattr(text, "sliding_window", None) if kinds is None or any("sliding" in kind for kind in kinds) else None
    )
    chunk = getattr(text, "attention_chunk_size", None) if kinds and "chunked_attention" in kinds else None
    return min((length for length in (window, chunk) if length), default=math.inf)
