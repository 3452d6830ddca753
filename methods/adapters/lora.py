"""LoRA through PEFT: two factors of rank r beside each target layer, y = W x + (alpha / r) B A x, with B = 0 at the
start.

Source: Hu et al., LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vrambench.methods.adapters import Adapter
from vrambench.methods.amp import CastPolicy
from vrambench.methods.dtypes import DTYPES
from vrambench.methods.errors import ConfigurationError, did_you_mean
from vrambench.methods.workload import Workload


def attach(model: Any, workload: Workload, **variant: Any) -> nn.Module:
    """PEFT's model around `model`: everything frozen but the factors, which are of the workload's `adapter_dtype`, and copies of
    `lora_modules_to_save`, which are of their modules' own type. `variant`: what else PEFT's LoraConfig is told, for adapters that
    vary LoRA.

    Raises ConfigurationError, about the field, where a name is that of no layer, parameter or module of the model.
    """
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = lora_config(model, workload, **variant)
    if model.device.type == "meta":
        _fold_without_autocast()
    with (
        model.device,
        warnings.catch_warnings(),
    ):  # where the factors are made; PEFT would make them on the host and move them
        # It compares these names, which are parameters', with those of modules.
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        try:
            adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
        except ValueError as error:
            raise ConfigurationError(
                f"adapter: PEFT cannot put it on these layers: {error}", field="adapter"
            ) from error
    dtype = DTYPES[workload.adapter_dtype or "fp32"]
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            for parameter in layer.parameters():
                if parameter.requires_grad and parameter.dtype != dtype:
                    parameter.data = parameter.data.to(dtype)
    return adapted


def lora_config(model: Any, workload: Workload, **variant: Any) -> Any:
    """PEFT's LoraConfig of the workload, for `model`. Raises ConfigurationError as `attach` does."""
    from peft import LoraConfig

    targets = _target_modules(model, workload)
    config = LoraConfig(
        task_type=_task_type(model),
        r=workload.lora_r,
        lora_alpha=workload.lora_alpha,
        lora_dropout=workload.lora_dropout,
        use_rslora=bool(workload.use_rslora),
        target_modules=targets,
        exclude_modules=_no_layers(model) or None if targets == "all-linear" else None,
        target_parameters=list(workload.lora_target_parameters or ()) or None,
        modules_to_save=_modules_to_save(model, workload) or None,
        fan_in_fan_out=model.config.model_type == "gpt2",
        **variant,
    )
    _convert(config, model)
    _check_targets(model, config, workload)
    return config


def _task_type(model: Any) -> str | None:
    """PEFT's word for what `model` does; beside a classifier's adapter it trains a copy of the classifier's head."""
    if type(model).__name__.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    return "CAUSAL_LM" if model.can_generate() else None


def _target_modules(model: Any, workload: Workload) -> list[str] | str:
    """What the workload names, as PEFT takes it: a list of names, a regular expression, or `all-linear`."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS

    asked = workload.lora_target_modules
    if asked == "auto":
        asked = PEFT_TARGETS.get(model.config.model_type, "all-linear")
    return asked if isinstance(asked, str) else list(asked or ())


def _no_layers(model: Any) -> list[str]:
    """Paths of modules that are linear layers by class alone: routers, which give more than their output, and products by groups.
    PEFT counts them among all linear layers, and an adapter on them ends in an error."""
    linear = ((path, type(module).__name__) for path, module in model.named_modules() if isinstance(module, nn.Linear))
    return [path for path, kind in linear if "Router" in kind or "GroupedLinear" in kind]


def _modules_to_save(model: Any, workload: Workload) -> list[str]:
    """The workload's `lora_modules_to_save`; of a model without a head, those that it has."""
    modules = dict(model.named_modules())
    found = []
    for name in workload.lora_modules_to_save or ():
        its = [module for path, module in modules.items() if path.endswith(name)]  # as PEFT looks for them
        if its:
            found.append(name)
        elif model.can_generate():
            raise _unknown("lora_modules_to_save", name, "module", modules)
        if any(not weight.is_floating_point() for module in its for weight in module.parameters()):
            raise ConfigurationError(
                f"lora_modules_to_save: {name!r} is quantised, and a quantised weight cannot be trained",
                field="lora_modules_to_save",
            )
    return found


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
    from transformers.pytorch_utils import Conv1D

    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding | Conv1D)]
    named = config.target_modules
    if isinstance(named, str):
        if named != "all-linear" and not any(re.fullmatch(named, path) for path in layers):
            raise ConfigurationError(
                f"lora_target_modules: the regular expression {named!r} matches the whole path of no layer (one is {layers[0]})",
                field="lora_target_modules",
            )
    else:
        for name in sorted(named):
            if not _names_one(name, layers):
                raise _unknown("lora_target_modules", name, "layer", layers)
    parameters, packed = [path for path, _ in model.named_parameters()], _packed(model)
    for name in sorted(config.target_parameters or ()):
        if _names_one(name, packed):
            raise _on_packed(name, workload, layers)
        if name in (workload.lora_target_parameters or ()) and not _names_one(name, parameters):
            raise _unknown("lora_target_parameters", name, "parameter", parameters)


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


def _names_one(name: str, paths: Iterable[str]) -> bool:
    """Whether one of `paths` is `name`, or ends with it."""
    return any(path == name or path.endswith("." + name) for path in paths)


def _unknown(field: str, name: str, what: str, paths: Iterable[str]) -> ConfigurationError:
    known = sorted({path.rpartition(".")[2] for path in paths} - {""})
    names = [each for each in known if not each.isdigit()]
    hint = did_you_mean(name, names)
    return ConfigurationError(
        f"{field}: {name!r} is no {what} of the model{hint} (there are {', '.join(names)})", field=field
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
    low_rank=True,
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
