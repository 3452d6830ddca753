"""Any other adapter of PEFT by its configuration's name, `adapter: peft:FourierFTConfig`, with that configuration's fields as
options, under `peft`, and PEFT's defaults.

What several adapters share is said by the workload's own fields (`lora_target_modules`, `lora_modules_to_save`, `adapter_dtype`).
PEFT's defaults for large models may not fit small ones; then PEFT's own words say so.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import create_model
from torch import nn

from vrambench.methods.adapters import Adapter, named_by_number, valueless
from vrambench.methods.adapters.attaching import FIELDS, adapt, attached
from vrambench.methods.adapters.prompt_tuning import task_of
from vrambench.methods.dtypes import DTYPES
from vrambench.methods.errors import ConfigurationError, UnknownValue
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload

PREFIX = "peft:"
BY_NAME = {"IA3": "ia3", "AdaLora": "adalora", "Vera": "vera", "OFT": "oft", "PromptTuning": "prompt_tuning"}
"""Types that are values of the axis."""
REFUSED = {
    "CPT": "has a loss of its own beside virtual tokens",
    "Cartridge": "gives every layer keys and values of tokens that nobody sees, where a rollout has its cache",
    "MultitaskPromptTuning": "wants to know each sequence's task, and sequences have none here",
    "Poly": "wants to know each sequence's task, and sequences have none here",
    "PrefixTuning": "gives every layer keys and values of tokens that nobody sees, where a rollout has its cache",
    "Shadow": "is a second model that works in a forward pass around the whole first one, and policies are called below their head",
    "XLora": "mixes adapters that were trained before",
}
"""Types that train nothing here, and why, as words that follow their name."""
UNMERGED = ("Beft", "Lily", "PromptEncoder", "AdaptionPrompt")
"""Types that PEFT merges into no weights, or only into biases."""
MERGED_QUANTISED = ("Lora", "BOFT", "Miss", "Shira")
"""Types that PEFT merges into int8 and 4-bit weights alike, unpacked for it and quantised again; others fail, or in one of both."""
PROJECTED = ("Pvera", "RandLora")
"""Types with matrices in buffers, as VeRA has them."""
OUTSIDE_LAYERS = ("TinyLora",)
"""Types that have something of each layer's own outside the layers."""
IN_MODULES = ("Lora", "LNTuning", "PromptEncoder")
"""Types whose parameters are in modules that are called; most others have dictionaries of them."""
NEEDED: Mapping[str, tuple[str, ...]] = {"AdaptionPrompt": ("adapter_len", "adapter_layers")}
"""Options that PEFT has no default for, and fails without."""
TAKEN = frozenset(
    {
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
        "target_modules", "exclude_modules", "modules_to_save", "fan_in_fan_out",
    }
)  # fmt: skip
"""Fields of configurations that are no options: what the workload's fields say, and what is PEFT's own."""
KEEP_BASE = (True, False, "gaussian", "orthogonal", "eva")
"""Values of LoRA's init_lora_weights that leave the base's weights as they are."""


class PeftOptions(Options):
    """The fields of one of PEFT's configurations."""

    namespace: ClassVar[str] = "peft"


@functools.cache
def adapter_of(name: str) -> Adapter:
    """The adapter of PEFT's configuration `name`. Raises ConfigurationError where there is none, or it trains nothing here."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {kind.__name__: kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    stem = name.removesuffix("Config")
    if name not in known:
        raise UnknownValue("adapter", PREFIX + name, [PREFIX + one for one in known])
    if stem in BY_NAME:
        raise ConfigurationError(f"adapter: {PREFIX}{name} is adapter {BY_NAME[stem]}", field="adapter")
    if stem in REFUSED:
        raise ConfigurationError(f"adapter: {PREFIX}{name} {REFUSED[stem]}", field="adapter")
    kind: Any = known[name]
    options = _options(kind)
    virtual = stem == "PromptEncoder"
    return Adapter(
        summary=f"PEFT's {name}",
        attach=functools.partial(_attach_virtual if virtual else _attach, kind=kind, options=options),
        trains_base=False,
        can_switch_off=True,
        changes_base=functools.partial(_changes_base, options=options),
        bare_parameters=stem not in IN_MODULES,
        trains_linear=stem == "Lora",
        merges=stem not in UNMERGED,
        merges_quantized=stem in MERGED_QUANTISED,
        projects_by_buffers=stem in PROJECTED,
        virtual_tokens=functools.partial(_virtual_tokens, options=options) if virtual else lambda workload: 0,
        requires=("peft",),
        uneven=functools.partial(_uneven, stem=stem, options=options),
        workspaces=valueless.WORKSPACES.get(stem, {}),
        unmodelled=lambda workload: valueless.unmodelled(stem, _said(workload, options)),
        options=options,
        fields=("adapter_dtype",) if virtual else FIELDS,
    )


def _options(kind: type) -> type[PeftOptions]:
    """An option for each field of `kind` that is none of TAKEN, with PEFT's default as a file has it."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name not in TAKEN:
            made = None if field.default_factory is dataclasses.MISSING else field.default_factory()
            default = made if field.default is dataclasses.MISSING else field.default
            plain = default.value if isinstance(default, enum.Enum) else default
            fields[field.name] = (Any, plain if isinstance(plain, str | int | float | list | dict | None) else None)
    made_class: type[PeftOptions] = create_model(f"{kind.__name__}Options", __base__=PeftOptions, **fields)
    return made_class


def _said(workload: Workload, options: type[PeftOptions]) -> dict[str, Any]:
    """What is not as PEFT has it by itself."""
    usual = options().model_dump()
    return {name: value for name, value in workload.of(options).model_dump().items() if value != usual[name]}


def _attach(model: Any, workload: Workload, kind: type, options: type[PeftOptions]) -> nn.Module:
    name, stem = kind.__name__, kind.__name__.removesuffix("Config")
    simulated = model.device.type == "meta"
    if simulated and stem in valueless.REFUSED:
        raise ConfigurationError(
            f"adapter: {PREFIX}{name} cannot be predicted: {valueless.REFUSED[stem]}: `vrambench run` measures it",
            field="adapter",
        )
    said = _said(workload, options)
    missing = [f"peft.{each}" for each in NEEDED.get(stem, ()) if said.get(each) is None]
    if missing:
        raise ConfigurationError(
            f"adapter: {PREFIX}{name} needs {' and '.join(missing)}, which PEFT has no default for", field="adapter"
        )
    _check_type(model, workload, stem)
    # LoRA's factors may be made from the base's weights.
    made_on = model.device if name == "LoraConfig" else torch.device("cpu")
    adapted = adapt(model, workload, kind, made_on, **said)
    if simulated:
        valueless.answered(adapted, stem)
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise ConfigurationError(f"adapter: {PREFIX}{name} trains nothing with these settings", field="adapter")
    return adapted


def _check_type(model: Any, workload: Workload, stem: str) -> None:
    """That layers which refuse other types than their own get their own. Raises ConfigurationError."""
    dtype = DTYPES[workload.adapter_dtype or "fp32"]
    takes_any = any(not each.is_floating_point() for each in model.parameters())  # quantised layers cast their inputs
    gives = {"LNTuning": "norms", "AdaptionPrompt": None if takes_any else "prompts"}.get(stem)
    if gives and dtype != model.dtype and workload.autocast in (None, "none"):
        raise ConfigurationError(
            f"adapter_dtype: {gives} in {dtype} give that to layers in {model.dtype}, which refuse it: take the model's type, or "
            "autocast",
            field="adapter_dtype",
        )


def _uneven(workload: Workload, stem: str, options: type[PeftOptions]) -> bool:
    """Where options choose layers (AdaptionPrompt's always do), or give some of them settings of their own, too."""
    said = {name for name, value in _said(workload, options).items() if value is not None and value != {}}
    chooses = {"layers_to_transform", "adapter_layers"} & said or any(name.endswith("_pattern") for name in said)
    return stem in OUTSIDE_LAYERS or bool(chooses) or named_by_number(workload)


def _attach_virtual(model: Any, workload: Workload, kind: Any, options: type[PeftOptions]) -> nn.Module:
    count = {"num_virtual_tokens": _virtual_tokens(workload, options)}
    config = kind(task_type=task_of(model), **_said(workload, options) | count)
    return attached(model, workload, config, torch.device("cpu"))


def _virtual_tokens(workload: Workload, options: type[PeftOptions]) -> int:
    """As many as are said; without, 20, as for prompt tuning."""
    return int(getattr(workload.of(options), "num_virtual_tokens") or 20)  # noqa: B009 - made with the class


def _changes_base(workload: Workload, options: type[PeftOptions]) -> bool:
    """LoRA's factors begin as parts of the base's weights, which lose them (PiSSA and others)."""
    return getattr(workload.of(options), "init_lora_weights", True) not in KEEP_BASE
