"""The parts of a transformers model, whatever is wrapped around it: trunk, head, stacks of layers.

hidden = trunk(policy)(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
logits = head(policy)(hidden)                                      the same as policy(tokens).logits
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

DEPTH = "full_num_hidden_layers"
"""Where a shortened model's configuration keeps how many layers there are."""


def freeze(model: nn.Module) -> nn.Module:
    """The same model, with nothing in it trained."""
    return model.requires_grad_(False)


def trunk(model: nn.Module) -> nn.Module:
    """The model below its output head: gives `last_hidden_state` [B,T,hidden]. Adapters inside it stay at work."""
    whole = unwrapped(model)
    if whole.base_model is not whole:
        return whole.base_model
    return getattr(
        whole, "model", whole
    )  # a trunk alone; and Llama 4, which names another part as its base than it has


def placed(trunk: nn.Module, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """`positions` [1,T] as an argument of `trunk`, where it takes any: ALiBi and states of fixed size know them themselves."""
    return {"position_ids": positions} if "position_ids" in inspect.signature(trunk.forward).parameters else {}


def head(model: nn.Module) -> nn.Module:
    """The output head: hidden states [...,hidden] to logits [...,vocabulary]."""
    return unwrapped(model).get_output_embeddings()


def as_head_wants(states: torch.Tensor, output: nn.Module) -> torch.Tensor:
    """fp32 states in the type of a head of half precision, as Mamba casts its residual stream; all others as they are."""
    weight = getattr(output, "weight", None)
    if isinstance(weight, torch.Tensor) and states.dtype == torch.float32:
        return states.to(weight.dtype) if weight.dtype in (torch.float16, torch.bfloat16) else states
    return states


def heads(module: nn.Module) -> set[nn.Module]:
    """The output heads of every transformers model in `module`."""
    models = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    found = [model.get_output_embeddings() for model in models]
    return {part for part in found if part is not None}


class LayerStack(NamedTuple):
    """A model's equal layers, in order; `depth` is how many the model really has where fewer are built."""

    layers: list[nn.Module]
    depth: int


def layer_stacks(module: nn.Module) -> list[LayerStack]:
    """The stacks of layers of every transformers model in `module`, each once."""
    stacks: dict[nn.ModuleList, LayerStack] = {}
    for model in module.modules():
        if isinstance(model, PreTrainedModel):
            config = model.config.get_text_config()
            count = config.num_hidden_layers
            for part in model.modules():
                if isinstance(part, nn.ModuleList) and len(part) == count:
                    stacks.setdefault(part, LayerStack(list(part), getattr(config, DEPTH, count)))
    return list(stacks.values())


@contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Gradient checkpointing off, for rollouts: transformers drops the key-value cache of a training model that has it
    on."""
    active = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in active:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in active:
            module.gradient_checkpointing = True  # type: ignore[assignment]


def unwrapped(model: Any) -> Any:
    """The transformers model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
