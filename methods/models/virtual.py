"""Virtual tokens before a model's trunk.

    put_before_trunk(adapted)                   from here on, the trunk takes them, and gives nothing for them

PEFT puts them before the whole model; policies are called below their head. They are put there in the same way (PEFT 0.21,
peft_model.py: PeftModelForCausalLM.forward), and what the trunk gives for them is left out again. Once they are in a cache,
positions alone are shifted.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.parts import ARGUMENTS, first_position, trunk, virtual_tokens


def put_before_trunk(adapted: Any) -> None:
    """Where PEFT's model `adapted` has virtual tokens, its trunk takes them, unless the adapter is off. Raises ConfigurationError
    where the architecture takes no embeddings."""
    if not virtual_tokens(adapted):
        return
    decoder: Any = trunk(adapted)
    if "inputs_embeds" not in inspect.signature(decoder.forward).parameters:
        kind = decoder.config.model_type
        raise ConfigurationError(
            f"adapter: virtual tokens are given as embeddings, and {kind} takes ids alone", field="adapter"
        )
    count, first = virtual_tokens(adapted), first_position(decoder.config)
    pending: list[bool] = []

    def before(module: nn.Module, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        tokens = given.get("input_ids")
        pending.append(False)
        if adapted._adapters_disabled or tokens is None:  # PEFT's own forward pass gives embeddings
            return args, given
        cache = next((given[name] for name in ARGUMENTS if given.get(name) is not None), None)
        if cache is not None and cache.get_seq_length():  # they are in the cache
            return args, given | ({"position_ids": given["position_ids"] + count} if "position_ids" in given else {})
        pending[-1] = True
        embedded = adapted.word_embeddings(tokens)
        prompt = adapted.get_prompt(batch_size=len(tokens)).to(embedded.dtype)
        changed = {"input_ids": None, "inputs_embeds": torch.cat((prompt, embedded), dim=1)}
        if "position_ids" in given:
            length = count + tokens.shape[1]
            changed["position_ids"] = torch.arange(first, first + length, device=tokens.device)[None]
        if given.get("attention_mask") is not None:
            mask = given["attention_mask"]
            changed["attention_mask"] = torch.cat((mask.new_ones((len(mask), count)), mask), dim=1)
        return args, given | changed

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        if pending.pop():
            output.last_hidden_state = output.last_hidden_state[:, count:]
        return output

    decoder.register_forward_pre_hook(before, with_kwargs=True)
    decoder.register_forward_hook(after)
