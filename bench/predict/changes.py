"""What can be changed so that a cell needs less memory, and what each change costs.

changed(cell, {"precision": "nf4"})     the cell with another value, and what `auto` stands for decided anew
changed(cell, {"nf4.double_quant": True})
CHANGES                                 the table that advise.py tries, cheapest first
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vrambench.bench.plan.traits import packs_experts, quantised_layers, stacked_weights
from vrambench.methods.axes import AXES
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.workload import PARTS

DECIDED: dict[str, str | None] = {"attention": "auto", "reference": "auto", "learning_rate": None, "group_size": None}
"""Fields that axis values and other fields decide, and the word that leaves it to them."""


@dataclass(frozen=True, eq=False)
class Change:
    """One thing to change. `what`: the axis, field or option; `settings`: its new value, and what has to go with it; `of`: the
    values that it improves on (every other one, where none is named); `price`: what it costs."""

    what: str
    settings: Mapping[str, Any]
    price: str
    of: tuple[str, ...] = ()


_ADAMW = ("adamw_torch", "adamw_torch_fused")
_FULL_STATE = (*_ADAMW, "galore_adamw")

PACKED = "nf4.quantize_moe_experts"

CHANGES: tuple[Change, ...] = (
    # Cheapest first: what leaves the arithmetic of an update alone and costs only time; then other optimizers, with ever more
    # approximation; then fewer trained weights; then rounded ones; last what waits for the host in every step.
    Change(
        "loss",
        {"loss": "chunked_nll"},
        "logits are made a chunk at a time and twice, from a copy of the head in fp32",
        ("scored", "selective", "nll", "nll_4_46", "nll_4_45"),
    ),
    Change("gradient_checkpointing", {"gradient_checkpointing": True}, "each forward pass is computed twice"),
    Change(
        "micro_rollout_batch_size", {}, "a quarter of the responses is generated at a time, in four times as many steps"
    ),
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
    Change(
        PACKED,
        {PACKED: True},
        "experts rounded to 4 bits as well, without adapters on them, and unpacked in every pass",
    ),
    Change("offload", {"offload": "zero2_optimizer"}, "optimizer steps on the host's memory and cores", ("none",)),
)


def changed(
    cell: Cell, settings: Mapping[str, Any], *, flash: bool = True, said: Mapping[str, Any] | None = None
) -> Cell:
    """`cell` with other axis values, fields and options (by dotted names). What `auto` and null stood for (DECIDED) is decided
    anew, and so is a sequence's length where a part of it changes; `flash` as in `resolve`. `said`: what was said of fields and
    options that the cell does not use and its new values may (their defaults where that says nothing), and of lengths that it cuts.
    """
    axes = {axis: settings.get(axis, value) for axis, value in cell.axes.items()}
    own = {name: value for name, value in cell.workload.flat().items() if value is not None}
    decided = resolve(cell.axes, own | DECIDED, flash=flash).workload.flat()
    auto = {name: word for name, word in DECIDED.items() if name in own and own[name] == decided[name]}
    workload = {**(said or {}), **own, **auto}
    for name, value in settings.items():
        namespace, _, option = name.partition(".")
        if option:
            workload[namespace] = {**(workload.get(namespace) or {}), option: value}
        elif name not in AXES:
            workload[name] = value
    _leave_lengths(workload, settings, said or {})
    return resolve(axes, workload, flash=flash)


def _leave_lengths(workload: dict[str, Any], settings: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Takes out of a changed cell's `workload` what was decided of its sequences' lengths and `settings` decide anew."""
    if "max_length" in settings and "lengths" not in settings and "lengths" in said:
        workload["lengths"] = said["lengths"]  # the cell's own are cut
    if workload.get("lengths") is not None:
        left = {*PARTS, *(("max_length",) if "lengths" in settings and workload["packing"] == "none" else ())}
    elif "max_length" in settings:
        left = {"response_tokens"}
        workload["prompt_tokens"] = min(workload["prompt_tokens"], max(1, settings["max_length"] - 1))
    else:
        left = {"max_length"}
    for name in left - settings.keys():
        workload.pop(name, None)


def applies(change: Change, cell: Cell) -> bool:
    if change.what == "batch_size":
        return cell.workload.batch_size % 2 == 0
    if change.what == "micro_rollout_batch_size":
        return (cell.workload.group_size or 1) > 1 and at_a_time(cell) > 1
    if change.what == PACKED:
        return not packs_experts(cell) and stacked_weights(cell.workload.model) > 0
    now = cell.axes[change.what] if change.what in AXES else getattr(cell.workload, change.what)
    return now in change.of if change.of else bool(now != change.settings[change.what])


def halved(cell: Cell) -> dict[str, int]:
    """The same sequences in each optimizer step, in twice as many passes."""
    workload = cell.workload
    return {
        "batch_size": workload.batch_size // 2,
        "gradient_accumulation_steps": 2 * workload.gradient_accumulation_steps,
    }


def at_a_time(cell: Cell) -> int:
    """How many responses are generated together."""
    work = cell.workload
    return work.micro_rollout_batch_size or (work.rollout_batch or 0) * (work.group_size or 1)


def quartered(cell: Cell) -> dict[str, int]:
    """A quarter of them."""
    return {"micro_rollout_batch_size": -(-at_a_time(cell) // 4)}


def beside_packed(variant: Cell) -> dict[str, Any]:
    """What has to go with packed experts in `variant`: adapters on linear layers alone, by their names."""
    if variant.workload.lora_target_modules != "all-linear":
        return {}
    return {"lora_target_modules": quantised_layers(variant.workload.model)}


def differences(cell: Cell, variant: Cell, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The axes, fields and options in which `variant`, made with `settings`, is another, by name, without those that follow from
    its axis values."""
    before, after = cell.flat(), variant.flat()
    following = {field for value in variant.values.values() for field in value.fields} | {"attention", "learning_rate"}
    found = {
        name: value
        for name, value in after.items()
        if value != before.get(name) and not isinstance(value, dict) and value is not None
        if name not in following or name in settings
    }
    return found | {name: value for name, value in settings.items() if "." in name}
