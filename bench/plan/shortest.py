"""The fewest words of the command line that come to a cell.

options = shortest(cell, matrix)            ("--precision", "nf4", ..., "--set", "batch_size=4")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vrambench.bench.plan.document import as_yaml
from vrambench.bench.plan.matrix import Matrix
from vrambench.bench.plan.plan import select
from vrambench.bench.plan.selection import Selection
from vrambench.methods.called import budget_called
from vrambench.methods.cell import Cell
from vrambench.methods.device import Kind
from vrambench.methods.errors import ConfigurationError


def shortest(cell: Cell, matrix: Matrix, device: Kind = "cuda", profile: str | None = None) -> tuple[str, ...]:
    """The options that make `cell` of `matrix`: its axes, and of its settings those without which it would be another. All of them
    where the matrix leaves no such choice."""

    def made(settings: Mapping[str, Any]) -> Cell | None:
        options = tuple(f"{name}={as_yaml(value)}" for name, value in settings.items())
        try:
            (planned,) = select(matrix, Selection(profile=profile, axes=cell.axes, set=options), device).cells
        except (ConfigurationError, ValueError):
            return None
        return planned.cell

    whole = _settings(cell)
    usual = made({})
    there = _settings(usual) if usual else {}
    settings = {name: value for name, value in whole.items() if name not in there or there[name] != value}
    if not _same(made(settings), cell):
        settings = whole
    for name in list(settings):
        fewer = {other: value for other, value in settings.items() if other != name}
        if _same(made(fewer), cell):
            settings = fewer
    words = [word for axis, value in cell.axes.items() for word in (f"--{axis}", value)]
    words += ["--profile", profile] if profile else []
    return (*words, *(word for name, value in settings.items() for word in _option(name, value)))


def _settings(cell: Cell) -> dict[str, Any]:
    """By dotted name, without what the cell does not use."""
    found: dict[str, Any] = {}
    for name, value in cell.workload.flat().items():
        if isinstance(value, Mapping) and name in cell.workload.options:
            found |= {f"{name}.{option}": inner for option, inner in value.items() if inner is not None}
        elif value is not None:
            found[name] = value
    return found


def _same(made: Cell | None, cell: Cell) -> bool:
    return made is not None and made.id == cell.id


def _option(name: str, value: Any) -> tuple[str, str]:
    if name == "model":
        return "--model", value
    if name == "budget":
        return "--budget", budget_called(value)
    return "--set", f"{name}={as_yaml(value)}"
