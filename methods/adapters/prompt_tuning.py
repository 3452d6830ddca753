"""Prompt tuning through PEFT: embeddings of virtual tokens before every sequence are all that is trained.

Every forward pass is longer by them (models/virtual.py). In a rollout they come with the prompt, and stay in the cache.

Source: Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning, arXiv 2104.08691.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import nn

from vrambench.methods.adapters import Adapter
from vrambench.methods.adapters.attaching import attached, task_type
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
    """PEFT's model around `model`."""
    from peft import PromptTuningConfig

    options: PromptTuningOptions = workload.of(PromptTuningOptions)
    config = PromptTuningConfig(task_type=task_of(model), **options.model_dump())
    return attached(model, workload, config, torch.device("cpu"))


def task_of(model: Any) -> str:
    """What PEFT is told that `model` is for, which it must know for virtual tokens."""
    return task_type(model) or "FEATURE_EXTRACTION"


PROMPT_TUNING = Adapter(
    summary="embeddings of virtual tokens before every sequence (PEFT)",
    attach=attach,
    trains_base=False,
    trains_linear=False,
    can_switch_off=True,
    merges=False,
    virtual_tokens=lambda workload: workload.of(PromptTuningOptions).num_virtual_tokens,
    requires=("peft",),
    options=PromptTuningOptions,
    fields=("adapter_dtype",),
)
