"""LoRA through PEFT: two factors of rank r beside each target layer, y = W x + (alpha / r) B A x, with B = 0 at the
start.

Source: Hu et al., LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from vrambench.methods.adapters import Adapter
from vrambench.methods.amp import CastPolicy
from vrambench.methods.dtypes import DTYPES
from vrambench.methods.errors import ConfigurationError, did_you_mean
from vrambench.methods.workload import Workload

# What `auto` stands for: every linear layer of a block where models of an architecture are usually trained so, else
# PEFT's own choice (query_key_value for GPT-NeoX, c_attn for GPT-2, query and value for OPT).
GATED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
AUTO_TARGETS: dict[str, tuple[str, ...]] = {
    "llama": GATED,
    "mistral": GATED,
    "qwen2": GATED,
    "qwen3": GATED,
    "gemma": GATED,
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj"),
}


def attach(model: Any, workload: Workload, **variant: Any) -> nn.Module:
    """PEFT's model around `model`: everything frozen but the factors, which are of the workload's `adapter_dtype`. `variant`: what
    else PEFT's LoraConfig is told, for adapters that vary LoRA.

    Raises ConfigurationError, about `lora_target_modules`, where a target names no layer of the model.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM" if model.can_generate() else None,
        r=workload.lora_r,
        lora_alpha=workload.lora_alpha,
        lora_dropout=workload.lora_dropout,
        target_modules=targets(model, workload.lora_target_modules or "auto"),
        fan_in_fan_out=model.config.model_type == "gpt2",
        **variant,
    )
    dtype = DTYPES[workload.adapter_dtype or "fp32"]
    if model.device.type == "meta":
        _fold_without_autocast()
    with model.device:  # where the factors are made; PEFT would make them on the host and move them
        try:
            adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
        except ValueError as error:
            raise ConfigurationError(
                f"adapter: PEFT cannot put it on these layers: {error}", field="adapter"
            ) from error
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    return adapted


@functools.cache
def _fold_without_autocast() -> None:
    """PEFT folds the factors of experts (parameters of a stack) with torch.autocast off, which torch does not have for meta: there
    the simulated autocast is off."""
    from peft.tuners.lora import layer

    proxy = getattr(layer, "_LoraFactorsProxy", None)  # PEFT before 0.20 has none, and folds without autocast
    if proxy is None:
        return
    fold = proxy.forward

    def forward(self: Any, weight: torch.Tensor) -> torch.Tensor:
        if not weight.is_meta:
            return fold(self, weight)
        with CastPolicy(None):
            return torch.baddbmm(weight, self.lhs, self.rhs, alpha=self.scaling)

    proxy.forward = forward


def targets(model: Any, asked: str | tuple[str, ...]) -> list[str] | str:
    """PEFT's `target_modules` for `auto`, `all-linear`, or names (of modules, or the ends of their paths)."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
    from transformers.pytorch_utils import Conv1D

    if asked == "all-linear":
        return "all-linear"
    if asked == "auto":
        architecture = model.config.model_type
        chosen = AUTO_TARGETS.get(architecture) or PEFT_TARGETS.get(architecture)
        if chosen is None:
            raise ConfigurationError(
                f"lora_target_modules: 'auto' knows no layers of {architecture!r}; name them, or use 'all-linear'",
                field="lora_target_modules",
            )
        return chosen if isinstance(chosen, str) else list(chosen)
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding | Conv1D)]
    for name in asked:
        if not any(path == name or path.endswith("." + name) for path in layers):
            known = sorted({path.rpartition(".")[2] for path in layers})
            raise ConfigurationError(
                f"lora_target_modules: {name!r} is no layer of the model{did_you_mean(name, known)} "
                f"(there are {', '.join(known)})",
                field="lora_target_modules",
            )
    return list(asked)


LORA = Adapter(
    summary="low-rank factors beside frozen weights (PEFT)",
    attach=attach,
    trains_base=False,
    low_rank=True,
    can_switch_off=True,
    requires=("peft",),
    fields=("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "adapter_dtype"),
)
