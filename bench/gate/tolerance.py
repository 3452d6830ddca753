"""How much more of something is no regression.

Tolerance.parse("1%|64MiB").allowed(10 * 2**30)     # the larger of both
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from vrambench.bench.results import PREDICTED
from vrambench.methods.errors import ConfigurationError, UnknownValue, shown
from vrambench.methods.sizes import parse_amount

MEMORY = ("allocated_bytes", "reserved_bytes", "device_bytes")
TIME = "step_seconds"
METRICS = (*MEMORY, TIME)


class Tolerance(NamedTuple):
    """The larger of a `share` of what was before and `nbytes`."""

    share: float = 0.0
    nbytes: int = 0

    @classmethod
    def parse(cls, text: str, metric: str = "tolerance") -> Tolerance:
        """Reads `2%`, `64MiB`, `1%|64MiB` or `0`. Raises ConfigurationError that names `metric`."""
        share, nbytes = 0.0, 0
        parts = str(text).split("|")
        if len(parts) != len({part.strip().endswith("%") for part in parts}):
            raise ConfigurationError(
                f"{metric}: {shown(text)}: one share and one size at most, such as 1%|64MiB", field=metric
            )
        for part in parts:
            if part.strip().endswith("%"):
                share = _share(part.strip(), metric)
            elif part.strip() != "0" and metric == TIME:
                raise ConfigurationError(f"{metric}: {shown(part)}: must be a share, such as 5%", field=metric)
            elif part.strip() != "0":
                try:
                    nbytes = parse_amount(part.strip())
                except ValueError:
                    told = f"{metric}: {shown(text)}: must be a share, a size or the larger of both, such as 1%|64MiB"
                    raise ConfigurationError(told, field=metric) from None
        return cls(share, nbytes)

    def allowed(self, before: float) -> float:
        """By how much more than `before` it may be."""
        return max(self.share * before, self.nbytes)

    def text(self) -> str:
        """What `parse` reads it from."""
        parts = [f"{self.share * 100:g}%"] if self.share else []
        parts += [f"{self.nbytes / 2**20:g}MiB"] if self.nbytes else []
        return "|".join(parts) or "0"


def _share(text: str, metric: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = math.nan
    if not 0 <= share < math.inf:
        raise ConfigurationError(f"{metric}: {shown(text)}: must be a share of at least 0, such as 1%", field=metric)
    return share


Tolerances = Mapping[str, Tolerance]

EXACT: Tolerances = MappingProxyType(dict.fromkeys(MEMORY, Tolerance()))
"""For what is predicted: the same code gives the same bytes."""
LOOSE = Tolerance(0.03, 256 * 2**20)
USUAL: Tolerances = MappingProxyType(
    {
        "allocated_bytes": Tolerance(0.01, 64 * 2**20),
        "reserved_bytes": LOOSE,
        "device_bytes": LOOSE,
        TIME: Tolerance(0.05),
    }
)
"""For what is measured. Reserved memory lies on cliffs, and the device's holds what libraries load."""


def tolerances(source: str | None, *told: Mapping[str, str]) -> dict[str, Tolerance]:
    """By metric; what is `told` later counts. Raises UnknownValue for a metric that is none."""
    found = dict(EXACT if source == PREDICTED else USUAL)
    for texts in told:
        for metric, text in texts.items():
            if metric not in METRICS:
                raise UnknownValue("tolerance", metric, METRICS)
            found[metric] = Tolerance.parse(text, f"tolerance {metric}")
    return found
