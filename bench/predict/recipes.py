"""The usual recipes of fine-tuning on one card, as `fit MODEL` lists them: what trains most of a model comes first.

asked(RECIPES, {"precision": ("nf4",)})     those that are left, with the values that were named
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

CHECKPOINTING = {"gradient_checkpointing": True}
LORA = {**CHECKPOINTING, "lora_r": 16, "lora_alpha": 32, "lora_target_modules": "all-linear"}
"""As QLoRA's authors (arXiv 2305.14314) adapt every linear layer; rank and factor as in axolotl's examples/llama-3/lora-1b.yml."""


@dataclass(frozen=True)
class Recipe:
    """`axes`: all but the algorithm; `settings`: fields and options by dotted names; `own`: axes without whose values it is another
    recipe; `source`: where the choices come from."""

    name: str
    axes: Mapping[str, str]
    settings: Mapping[str, Any]
    source: str
    own: tuple[str, ...] = ()


def _recipe(
    name: str,
    axes: tuple[str, str, str],
    settings: Mapping[str, Any],
    source: str,
    own: tuple[str, ...] = (),
) -> Recipe:
    precision, adapter, optimizer = axes
    named = {"precision": precision, "adapter": adapter, "optimizer": optimizer, "offload": "none"}
    return Recipe(name, named, settings, source, own)


RECIPES = (
    _recipe(
        "full",
        ("bf16", "none", "adamw_torch_fused"),
        CHECKPOINTING,
        "transformers' default optimizer, over weights in the bf16 of most checkpoints, as from_pretrained loads them since v5",
        ("adapter",),
    ),
    _recipe(
        "full, 8-bit Adam",
        ("bf16", "none", "adamw_bnb_8bit"),
        CHECKPOINTING,
        "bitsandbytes' 8-bit AdamW (arXiv 2110.02861), transformers' adamw_bnb_8bit",
        ("adapter", "optimizer"),
    ),
    _recipe(
        "GaLore",
        ("bf16", "none", "galore_adamw_8bit_layerwise"),
        {**CHECKPOINTING, "max_grad_norm": 0, "galore.rank": 1024},
        "the authors' run of a 7B model on 24 GB (arXiv 2403.03507): 8 bits, layer by layer, rank 1024",
        ("adapter", "optimizer"),
    ),
    _recipe(
        "LoRA",
        ("bf16", "lora", "adamw_torch_fused"),
        LORA,
        "PEFT's LoRA (arXiv 2106.09685) of every linear layer, AdamW as transformers' default",
    ),
    _recipe(
        "QLoRA",
        ("nf4", "lora", "paged_adamw_8bit"),
        {**LORA, "nf4.double_quant": True},
        "arXiv 2305.14314: NF4, double quantisation, paged optimizer; the optimizer in 8 bits, as many public scripts have it",
        ("precision",),
    ),
)


def asked(recipes: Sequence[Recipe], named: Mapping[str, Sequence[str]]) -> Iterator[Recipe]:
    """Recipes with values of axes that were `named` (all but the algorithm). A recipe keeps its own value where that is among them;
    else it takes each, unless it would be another recipe with it, or other recipes have the precision, adapter or offload."""
    for recipe in recipes:
        choices: list[Sequence[str]] = []
        for axis, own in recipe.axes.items():
            values = named.get(axis, (own,))
            known = axis != "optimizer" and any(one.axes[axis] in values for one in recipes)
            if own in values:
                choices.append((own,))
            else:
                choices.append(() if known or axis in recipe.own else values)
        for chosen in product(*choices):
            yield replace(recipe, axes=dict(zip(recipe.axes, chosen, strict=True)))
