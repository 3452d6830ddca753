"""What can be asked for, as records of texts: models, cards, fields, axis values and rules. docs/config.md has the same as tables.

    LISTS["cards"]()        [{"name": "rtx-3090", "usable": "23.68 GiB", ...}, ...]

Models, fields and cards are told without torch.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import textwrap
import typing
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

from vrambench.methods.cards import CARDS, GIB
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
            "memory": f"{card.marked_bytes // GIB} GB",
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
    """The sentences below a field, on one line."""
    return " ".join(_sentences(kind).get(name, "").split())


@functools.cache
def _sentences(kind: type[BaseModel]) -> dict[str, str]:
    """The strings below the fields of `kind` and of what it inherits from. Read here alone: pydantic would read them whenever a
    class is made, which takes longer than all else that is imported of ours."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if issubclass(one, BaseModel) and one is not BaseModel:
            (made,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
            assert isinstance(made, ast.ClassDef)
            for field, below in pairwise(made.body):
                match field, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        found[name] = inspect.cleandoc(text)
    return found


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
