"""What `fit` answers: the forecast, how far a field goes, and what to change. Nothing here needs torch, so that an answer that is
kept (cache.py) is told at once.

    answer.document()                       as `vrambench fit --json` prints it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vrambench.bench.plan.rules.rule import Finding
from vrambench.bench.results.forecast import Forecast, Verdict
from vrambench.bench.results.records import OutOfMemory, Record
from vrambench.methods.cards import Card
from vrambench.methods.cell import Cell


class Probe(Record):
    """One value that was tried. `unlimited_bytes`: of the device, without a budget; `device_bytes`: under it, None where memory
    runs out, and then in which phase and of what request. `num_alloc_retries`: how often cached memory is given back."""

    value: int
    unlimited_bytes: int
    device_bytes: int | None
    verdict: Verdict
    num_alloc_retries: int = 0
    oom_phase: str | None = None
    oom: OutOfMemory | None = None


class Maximum(Record):
    """The largest `value` of `field` that is not predicted out of memory (None: not even the smallest one), found by doubling and
    bisection. `along`: what else had to change with it for the cell to stay valid. `bound`: what stops the next value."""

    field: str
    value: int | None
    device_bytes: int | None
    along: dict[str, int]
    bound: str
    probes: tuple[Probe, ...]


class Suggestion(Record):
    """A configuration that fits. `changes`: fields and axes (or a variable of the environment) with their new values; `price`: what
    each costs, in words, by the name of what is changed; what has to go with a change has none of its own."""

    name: str
    changes: dict[str, Any]
    price: dict[str, str]
    verdict: Verdict
    device_bytes: int
    margin_bytes: int


class Advice(Record):
    """`predictions`: how many were made. `ending`: why the search stopped, in a sentence; where nothing fits, with what is nearest
    and what it lacks."""

    suggestions: tuple[Suggestion, ...]
    predictions: int
    ending: str


@dataclass(frozen=True)
class Answer:
    """`card`: the one that the budget was given as. `warnings`: rules of CUDA that warn of the cell. `max`, one of each field,
    and `advice` where they were asked for."""

    cell: Cell
    card: Card | None
    forecast: Forecast
    warnings: tuple[Finding, ...] = ()
    max: tuple[Maximum, ...] = ()
    advice: Advice | None = None

    def document(self) -> dict[str, Any]:
        """As `fit --json` prints it; bytes as integers."""
        forecast = self.forecast
        told = forecast.model_dump(mode="json")
        notes = [*forecast.notes, *([f"advice: {self.advice.ending}"] if self.advice else [])]
        return {
            "cell": self.cell.flat(),
            "budget_bytes": forecast.budget_bytes,
            "card": self.card.name if self.card else None,
            "verdict": forecast.verdict,
            "fits": forecast.fits,
            "margin_bytes": forecast.margin_bytes,
            "band_bytes": forecast.band_bytes,
            "band_basis": forecast.band_basis,
            "predicted": told["memory"],
            **{
                name: told[name]
                for name in (
                    "phases",
                    "roles",
                    "parameters",
                    "at_peak",
                    "fragmentation_bytes",
                    "rising_order_bytes",
                    "batches",
                    "unmodelled",
                    "host_bytes",
                    "alloc_conf",
                )
            },
            "device_peak": {"phase": forecast.device_peak.name, "step": forecast.device_peak.step},
            **{name: told[name] for name in ("limiting_phase", "limiting_step", "limiting_role", "oom", "oom_phase")},
            "warnings": [{"rule": one.rule, "reason": one.reason} for one in self.warnings],
            "notes": notes,
            "seconds": forecast.seconds,
            "max": [one.model_dump(mode="json") for one in self.max],
            "advice": [one.model_dump(mode="json") for one in self.advice.suggestions] if self.advice else [],
        }
