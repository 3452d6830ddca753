"""The names of axis values' options, as the text of their files has them: importing those takes torch, and a slip is to be told
before that.

option_names()["ppo"]               ("epochs", "kl_coef", ...)
option_names("algorithms")          those of one axis' values
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOMS = ("precision", "adapters", "optimizers", "offload", "algorithms")


@cache
def option_names(*rooms: str) -> Mapping[str, tuple[str, ...]]:
    """By the namespace of built-in values, the names of its options in their order; of the values in `rooms`, else of all. A class
    of options and those that it is made of are in one file."""
    names: dict[str, tuple[str, ...]] = {}
    here = Path(__file__).parent
    for file in sorted(file for room in rooms or ROOMS for file in here.joinpath(room).glob("*.py")):
        text = file.read_text("utf-8")
        if "namespace: ClassVar" in text:
            names |= _named({one.name: one for one in ast.parse(text).body if isinstance(one, ast.ClassDef)})
    return names


def _named(classes: Mapping[str, ast.ClassDef]) -> dict[str, tuple[str, ...]]:
    """Of the classes that have a namespace."""
    found = {}
    for one in classes.values():
        for line in one.body:
            if (
                isinstance(line, ast.AnnAssign)
                and _target(line) == "namespace"
                and isinstance(line.value, ast.Constant)
            ):
                found[str(line.value.value)] = tuple(dict.fromkeys(_fields(one, classes)))
    return found


def _fields(one: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> list[str]:
    """Its bases' fields, and its own."""
    bases = [base.id for base in one.bases if isinstance(base, ast.Name) and base.id in classes]
    own = [_target(line) for line in one.body if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.dump(line)]
    return [*(name for base in bases for name in _fields(classes[base], classes)), *own]


def _target(line: ast.AnnAssign) -> str:
    return line.target.id if isinstance(line.target, ast.Name) else ""
