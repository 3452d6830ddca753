"""What can be asked for, as records of texts: models, cards, fields, axis values and rules. docs/config.md has the same as tables.

    LISTS["cards"]()        [{"name": "rtx-3090", "usable": "23.68 GiB", ...}, ...]

Models, fields and cards are told without torch.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from vrambench.methods.cards import CARDS
from vrambench.methods.workload import FIELDS, Workload
from vrambench.reports.units import size

Record = dict[str, str]


def models() -> list[Record]:
    """Presets. A folder with a config.json or a hub id is a model as well."""
    from vrambench.methods.models.presets import PRESETS

    return [
        {"name": name, "type": one.architecture, "shape of": one.published or "ours, for tests and smoke runs"}
        for name, one in PRESETS.items()
    ]


def cards() -> list[Record]:
    """GPUs that a budget can name, with what of their memory a process can use."""
    return [
        {
            "name": card.name,
            "usable": size(card.usable_bytes) if card.usable_bytes else "not known here",
            "compute capability": ".".join(map(str, card.capability)),
        }
        for card in CARDS.values()
    ]


def fields() -> list[Record]:
    """The workload's fields: what --set, --sweep and --max can name."""
    return [{"name": name, "default": default(Workload, name), "meaning": described(Workload, name)} for name in FIELDS]


def values() -> list[Record]:
    """Every axis' values."""
    from vrambench.methods.axes import AXES

    return [
        {"name": name, "axis": axis, "meaning": value.summary}
        for axis, registry in AXES.items()
        for name, value in registry.values().items()
    ]


def rules() -> list[Record]:
    """What forbids a cell, or warns of it."""
    from vrambench.bench.plan.validity import RULES

    return [{"name": rule.id, "kind": rule.kind, "reason": rule.reason} for rule in RULES]


LISTS: Mapping[str, Callable[[], list[Record]]] = {
    "models": models,
    "cards": cards,
    "fields": fields,
    "values": values,
    "rules": rules,
}


def described(kind: type[BaseModel], name: str) -> str:
    """A field's sentences, on one line."""
    return " ".join((kind.model_fields[name].description or "").split())


def default(kind: type[BaseModel], name: str) -> str:
    """A field's default as YAML has it, and what else it can be where those are few words."""
    field = kind.model_fields[name]
    value = f"{field.default // 2**30}GiB" if name == "budget" else field.default
    shown = json.dumps(value).strip('"')
    others = [one for one in _literals(field.annotation) if one != value]
    return shown + (f" (or {', '.join(others)})" if others else "")


def _literals(annotation: Any) -> list[str]:
    """The words that an annotation allows."""
    inside = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return list(inside)
    return [word for part in inside for word in _literals(part)]
