"""What is claimed, as a number with its unit or as `fits`, and how near a value must come to bear it out.

    claimed = parse("50 %")             parse("at least 82.5 %"), parse("13.6 GB"), parse("2.2 x"), parse("does not fit")
    judge(0.47, claimed)                "reproduced"
    judge(0.24, claimed)                "refuted"

A verdict, where the claim's own row does not say which values count:

- `reproduced`: within a tenth of what is claimed, and of an effect at least half; where it is claimed to be at least (or at
  most) so much, no less (no more).
- `partly`, of an effect (a share in %, a ratio in x): the same direction, and at least half of the effect, however much more. The
  effect is the share itself, and of a ratio what it is apart from 1.
- `partly`, of an amount (bytes, seconds, tokens): within a quarter; within a tenth of what it should at least or at most be.
- `refuted`: anything else. What fits or does not is reproduced or refuted.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from vrambench.methods.errors import ConfigurationError, shown

Verdict = Literal["reproduced", "partly", "refuted"]
Bound = Literal["about", "at least", "at most"]
Interval = tuple[float | None, float | None]
"""Least and most, in the claim's unit; None: no limit."""

SCALES = {"%": 0.01, "B": 1, "MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
"""What one of a unit is in a formula's own numbers: shares, bytes. Of any other unit it is one."""
NO_EFFECT = {"%": 0.0, "x": 1.0}
"""Units of effects, and what no effect is in the formula's numbers."""

NEAR, HALF, AROUND = 0.1, 0.5, 0.25
ROUNDING = 1e-9
WORDS = {"fits": True, "does not fit": False}


@dataclass(frozen=True)
class Claimed:
    """`value`: true or false (it fits or not), or in the formula's numbers. `text`: as it is written."""

    text: str
    value: float | bool
    unit: str = ""
    bound: Bound = "about"
    reproduced: Interval | None = None
    partly: Interval | None = None

    @property
    def scale(self) -> float:
        return SCALES.get(self.unit, 1)


def parse(given: object, reproduced: Interval | None = None, partly: Interval | None = None) -> Claimed:
    """What a row claims. Raises ConfigurationError, whose message follows the field's name."""
    text = str(given).strip()
    if not isinstance(given, bool) and text in WORDS:
        if reproduced or partly:
            raise ConfigurationError(f"{shown(given)} has no interval: it is reproduced or refuted")
        return Claimed(text, WORDS[text])
    match = re.fullmatch(r"(at least |at most )?([-+]?\d[\d,_]*(?:\.\d+)?(?:e[-+]?\d+)?)\s*(%|[A-Za-z][\w/ ]*)?", text)
    if isinstance(given, bool) or match is None:
        raise ConfigurationError(
            f"{shown(given)} is no claim; write a number with its unit (50 %, 2.2 x, 13.6 GB, at least 80 GB), fits, or "
            "does not fit"
        )
    unit = match[3] or ""
    nearest = {name.lower(): name for name in (*SCALES, *NO_EFFECT)}.get(unit.lower(), unit)
    if nearest != unit:
        raise ConfigurationError(f"{shown(given)}: {unit!r} is no unit; did you mean {nearest!r}?")
    value = float(re.sub("[,_]", "", match[2])) * SCALES.get(unit, 1)
    if unit in NO_EFFECT and value == NO_EFFECT[unit] and not (match[1] or reproduced):
        raise ConfigurationError(
            f"{shown(given)} is no effect, of which there is no half; say which values are `reproduced`"
        )
    bound: Bound = "at least" if match[1] == "at least " else "at most" if match[1] else "about"
    return Claimed(text, value, unit, bound, reproduced, partly)


def judge(value: float | bool, claimed: Claimed) -> Verdict:
    """What `value`, in the formula's numbers, makes of the claim."""
    if isinstance(claimed.value, bool):
        return "reproduced" if bool(value) == claimed.value else "refuted"
    if _within(value, claimed, claimed.reproduced or _reproduced(claimed)):
        return "reproduced"
    if _within(value, claimed, claimed.partly or _partly(claimed)):
        return "partly"
    return "refuted"


def _within(value: float, claimed: Claimed, interval: Interval) -> bool:
    low, high = interval
    told, slack = value / claimed.scale, ROUNDING * max(1.0, abs(value / claimed.scale))
    return (low is None or told >= low - slack) and (high is None or told <= high + slack)


def _reproduced(claimed: Claimed) -> Interval:
    number = claimed.value / claimed.scale
    if claimed.bound != "about":
        return (number, None) if claimed.bound == "at least" else (None, number)
    low, high = number - NEAR * abs(number), number + NEAR * abs(number)
    if claimed.unit in NO_EFFECT:  # a tenth of a small ratio may be more than its whole effect
        half_low, half_high = _partly(claimed)
        low, high = max(low, half_low or low), min(high, half_high or high)
    return low, high


def _partly(claimed: Claimed) -> Interval:
    number = claimed.value / claimed.scale
    if claimed.unit in NO_EFFECT and claimed.bound != "at most":
        nothing = NO_EFFECT[claimed.unit]
        half = nothing + HALF * (number - nothing)
        return (half, None) if number >= nothing else (None, half)
    if claimed.bound == "about":
        return number - AROUND * abs(number), number + AROUND * abs(number)
    beyond = NEAR * abs(number)
    return (number - beyond, None) if claimed.bound == "at least" else (None, number + beyond)


def told(value: float | bool | None, claimed: Claimed) -> str:
    """A value as the claim writes its own: `47.1 %`, `0.51 x`, `fits`; nothing where it is not known."""
    if value is None:
        return ""
    if isinstance(claimed.value, bool):
        return "fits" if value else "does not fit"
    number = value / claimed.scale
    digits = 0 if number == round(number) and abs(number) < 1e6 else max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:,.{digits}f} {claimed.unit}".strip()
