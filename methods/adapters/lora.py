"""LoRA through PEFT: two factors of rank r beside each target layer, y = W x + (alpha / r) B A x, with B = 0 at the
start.

Source: Hu et al., LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vrambench.methods.adapters import Adapter
from vrambench.methods.adapters.attaching import attached, check_layers, common, linear_layers, names_one, unknown
from vrambench.methods.amp import CastPolicy
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.workload import Workload


def attach(model: Any, workload: Workload, **variant: Any) -> nn.Module:
    """PEFT's model around `model`. `variant`: what else PEFT's LoraConfig is told, for adapters that vary LoRA.

    Raises ConfigurationError, about the field, where a name is that of no layer, parameter or module of the model.
    """
    config = lora_config(model, workload, **variant)
    if model.device.type == "meta":
        _fold_without_autocast()
    return attached(model, workload, config, model.device)


def lora_config(model: Any, workload: Workload, **variant: Any) -> Any:
    """PEFT's LoraConfig of the workload, for `model`. Raises ConfigurationError as `attach` does."""
    from peft import LoraConfig

    said = {
        "r": workload.lora_r,
        "lora_alpha": workload.lora_alpha,
        "lora_dropout": workload.lora_dropout,
        "use_rslora": bool(workload.use_rslora),
        "target_parameters": list(workload.lora_target_parameters or ()) or None,
    }
    config = LoraConfig(**said | variant, **common(model, workload, LoraConfig))
    _convert(config, model)
    _check_targets(model, config, workload)
    return config


def _convert(config: Any, model: Any) -> None:
    """Names of experts' layers, as transformers 4 had them, become those of their stacked parameters, as PEFT does it."""
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # PEFT before 0.19 knows no others
        return
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError as error:
        raise ConfigurationError(f"lora_target_modules: {error}", field="lora_target_modules") from error


def _check_targets(model: Any, config: Any, workload: Workload) -> None:
    """That every name is that of a layer, or of a parameter. Raises ConfigurationError."""
    layers = linear_layers(model)
    check_layers(config.target_modules or (), layers)
    parameters, packed = [path for path, _ in model.named_parameters()], _packed(model)
    for name in sorted(config.target_parameters or ()):
        if names_one(name, packed):
            raise _on_packed(name, workload, layers)
        if name in (workload.lora_target_parameters or ()) and not names_one(name, parameters):
            raise unknown("lora_target_parameters", name, "parameter", parameters)


def _packed(model: Any) -> list[str]:
    """Paths of the stacks of experts that are unpacked in every forward pass."""
    parametrized = ((path, getattr(module, "parametrizations", ())) for path, module in model.named_modules())
    return [f"{path}.{name}" for path, names in parametrized for name in names]


def _on_packed(name: str, workload: Workload, layers: Iterable[str]) -> ConfigurationError:
    """PEFT 0.21, tuners/lora/layer.py, ParamWrapper._activate_lora: it wants a gradient of what a parameter is stored as."""
    named = name in (workload.lora_target_parameters or ())
    field = "lora_target_parameters" if named else "lora_target_modules"
    value = name if named else workload.lora_target_modules
    others = sorted({path.rpartition(".")[2] for path in layers if "." in path and "embed" not in path})
    return ConfigurationError(
        f"{field}: {value!r} takes in the experts' {name}, which nf4.quantize_moe_experts packs, and PEFT adapts no packed "
        f"parameter: adapt the other layers ({', '.join(others)}), or leave the experts in 16 bit",
        field=field,
    )


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


LORA = Adapter(
    summary="low-rank factors beside frozen weights (PEFT)",
    attach=attach,
    trains_base=False,
    can_switch_off=True,
    requires=("peft",),
    fields=(
        "lora_r",
        "lora_alpha",
        "use_rslora",
        "lora_dropout",
        "lora_target_modules",
        "lora_target_parameters",
        "lora_modules_to_save",
        "adapter_dtype",
        "adapter_weights",
    ),
)
