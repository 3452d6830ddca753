"""The error band: the largest excess of measured over predicted bytes; 4 % while fewer than 20 cells are published.

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
"""The band while too few measurements are published: the accuracy that is aimed at."""

FEWEST_CELLS = 20
"""With fewer measured cells, the band is ASSUMED_SHARE."""


class Band(NamedTuple):
    """A measurement may exceed the predicted device bytes by this `share` of them. `basis`: what that rests on, in words."""

    share: float
    basis: str


class Kind(NamedTuple):
    """The two axes that decide most which operators a cell runs, and so how well its memory is predicted."""

    precision: str
    adapter: str

    def __str__(self) -> str:
        return f"{self.precision} with adapter {self.adapter}"


@functools.cache
def error_band(kind: Kind | None = None, results: Path = RESULTS) -> Band:
    """The band of a cell of this `kind`. Where none of that kind was measured, `basis` says so and names the nearest that was.
    Raises ValueError where a published file was not written by compare.py."""
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
    """The row's own, else the one in its name: `llama-2-7b / nf4 lora adamw_torch none sft`."""
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
