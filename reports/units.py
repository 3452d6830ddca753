"""Numbers as people read them, one way everywhere: binary units (1 MiB = 2**20 bytes, 1 GiB = 2**30), seconds, rates.

A value that is not known is `DASH`, never a number; a number that is not finite is said to be so. Nothing here knows
HTML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Literal

UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
DASH = "–"
MINUS = "−"
ARROW = "→"

Unit = Literal["MiB", "GiB"]
SCALE: dict[Unit, int] = {"MiB": 2**20, "GiB": 2**30}
STEPS: tuple[tuple[str, int], ...] = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def size(value: int | float | None) -> str:
    """Bytes with the unit that suits them: `1.50 GiB`, `812 MiB`, `96 B`; a budget of a whole number of GiB as `24
    GiB`."""
    if value is None:
        return DASH
    if value < 0:
        return MINUS + size(-value)
    for unit, scale in STEPS:
        if value >= scale:
            return f"{_three_digits(value / scale)} {unit}"
    return f"{int(value):,} B"


def signed_size(value: int | None) -> str:
    """A difference in bytes with its sign: `+312 MiB`."""
    if value is None or value <= 0:
        return size(value)
    return "+" + size(value)


def common_unit(values: Iterable[int | None]) -> Unit:
    """The unit for an axis of these bytes: GiB as soon as one of them reaches 1 GiB."""
    return "GiB" if any(value is not None and value >= SCALE["GiB"] for value in values) else "MiB"


def seconds(value: float | None) -> str:
    """`12.3 ms`, `1.25 s`, `3 min 20 s`, `2 h 05 min`."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return number(value)
    if value < 0.9995:
        return f"{_three_digits(value * 1e3)} ms"
    if value < 119.5:
        return f"{_three_digits(value)} s"
    if value < 7170:
        return "{} min {:02d} s".format(*divmod(round(value), 60))
    return "{} h {:02d} min".format(*divmod(round(value / 60), 60))


def rate(value: float | None, unit: str = "") -> str:
    """A rate with three or more digits: `12,345 tokens/s`, `8.51`."""
    if value is None:
        return DASH
    text = number(value) if not math.isfinite(value) or abs(value) < 1000 else f"{value:,.0f}"
    return f"{text} {unit}" if unit else text


def number(value: float | None) -> str:
    """A quantity without unit (a loss, a reward) to three or four digits."""
    if value is None:
        return DASH
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else MINUS + "infinite"
    magnitude = abs(value)
    if magnitude == 0:
        return "0"
    if 1e-3 <= magnitude < 1e5:
        decimals = max(0, 3 - max(0, math.floor(math.log10(magnitude)) + 1)) if magnitude >= 1 else 3
        text = f"{magnitude:.{decimals}f}"
    else:
        text = f"{magnitude:.2e}"
    return (MINUS if value < 0 else "") + text


def percent(value: float | None) -> str:
    """A ratio as a signed percentage: `+3.2 %`."""
    if value is None:
        return DASH
    sign = "+" if value > 0 else MINUS if value < 0 else ""
    return f"{sign}{abs(value) * 100:.1f} %"


def change(ends: tuple[float | None, float | None] | None) -> str:
    """`2.31 → 1.87`."""
    return DASH if ends is None else f"{number(ends[0])} {ARROW} {number(ends[1])}"


def plural(count: int, noun: str) -> str:
    """`1 cell`, `3 cells`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def printable(text: str) -> str:
    """`text` with a mark in place of each character that no document may hold: control characters, halves of pairs."""
    return UNPRINTABLE.sub("\ufffd", text)


def short(text: str, length: int = 100) -> str:
    """`text`, or its two ends where it is longer than `length`."""
    return text if len(text) <= length else f"{text[: length * 2 // 3]} … {text[-length // 4 :]}"


def _three_digits(value: float) -> str:
    """Three significant digits without an exponent; whole numbers bare."""
    if value == int(value) and value < 1e6:
        return f"{int(value):,}"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"
