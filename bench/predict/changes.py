"""A cell with other settings.

changed(cell, {"precision": "nf4"})     the cell with another value, and what `auto` stands for decided anew
changed(cell, {"nf4.double_quant": True})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vrambench.methods.axes import AXES
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.workload import PARTS

DECIDED: dict[str, str | None] = {"attention": "auto", "reference": "auto", "learning_rate": None, "group_size": None}
"""Fields that axis values and other fields decide, and the word that leaves it to them."""


def changed(cell: Cell, settings: Mapping[str, Any], *, said: Mapping[str, Any] | None = None) -> Cell:
    """`cell` with other axis values, fields and options (by dotted names). What `auto` and null stood for (DECIDED) is decided
    anew, and so is a sequence's length where a part of it changes. `said`: what was said of fields and
    options that the cell does not use and its new values may (their defaults where that says nothing), and of lengths that it cuts.
    """
    axes = {axis: settings.get(axis, value) for axis, value in cell.axes.items()}
    own = {name: value for name, value in cell.workload.flat().items() if value is not None}
    decided = resolve(cell.axes, own | DECIDED).workload.flat()
    auto = {name: word for name, word in DECIDED.items() if name in own and own[name] == decided[name]}
    workload = {**(said or {}), **own, **auto}
    for name, value in settings.items():
        namespace, _, option = name.partition(".")
        if option:
            workload[namespace] = {**(workload.get(namespace) or {}), option: value}
        elif name not in AXES:
            workload[name] = value
    _leave_lengths(workload, settings, said or {})
    return resolve(axes, workload)


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


def differences(cell: Cell, variant: Cell, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The axes, fields and options in which `variant`, made with `settings`, is another, by name, without those that follow from
    its axis values."""
    before, after = cell.flat(), variant.flat()
    following = {field for value in variant.values.values() for field in value.fields} | {"attention", "learning_rate"}
    following |= {"response_tokens"} if "max_length" in settings else set()
    found = {
        name: value
        for name, value in after.items()
        if value != before.get(name) and not isinstance(value, dict) and value is not None
        if name not in following or name in settings
    }
    return found | {name: value for name, value in settings.items() if "." in name}
