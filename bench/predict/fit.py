"""The answer to "does it fit?" for one cell, with how far a field goes and what else would fit.

cell = only_cell(plan, bf16=True)
answer = fit(cell, card=CARDS["rtx-4090"], maximum="batch_size", advices=3)
answer.document()                   as `vrambench fit --json` prints it
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vrambench.bench.plan.plan import Plan
from vrambench.bench.plan.validity import Finding, check
from vrambench.bench.predict.advise import Advice, advise
from vrambench.bench.predict.forecast import Predictor, card_of
from vrambench.bench.predict.neighbours import MOST_EVENTS, spread
from vrambench.bench.predict.reach import Maximum, check_searched, largest
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.axes import AXES
from vrambench.methods.cards import Card
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError, shown
from vrambench.methods.workload import FIELDS

FIRST_BF16 = (8, 0)
"""The compute capability from which on a GPU has bf16 arithmetic."""

MOST_SHOWN = 6


@dataclass(frozen=True)
class Answer:
    """`card`: the one that the budget was given as. `warnings`: rules of CUDA that warn of the cell. `max` and `advice` where they
    were asked for."""

    cell: Cell
    card: Card | None
    forecast: Forecast
    warnings: tuple[Finding, ...] = ()
    max: Maximum | None = None
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
                    "host_bytes",
                    "alloc_conf",
                )
            },
            "device_peak": {"phase": forecast.device_peak.name, "step": forecast.device_peak.step},
            **{name: told[name] for name in ("limiting_phase", "limiting_step", "limiting_role", "oom", "oom_phase")},
            "warnings": [{"rule": one.rule, "reason": one.reason} for one in self.warnings],
            "notes": notes,
            "seconds": forecast.seconds,
            "max": self.max.model_dump(mode="json") if self.max else None,
            "advice": [one.model_dump(mode="json") for one in self.advice.suggestions] if self.advice else [],
        }


def fit(
    cell: Cell,
    card: Card | None = None,
    *,
    maximum: str | None = None,
    advices: int | None = None,
    alloc_conf: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Answer:
    """Predicts `cell` under its budget. `maximum`: a field whose largest value is wanted; `advices`: how many configurations
    that fit. `alloc_conf`: see Predictor. `tell` hears of each further prediction."""
    warnings.simplefilter("ignore", FutureWarning)  # transformers' about its own names, one for each model
    warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")  # where none is meant to run
    predictor = Predictor(alloc_conf)
    bf16 = has_bf16(card)

    def ask(one: Cell) -> Forecast:
        return predictor.forecast(one, card=card)

    def expandable(one: Cell) -> Forecast:
        return predictor.forecast(one, card=card, expandable=True)

    forecast = ask(cell)
    events = predictor.simulation(cell, card or card_of(cell.workload.budget)).trace.events
    if len(events) <= MOST_EVENTS and (jumps := spread(cell, forecast, ask)):
        forecast = forecast.model_copy(update={"notes": (*forecast.notes, jumps)})
    reach = largest(cell, maximum, ask, bf16=bf16, tell=tell) if maximum is not None else None
    advice = advise(cell, advices, ask, expandable=expandable, bf16=bf16, tell=tell) if advices else None
    warned = tuple(finding for finding in check(cell, "cuda", bf16=bf16) if finding.kind == "warn")
    return Answer(cell, card, forecast, warned, reach, advice)


def has_bf16(card: Card | None) -> bool:
    """Whether `card` has bf16 arithmetic; one that nobody named does."""
    return card is None or card.capability >= FIRST_BF16


def only_cell(plan: Plan, searched: str | None = None) -> Cell:
    """The plan's one cell; of several that differ in the `searched` field alone, the one with its least value.
    ConfigurationError where there are others, with what they differ in, or where a rule forbids it."""
    planned = plan.cells[0]
    if searched is not None:
        check_searched(planned.cell, searched)
    if len(plan.cells) > 1:
        flats = [one.cell.flat() for one in plan.cells]
        others = [{name: value for name, value in flat.items() if name != searched} for flat in flats]
        if searched is None or searched not in FIELDS or any(other != others[0] for other in others):
            raise ConfigurationError(f"{len(plan.cells)} cells are left, and fit answers for one; {_narrowing(plan)}")
        planned = min(plan.cells, key=lambda one: getattr(one.cell.workload, searched))
    rule = planned.rejection
    if rule is not None:
        raise ConfigurationError(f"{planned.name}: invalid on CUDA by the rule {rule.rule}: {rule.reason}")
    return planned.cell


def _narrowing(plan: Plan) -> str:
    """How to come to one cell: each axis, or else each field, that still has several values."""
    flats = [planned.cell.flat() for planned in plan.cells]
    several: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for flat in flats for name in flat):
        values = [flat.get(name) for flat in flats]
        distinct = [value for place, value in enumerate(values) if value is not None and value not in values[:place]]
        if len(distinct) > 1:
            several[name] = distinct
    axes = {name: values for name, values in several.items() if name in AXES}
    parts = []
    for name, values in (axes or several).items():
        texts = [str(value) if isinstance(value, str) else shown(value) for value in values]
        listed = ", ".join(texts[:MOST_SHOWN]) + (
            f" and {len(texts) - MOST_SHOWN} more" if len(texts) > MOST_SHOWN else ""
        )
        option = f"--{name} {texts[0]}" if name in AXES else f"--set {name}={texts[0]}"
        parts.append(f"{name} is {listed} (as in {option})")
    return "choose one value each: " + "; ".join(parts) if parts else "name all five axes"
