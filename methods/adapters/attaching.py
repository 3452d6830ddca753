"""Puts one of PEFT's adapters on a model as the workload says: on which layers, and with weights of which type.

adapted = adapt(model, workload, VeraConfig, r=256)
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import nn

from vrambench.methods.dtypes import DTYPES
from vrambench.methods.errors import ConfigurationError, did_you_mean
from vrambench.methods.workload import Workload

FIELDS = ("lora_target_modules", "lora_modules_to_save", "adapter_dtype", "adapter_weights")
"""The workload's fields that mean the same for every adapter on layers."""
TARGETS = "TRANSFORMERS_MODELS_TO_{}_TARGET_MODULES_MAPPING"
"""PEFT's own choice of layers for a type of adapter, by model type (peft/utils/constants.py)."""


def adapt(
    model: Any, workload: Workload, kind: type, made_on: torch.device = torch.device("cpu"), **settings: Any
) -> nn.Module:
    """PEFT's model around `model`, with an adapter of configuration `kind` that has these `settings` beside the workload's; made on
    the host, as PEFT makes it, and moved. Raises ConfigurationError where a name is that of no layer or module of the model, or
    PEFT refuses."""
    said = common(model, workload, kind)
    if workload.lora_target_modules != "auto":
        check_layers(said.get("target_modules") or (), linear_layers(model))
    try:
        config = kind(**said | settings)
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigurationError(f"adapter: PEFT's {kind.__name__} refuses it: {error}", field="adapter") from error
    return attached(model, workload, config, made_on)


def common(model: Any, workload: Workload, kind: type) -> dict[str, Any]:
    """What FIELDS say, as arguments of `kind`, PEFT's configuration, as far as it takes them. Raises ConfigurationError where a
    name in `lora_modules_to_save` is that of no module."""
    targets = target_modules(model, workload, kind)
    said = {
        "task_type": task_type(model),
        "target_modules": targets,
        "exclude_modules": _no_layers(model) or None if targets == "all-linear" else None,
        "modules_to_save": _modules_to_save(model, workload) or None,
        "fan_in_fan_out": model.config.model_type == "gpt2",
    }
    taken = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in said.items() if name in taken}


def task_type(model: Any) -> str | None:
    """PEFT's word for what `model` does; beside a classifier's adapter it trains a copy of the classifier's head."""
    if type(model).__name__.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    return "CAUSAL_LM" if model.can_generate() else None


def attached(model: Any, workload: Workload, config: Any, device: torch.device) -> nn.Module:
    """PEFT's model around `model`: everything frozen but the adapter, which is of the workload's `adapter_dtype`, and copies of
    `lora_modules_to_save`, which are of their modules' own type. `device`: where the adapter's weights are made, before PEFT moves
    them to the model's. Raises ConfigurationError where PEFT refuses.
    """
    from peft import get_peft_model

    # BOFT compiles with gcc, and where that fails it leaves CXX=gcc to every later compilation.
    with device, warnings.catch_warnings(), mock.patch.dict(os.environ):
        # It compares these names, which are parameters', with those of modules.
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        try:
            with mock.patch(
                "peft.tuners.lora.torchao.is_torchao_available", return_value=False
            ):  # it would be imported
                adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
        except (ImportError, NotImplementedError, TypeError, ValueError) as error:
            raise _not_put(error, workload) from error
    _cast(adapted, DTYPES[workload.adapter_dtype or "fp32"])
    return adapted


def _not_put(error: Exception, workload: Workload) -> ConfigurationError:
    """What PEFT says of layers that it cannot put an adapter on, without the whole of a block of them."""
    named = workload.lora_target_modules
    block = re.match(r"Target module (\w+)\(\n.*\n\) is not supported", str(error), re.DOTALL)
    if block and isinstance(named, str):
        return ConfigurationError(
            f"lora_target_modules: {named!r} takes in a whole {block[1]}, and an adapter goes on single layers: write an "
            "expression that matches these alone",
            field="lora_target_modules",
        )
    return ConfigurationError(f"adapter: PEFT cannot put it on these layers: {error}", field="adapter")


def _cast(adapted: nn.Module, dtype: torch.dtype) -> None:
    """What PEFT's autocast_adapter_dtype casts to fp32 goes to `dtype`: weights that are trained, and what goes with them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    cast_buffers(adapted, dtype)
    its = {each for name, each in adapted.named_parameters() if each.requires_grad and ".modules_to_save." not in name}
    layers = [layer for layer in adapted.modules() if isinstance(layer, BaseTunerLayer)]
    for held in (part for layer in layers for part in layer.modules()):
        if isinstance(held, nn.ParameterDict):
            its |= set(held.parameters())
    for parameter in adapted.parameters():
        if parameter in its and parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def cast_buffers(adapted: nn.Module, dtype: torch.dtype) -> None:
    """What adapters keep in buffers, to `dtype`."""
    from peft.tuners._buffer_dict import BufferDict

    for held in adapted.modules():
        if isinstance(held, BufferDict):
            for name, buffer in list(held.items()):
                if buffer.is_floating_point() and buffer.dtype != dtype:
                    held[name] = buffer.to(dtype)


def target_modules(model: Any, workload: Workload, kind: type) -> list[str] | str | None:
    """What the workload names, as PEFT takes it: a list of names, a regular expression, or `all-linear`; for `auto`, PEFT's own
    choice for this `kind` of adapter, or else all linear layers; None where PEFT chooses in another way."""
    asked = workload.lora_target_modules
    if asked == "auto":
        table = peft_table(kind, TARGETS)
        asked = table.get(model.config.model_type, "all-linear") if table else None
    return asked if asked is None or isinstance(asked, str) else list(asked)


def peft_table(kind: type, name: str) -> Mapping[str, Any]:
    """PEFT's table `name` for adapters of configuration `kind`, by model type; empty where it has none."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import constants

    types = [peft_type for peft_type, config in PEFT_TYPE_TO_CONFIG_MAPPING.items() if config is kind]
    found: Mapping[str, Any] = getattr(constants, name.format(types[0].value.replace("_", "")), {}) if types else {}
    return found


def linear_layers(model: Any) -> list[str]:
    """Paths of the layers that an adapter can be put on."""
    from transformers.pytorch_utils import Conv1D

    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding | Conv1D)]


def check_layers(named: str | Iterable[str], layers: Sequence[str]) -> None:
    """That every name is that of one of `layers`. Raises ConfigurationError."""
    if isinstance(named, str):
        if named != "all-linear" and not any(re.fullmatch(named, path) for path in layers):
            raise ConfigurationError(
                f"lora_target_modules: the regular expression {named!r} matches the whole path of no layer (one is {layers[0]})",
                field="lora_target_modules",
            )
        return
    for name in sorted(named):
        if not names_one(name, layers):
            raise unknown("lora_target_modules", name, "layer", layers)


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
            raise unknown("lora_modules_to_save", name, "module", modules)
        if any(not weight.is_floating_point() for module in its for weight in module.parameters()):
            raise ConfigurationError(
                f"lora_modules_to_save: {name!r} is quantised, and a quantised weight cannot be trained",
                field="lora_modules_to_save",
            )
    return found


def names_one(name: str, paths: Iterable[str]) -> bool:
    """Whether one of `paths` is `name`, or ends with it."""
    return any(path == name or path.endswith("." + name) for path in paths)


def unknown(field: str, name: str, what: str, paths: Iterable[str]) -> ConfigurationError:
    depth = name.count(".")  # a name of several parts is one of several parts
    known = sorted({".".join(path.split(".")[-1 - depth :]) for path in paths} - {""})
    names = [each for each in known if not any(part.isdigit() for part in each.split("."))]
    hint = did_you_mean(name, names)
    return ConfigurationError(
        f"{field}: {name!r} is no {what} of the model{hint} (there are {', '.join(names)})", field=field
    )
