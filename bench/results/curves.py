"""What a curve of learning comes to: one value for each step, None where there was none."""

from __future__ import annotations

import math
from collections.abc import Sequence


def quarters(values: Sequence[float | None]) -> tuple[float | None, float | None] | None:
    """Means over the first and over the last quarter of a curve (one value at least); None for a curve without
    values. A quarter in which a value is missing or not finite has no mean: None."""
    if not values:
        return None
    count = max(1, len(values) // 4)
    return _mean(values[:count]), _mean(values[-count:])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(values) if len(known) == len(values) else None
