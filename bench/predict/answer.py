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
    """The largest `value` of `field` that is not predicted out of memory, as reach.py finds it (None: not even the smallest one).
    `along`: what else had to change with it for the cell to stay valid. `bound`: what stops the next value."""

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
class MenuRow:
    """One recipe with an algorithm under one budget, as it was named (None: the matrix'). `source`: see Recipe; `command`: the
    shortest that asks for the cell; `rule`: what forbids it; `reason`: why nothing was predicted; `batch` and `length`: the largest
    batch at the length asked for, and the longest sequence at batch 1, where they were searched."""

    recipe: str
    source: str | None
    cell: Cell
    command: str
    budget: str | None = None
    rule: Finding | None = None
    forecast: Forecast | None = None
    batch: Maximum | None = None
    length: Maximum | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        return self.cell.name

    @property
    def key(self) -> tuple[str, str]:
        """Of the row, under whatever budget."""
        return self.recipe, self.cell.name

    @property
    def fits(self) -> bool:
        """As it is, even if tightly or as far as is known."""
        return self.forecast is not None and self.forecast.fits

    def document(self) -> dict[str, Any]:
        """As `fit --json` prints it; bytes as integers."""
        forecast, rule = self.forecast, self.rule
        return {
            "recipe": self.recipe,
            "source": self.source,
            "name": self.name,
            "budget": self.budget,
            "budget_bytes": self.cell.workload.budget,
            "rule": rule.rule if rule else None,
            "reason": rule.reason if rule else self.reason,
            "verdict": forecast.verdict if forecast else None,
            "fits": self.fits,
            "device_bytes": forecast.memory.device_bytes if forecast else None,
            "margin_bytes": forecast.margin_bytes if forecast else None,
            "band_bytes": forecast.band_bytes if forecast else None,
            "largest_batch": self.batch.model_dump(mode="json") if self.batch else None,
            "longest_sequence": self.length.model_dump(mode="json") if self.length else None,
            "command": self.command,
            "cell": self.cell.flat(),
        }


@dataclass(frozen=True)
class Menu:
    """What `fit MODEL` answers. `budget_of`: whose budget it is, where the command line names none."""

    rows: tuple[MenuRow, ...]
    budget_of: str | None = None

    def document(self) -> dict[str, Any]:
        """As `fit MODEL --json` prints it."""
        return {"fits": any(row.fits for row in self.rows), "rows": [row.document() for row in self.rows]}


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
