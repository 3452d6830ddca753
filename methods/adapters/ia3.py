"""(IA)^3 through PEFT: one vector for each target layer, by which its output is multiplied, y = l * (W x); in feed-forward layers
its input, y = W (l * x). All ones at the start.

Source: Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, arXiv 2205.05638.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator
from torch import nn

from vrambench.methods.adapters import Adapter
from vrambench.methods.adapters.attaching import (
    FIELDS,
    adapt,
    linear_layers,
    names_one,
    peft_table,
    target_modules,
    unknown,
)
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload

FEEDFORWARD = "TRANSFORMERS_MODELS_TO_{}_FEEDFORWARD_MODULES_MAPPING"


def _names(value: object) -> object:
    """The names of `down_proj,up_proj`, which the command line takes for a list."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) and value != "auto" else value


class IA3Options(Options):
    """PEFT's names and defaults (IA3Config)."""

    namespace: ClassVar[str] = "ia3"
    feedforward_modules: Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_names)] = "auto"
    """Which target layers have the vector on their input: `auto` (PEFT's own choice for the architecture, such as down_proj for
    Llama, as far as they are targets), or a list of modules' names."""


def attach(model: Any, workload: Workload) -> nn.Module:
    """PEFT's model around `model`. Raises ConfigurationError where a name is that of no layer, or PEFT knows no feed-forward layers
    of the architecture and none are named."""
    from peft import IA3Config

    return adapt(model, workload, IA3Config, feedforward_modules=_feedforward(model, workload, IA3Config))


def _feedforward(model: Any, workload: Workload, kind: type) -> list[str]:
    options: IA3Options = workload.of(IA3Options)
    layers = linear_layers(model)
    if options.feedforward_modules == "auto":
        known = peft_table(kind, FEEDFORWARD)
        if model.config.model_type not in known:
            raise ConfigurationError(
                f"ia3.feedforward_modules: PEFT knows none of {model.config.model_type}; name those targets whose input is "
                "multiplied ([] for none)",
                field="ia3.feedforward_modules",
            )
        targets = target_modules(model, workload, kind)
        names = known[model.config.model_type]
        return [name for name in names if targets is None or isinstance(targets, str) or name in targets]
    for name in options.feedforward_modules:
        if not names_one(name, layers):
            raise unknown("ia3.feedforward_modules", name, "layer", layers)
    return list(options.feedforward_modules)


IA3 = Adapter(
    summary="a vector beside each target layer, by which its output or input is multiplied (PEFT)",
    attach=attach,
    trains_base=False,
    can_switch_off=True,
    bare_parameters=True,
    trains_linear=False,
    widens=frozenset({8, 4}),
    merges_quantized=False,
    requires=("peft",),
    options=IA3Options,
    fields=FIELDS,
)
