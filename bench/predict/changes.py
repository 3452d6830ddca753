"""What can be changed so that a cell needs less memory, and what each change costs.

changed(cell, {"precision": "nf4"})     the cell with another value, and what `auto` stands for decided anew
CHANGES                                 the table that advise.py tries, cheapest first
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vrambench.methods.axes import AXES
from vrambench.methods.cell import Cell, resolve


@dataclass(frozen=True, eq=False)
class Change:
    """One thing to change. `what`: the axis or field; `settings`: its new value, and what has to go with it; `of`: the
    values that it improves on (every other one, where none is named); `price`: what it costs."""

    what: str
    settings: Mapping[str, Any]
    price: str
    of: tuple[str, ...] = ()


_ADAMW = ("adamw_torch", "adamw_torch_fused")
_FULL_STATE = (*_ADAMW, "galore_adamw")

CHANGES: tuple[Change, ...] = (
    # Cheapest first: what leaves the arithmetic of an update alone and costs only time; then other optimizers, with ever more
    # approximation; then fewer trained weights; then rounded ones; last what waits for the host in every step.
    Change("gradient_checkpointing", {"gradient_checkpointing": True}, "each forward pass is computed twice"),
    Change("batch_size", {}, "half the sequences in a forward pass, twice as many passes"),
    Change(
        "optimizer",
        {"optimizer": "adamw_torch_fused"},
        "nothing: the same step in one kernel, without copies of all parameters",
        ("adamw_torch",),
    ),
    Change("optimizer", {"optimizer": "adamw_bnb_8bit"}, "optimizer state rounded to 8 bits", _FULL_STATE),
    Change("optimizer", {"optimizer": "adafactor"}, "another optimizer, with a factored second moment", _FULL_STATE),
    Change(
        "optimizer",
        {"optimizer": "paged_adamw_8bit"},
        "optimizer state rounded to 8 bits, which the driver moves to the host where it lacks room",
        (*_FULL_STATE, "adamw_bnb_8bit"),
    ),
    Change(
        "optimizer",
        {"optimizer": "galore_adamw_8bit_layerwise", "max_grad_norm": 0},
        "gradients projected to a low rank, rounded state, no clipping, and an SVD now and then",
        (
            *_FULL_STATE,
            "adamw_bnb_8bit",
            "paged_adamw_8bit",
            "adafactor",
            "galore_adamw_8bit",
            "galore_adamw_layerwise",
        ),
    ),
    Change("adapter", {"adapter": "lora"}, "only factors of low rank are trained", ("none",)),
    Change("precision", {"precision": "bf16"}, "weights and updates rounded to bf16", ("fp32", "bf16_amp", "fp16_amp")),
    Change(
        "precision",
        {"precision": "int8"},
        "base weights rounded to 8 bits",
        ("fp32", "bf16", "fp16", "bf16_amp", "fp16_amp"),
    ),
    Change(
        "precision",
        {"precision": "nf4"},
        "base weights rounded to 4 bits",
        ("fp32", "bf16", "fp16", "bf16_amp", "fp16_amp", "int8"),
    ),
    Change(
        "activation_offloading",
        {"activation_offloading": True},
        "what layers save goes to the host and back in every step",
    ),
    Change("offload", {"offload": "zero2_optimizer"}, "optimizer steps on the host's memory and cores", ("none",)),
)


def changed(cell: Cell, settings: Mapping[str, Any], *, flash: bool = True) -> Cell:
    """`cell` with other axis values and fields. What `auto` stood for (attention, reference) is decided anew where the axis
    changes that decides it, and a sequence's length where a part of it does; `flash` as in `resolve`."""
    axes = {axis: settings.get(axis, value) for axis, value in cell.axes.items()}
    workload = cell.workload.flat() | {name: value for name, value in settings.items() if name not in AXES}
    if axes["precision"] != cell.precision and cell.workload.attention == cell.precision_value.attention(cell.workload):
        workload["attention"] = "auto"
    if axes["adapter"] != cell.adapter and cell.workload.reference in ("adapter_off", "copy"):
        workload["reference"] = "auto"
    if "max_length" not in settings and not settings.keys().isdisjoint(("prompt_tokens", "response_tokens")):
        workload["max_length"] = None
    return resolve(axes, workload, flash=flash)


def applies(change: Change, cell: Cell) -> bool:
    if change.what == "batch_size":
        return cell.workload.batch_size % 2 == 0
    if change.what in AXES:
        return cell.axes[change.what] in change.of
    return bool(getattr(cell.workload, change.what) != change.settings[change.what])


def halved(cell: Cell) -> dict[str, int]:
    """The same sequences in each optimizer step, in twice as many passes."""
    workload = cell.workload
    return {
        "batch_size": workload.batch_size // 2,
        "gradient_accumulation_steps": 2 * workload.gradient_accumulation_steps,
    }


def differences(cell: Cell, variant: Cell) -> dict[str, Any]:
    """The axes and fields in which `variant` is another, by name, without those that follow from its axis values."""
    before, after = cell.flat(), variant.flat()
    following = {field for value in variant.values.values() for field in value.fields} | {"attention", "learning_rate"}
    return {
        name: value
        for name, value in after.items()
        if value != before.get(name) and not isinstance(value, dict) and name not in following and value is not None
    }
