"""Where in its matrix a cell was asked for.

place_of(load_matrix(path), "smoke", result.cell)       14, the line
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vrambench.bench.plan.combinations import all_named
from vrambench.bench.plan.matrix import Entry, Matrix


def place_of(matrix: Matrix, profile: str | None, cell: Mapping[str, Any]) -> int | None:
    """The line that made the cell (`Cell.flat()`, as results hold it): of include's entries with its axes the one that says most of
    it, else the value of its algorithm among the axes'. None where the matrix asks for no such cell any more."""
    layer = matrix.layer(profile)
    entries = [
        entry
        for entry in layer.include or ()
        if all_named(entry.axes) and all(cell.get(axis) == value for axis, value in entry.axes.items())
    ]
    values = [value.origin for value in layer.axes.get("algorithm", ()) if value.value == cell.get("algorithm")]
    origins = [max(entries, key=lambda entry: _agreement(entry, cell)).origin] if entries else values
    found = re.match(r":(\d+):", origins[0].removeprefix(matrix.name)) if origins else None  # as every origin begins
    return int(found[1]) if found else None


def _agreement(entry: Entry, cell: Mapping[str, Any]) -> int:
    """How many of the entry's settings are the cell's, less those that are not."""
    same = 0
    for name, setting in entry.settings.items():
        whole, _, option = name.partition(".")
        told = (cell.get(whole) or {}).get(option) if option else cell.get(name)
        same += 1 if told == setting.value else -1
    return same
