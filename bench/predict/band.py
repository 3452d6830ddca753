"""By how much more than predicted a job may take: what measurements have shown, where any are published, else assumed.

    error_band()    ->  Band(share=0.011, basis="the most that any of 28 measured jobs took above its prediction (nvidia-h200)")

Published measurements are results/<gpu>/accuracy.json, as tests/gpu/compare.py writes them; accuracy-anew.json in its place
where it is there: the same cells as today's code predicts them.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parents[2] / "results"

ASSUMED_SHARE = 0.04
"""From the accuracy that is aimed at, for as long as too few measurements are published."""

FEWEST_CELLS = 20
"""Measured cells from which on their largest error is taken for what may come."""


class Band(NamedTuple):
    """`share` of the predicted device bytes by which a measurement may lie higher; `basis`: what it rests on, in words."""

    share: float
    basis: str


@functools.cache
def error_band(results: Path = RESULTS) -> Band:
    """No measured job took more above its prediction. Raises ValueError where a published file is none of compare.py's."""
    excesses: list[float] = []
    gpus: list[str] = []
    for file in _published(results):
        found = [_excess(row) for row in _rows(file) if row["status"] == "ok"]
        known = [excess for excess in found if excess is not None]
        if known:
            excesses += known
            gpus.append(file.parent.name)
    if len(excesses) < FEWEST_CELLS:
        return Band(ASSUMED_SHARE, "assumed, not yet confirmed by measurements")
    share = max(0.0, *excesses)
    return Band(
        share, f"the most that any of {len(excesses)} measured jobs took above its prediction ({', '.join(gpus)})"
    )


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
