"""By how much more than predicted a job may take: what measurements have shown, where any are published, else assumed.

    error_band()    ->  Band(share=0.011, basis="the most that any of 28 measured jobs took above its prediction (nvidia-h200)")

Published measurements are results/<gpu>/accuracy.json, as tests/gpu/compare.py writes them; accuracy-anew.json in its place
where it is there: the same cells as today's code predicts them.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from vrambench.methods.adapters import ADAPTERS
from vrambench.methods.axes import AXES
from vrambench.methods.precision import PRECISIONS

RESULTS = Path(__file__).resolve().parents[2] / "results"

ASSUMED_SHARE = 0.04
"""From the accuracy that is aimed at, for as long as too few measurements are published."""

FEWEST_CELLS = 20
"""Measured cells from which on their largest error is taken for what may come."""


class Band(NamedTuple):
    """`share` of the predicted device bytes by which a measurement may lie higher; `basis`: what it rests on, in words."""

    share: float
    basis: str


class Kind(NamedTuple):
    """What of a cell decides which operators hold its memory: how well these are predicted differs most."""

    precision: str
    adapter: str

    def __str__(self) -> str:
        return f"{self.precision} with adapter {self.adapter}"


@functools.cache
def error_band(kind: Kind | None = None, results: Path = RESULTS) -> Band:
    """No measured job took more above its prediction. `kind`: the cell's; where none of it was measured, `basis` says so and names
    the nearest that was. Raises ValueError where a published file is none of compare.py's."""
    excesses: list[float] = []
    gpus: list[str] = []
    kinds: set[Kind] = set()
    for file in _published(results):
        rows = [row for row in _rows(file) if row["status"] == "ok"]
        known = [(row, excess) for row in rows if (excess := _excess(row)) is not None]
        if known:
            excesses += [excess for _, excess in known]
            kinds |= {found for row, _ in known if (found := _kind(row)) is not None}
            gpus.append(file.parent.name)
    if len(excesses) < FEWEST_CELLS:
        return Band(ASSUMED_SHARE, "assumed, not yet confirmed by measurements")
    basis = f"the most that any of {len(excesses)} measured jobs took above its prediction ({', '.join(gpus)})"
    if kind is not None and kinds and kind not in kinds:
        basis += f"; none of them was {kind}, the nearest that was measured is {nearest(kind, kinds)}"
    return Band(max(0.0, *excesses), basis)


def nearest(kind: Kind, measured: Collection[Kind]) -> Kind:
    """The kind that trains alike (the base or an adapter) with weights of the nearest number of bits; of several, by name."""
    base, bits = ADAPTERS.get(kind.adapter).trains_base, PRECISIONS.get(kind.precision).bits

    def distance(other: Kind) -> tuple[Any, ...]:
        apart = abs(math.log2(PRECISIONS.get(other.precision).bits / bits))
        alike = ADAPTERS.get(other.adapter).trains_base == base
        return not alike, apart, other.precision != kind.precision, other.adapter != kind.adapter, other

    return min(measured, key=distance)


def _kind(row: dict[str, Any]) -> Kind | None:
    """Of a row that says it, or else of its name: `llama-2-7b / nf4 lora adamw_torch none sft`."""
    if row.get("precision") and row.get("adapter"):
        return Kind(row["precision"], row["adapter"])
    axes = str(row.get("name", "")).partition(" / ")[2].split()
    return Kind(*axes[:2]) if len(axes) >= len(AXES) else None


def _published(results: Path) -> list[Path]:
    """A comparison for each GPU, by name."""
    anew = {file.parent: file for file in results.glob("*/accuracy-anew.json")}
    files = {file.parent: file for file in results.glob("*/accuracy.json")} | anew
    return [files[folder] for folder in sorted(files)]


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: no comparison of predictions with measurements: {error!r}") from error
    return rows


def _excess(row: dict[str, Any]) -> float | None:
    """Measured over predicted device bytes, less one."""
    predicted, measured = row["predicted"].get("device"), row["measured"].get("device")
    return measured / predicted - 1 if predicted and measured else None
