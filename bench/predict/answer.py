"""What `fit` answers: the forecast, how far a field goes, and what to change. Nothing here needs torch, so that an answer that is
kept (cache.py) is told at once.

    answer.document()                       as `vrambench fit --json` prints it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vrambench.bench.plan.config import ConfigTold
from vrambench.bench.plan.rules.rule import Finding
from vrambench.bench.results.forecast import Forecast, PredictedBatches, PredictedPhase, Unmodelled
from vrambench.bench.results.records import Memory, OutOfMemory, Parameters, Record, RoleBytes, Share, Verdict
from vrambench.methods.cards import Card
from vrambench.methods.cell import Cell

AS_NAMED = "as named"
"""The recipe of a cell whose five axes were named."""


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


class WarningTold(Record):
    """A rule of CUDA that warns of the cell."""

    rule: str
    reason: str


class PhaseTold(Record):
    """A phase of a step; of none (None) where it is outside the steps."""

    phase: str
    step: int | None


class FitTold(Record):
    """What `fit --json` prints: the forecast's fields (bytes as integers), `predicted` being its memory, and what was asked
    besides. `config` is there where a trainer's file was asked for."""

    cell: dict[str, Any]
    budget_bytes: int
    card: str | None
    verdict: Verdict
    fits: bool
    margin_bytes: int
    band_bytes: int
    band_basis: str
    predicted: Memory
    phases: tuple[PredictedPhase, ...]
    roles: dict[str, RoleBytes]
    parameters: Parameters
    at_peak: tuple[Share, ...]
    fragmentation_bytes: int
    rising_order_bytes: int
    batches: PredictedBatches | None
    unmodelled: tuple[Unmodelled, ...]
    host_bytes: int
    alloc_conf: str
    device_peak: PhaseTold
    limiting_phase: str
    limiting_step: int | None
    limiting_role: str | None
    oom: OutOfMemory | None
    oom_phase: str | None
    warnings: tuple[WarningTold, ...]
    notes: tuple[str, ...]
    seconds: float
    max: tuple[Maximum, ...]
    advice: tuple[Suggestion, ...]
    command: str
    read_as: tuple[str, ...]
    config: ConfigTold | None = None


class RowTold(Record):
    """A row of a menu; see MenuRow. `verdict` and bytes are None where nothing was predicted, `reason` says why."""

    recipe: str
    source: str | None
    name: str
    budget: str | None
    budget_bytes: int
    rule: str | None
    reason: str | None
    verdict: Verdict | None
    fits: bool
    device_bytes: int | None
    margin_bytes: int | None
    band_bytes: int | None
    largest_batch: Maximum | None
    longest_sequence: Maximum | None
    command: str
    cell: dict[str, Any]


class MenuTold(Record):
    """What `fit MODEL --json` prints, and `fit` under several budgets. `fits`: whether any row does; `config`: the trainer's file
    that was read."""

    fits: bool
    rows: tuple[RowTold, ...]
    read_as: tuple[str, ...]
    config: ConfigTold | None


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
    def called(self) -> str:
        """In sentences: its recipe, or the cell where that was named."""
        return self.name if self.recipe == AS_NAMED else self.recipe

    @property
    def title(self) -> str:
        """Its recipe, if it is of one, and its cell."""
        return self.name if self.recipe == AS_NAMED else f"{self.recipe}, {self.name}"

    @property
    def key(self) -> tuple[str, str]:
        """Of the row, under whatever budget."""
        return self.recipe, self.cell.name

    @property
    def fits(self) -> bool:
        """As it is, even if tightly or as far as is known."""
        return self.forecast is not None and self.forecast.fits

    def told(self) -> RowTold:
        """As `fit --json` prints it."""
        forecast, rule = self.forecast, self.rule
        return RowTold(
            recipe=self.recipe,
            source=self.source,
            name=self.name,
            budget=self.budget,
            budget_bytes=self.cell.workload.budget,
            rule=rule.rule if rule else None,
            reason=rule.reason if rule else self.reason,
            verdict=forecast.verdict if forecast else None,
            fits=self.fits,
            device_bytes=forecast.memory.device_bytes if forecast else None,
            margin_bytes=forecast.margin_bytes if forecast else None,
            band_bytes=forecast.band_bytes if forecast else None,
            largest_batch=self.batch,
            longest_sequence=self.length,
            command=self.command,
            cell=self.cell.flat(),
        )


@dataclass(frozen=True)
class Menu:
    """What `fit MODEL` answers. `budget_of`: whose budget it is, where the command line names none."""

    rows: tuple[MenuRow, ...]
    budget_of: str | None = None

    def document(self, read_as: Sequence[str] = (), config: ConfigTold | None = None) -> dict[str, Any]:
        """As `fit MODEL --json` prints it. `read_as`: the selection's; `config`: the trainer's file that was read."""
        rows = tuple(row.told() for row in self.rows)
        told = MenuTold(fits=any(row.fits for row in rows), rows=rows, read_as=tuple(read_as), config=config)
        return told.model_dump(mode="json")


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

    def document(
        self, command: str = "", read_as: Sequence[str] = (), config: ConfigTold | None = None
    ) -> dict[str, Any]:
        """As `fit --json` prints it. `command`: the shortest that asks for the cell again; `read_as`: the selection's; `config`:
        the trainer's file that was read."""
        forecast = self.forecast
        same = {name: getattr(forecast, name) for name in FitTold.model_fields if name in Forecast.model_fields}
        told = FitTold(
            **same
            | {
                "cell": self.cell.flat(),
                "card": self.card.name if self.card else None,
                "fits": forecast.fits,
                "predicted": forecast.memory,
                "device_peak": PhaseTold(phase=forecast.device_peak.name, step=forecast.device_peak.step),
                "warnings": tuple(WarningTold(rule=one.rule, reason=one.reason) for one in self.warnings),
                "notes": (*forecast.notes, *([f"advice: {self.advice.ending}"] if self.advice else [])),
                "max": self.max,
                "advice": self.advice.suggestions if self.advice else (),
                "command": command,
                "read_as": tuple(read_as),
                "config": config,
            }
        )
        return told.model_dump(mode="json", exclude=None if config else {"config"})
