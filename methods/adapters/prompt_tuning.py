"""Prompt tuning through PEFT: embeddings of virtual tokens before every sequence are all that is trained.

Every forward pass is longer by them. PEFT puts them before the model; here policies are called below their head, so they are put
before the trunk, in the same way, and what the trunk gives for them is left out again: `hooked`. In a rollout they come with the
prompt, and stay in the cache.

Source: Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning, arXiv 2104.08691.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from vrambench.methods.adapters import Adapter
from vrambench.methods.adapters.attaching import attached
from vrambench.methods.dtypes import DTYPES
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.kv_cache import ARGUMENTS
from vrambench.methods.models.parts import first_position, trunk
from vrambench.methods.registry import Options
from vrambench.methods.workload import Count, Workload


class PromptTuningOptions(Options):
    """PEFT's names and defaults (PromptTuningConfig), which has none for num_virtual_tokens."""

    namespace: ClassVar[str] = "prompt_tuning"
    num_virtual_tokens: Count = 20
    """Tokens before every sequence whose embeddings are trained."""
    prompt_tuning_init: Literal["RANDOM", "SAMPLE_VOCAB"] = "RANDOM"
    """What they begin as: random numbers, or the embeddings of random tokens."""


def attach(model: Any, workload: Workload) -> nn.Module:
    """PEFT's model around `model`, whose trunk takes the virtual tokens."""
    from peft import PromptTuningConfig

    options: PromptTuningOptions = workload.of(PromptTuningOptions)
    return hooked(model, workload, PromptTuningConfig(task_type=task_of(model), **options.model_dump()))


def task_of(model: Any) -> str:
    """What PEFT is told that `model` is for, which it must know for virtual tokens."""
    return "CAUSAL_LM" if model.can_generate() else "FEATURE_EXTRACTION"


def hooked(model: Any, workload: Workload, config: Any) -> nn.Module:
    """PEFT's model around `model` for a `config` of virtual tokens, whose trunk takes them. Raises ConfigurationError where the
    architecture takes no embeddings."""
    decoder: Any = trunk(model)
    if "inputs_embeds" not in inspect.signature(decoder.forward).parameters:
        raise ConfigurationError(
            f"adapter: virtual tokens are given as embeddings, and {model.config.model_type} takes ids alone",
            field="adapter",
        )
    adapted: Any = attached(model, workload, config, torch.device("cpu"))
    adapted.prompt_encoder.to(DTYPES[workload.adapter_dtype or "fp32"])
    count, first = config.num_virtual_tokens, first_position(model.config)
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
    return adapted


PROMPT_TUNING = Adapter(
    summary="embeddings of virtual tokens before every sequence (PEFT)",
    attach=attach,
    trains_base=False,
    can_switch_off=True,
    merges=False,
    virtual_tokens=lambda workload: workload.of(PromptTuningOptions).num_virtual_tokens,
    requires=("peft",),
    options=PromptTuningOptions,
    fields=("adapter_dtype",),
)
