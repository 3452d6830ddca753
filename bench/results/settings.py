"""A stored cell's settings.

flat_settings(result.cell)["ppo.epochs"]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vrambench.methods.workload import AXIS_NAMES


def flat_settings(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's workload by dotted names (`ppo.epochs`), without the axes and without what the cell does not use."""
    settings: dict[str, Any] = {}
    for key, value in cell.items():
        if key in AXIS_NAMES or value is None:
            continue
        if isinstance(value, Mapping):
            settings |= {f"{key}.{name}": inner for name, inner in value.items() if inner is not None}
        else:
            settings[key] = value
    return settings
