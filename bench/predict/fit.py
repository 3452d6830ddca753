"""The answer to "does it fit?" for one cell, with how far a field goes and what else would fit.

answer = fit(cell, card=CARDS["rtx-4090"], maximum="batch_size", advices=3)
answer.document()                   as `vrambench fit --json` prints it
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from vrambench.bench.plan.validity import Finding, check
from vrambench.bench.predict.advise import Advice, advise
from vrambench.bench.predict.forecast import Predictor, card_of
from vrambench.bench.predict.neighbours import MOST_EVENTS, spread
from vrambench.bench.predict.reach import Maximum, integer_fields, largest
from vrambench.bench.results.forecast import Forecast, Unmodelled
from vrambench.methods.cards import FIRST_BF16, Card
from vrambench.methods.cell import Cell


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
    said: Mapping[str, Any] | None = None,
    left_out: tuple[Unmodelled, ...] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> Answer:
    """Predicts `cell` under its budget. `maximum`: a field whose largest value is wanted; `advices`: how many configurations
    that fit. `alloc_conf`: see Predictor; `said`: see `advise`, `largest`; `left_out`: see
    Predictor. `tell` hears of each further prediction."""
    predictor = Predictor(alloc_conf, left_out)
    bf16 = has_bf16(card)
    freezes = gc.get_freeze_count() == 0  # what a caller has frozen stays so

    def ask(one: Cell) -> Forecast:
        forecast = predictor.forecast(one, card=card)
        if freezes:
            gc.freeze()  # the next one's collections need not look at what the libraries made: 0.2 s less
        return forecast

    def expandable(one: Cell) -> Forecast:
        return predictor.forecast(one, card=card, expandable=True)

    def worst_alone(one: Cell) -> Forecast:
        return predictor.forecast(one, card=card, worst_alone=True)

    with ExitStack() as stack:
        if freezes:
            stack.callback(gc.unfreeze)
        forecast = ask(cell)
        events = predictor.simulation(cell, card or card_of(cell.workload.budget)).trace.events
        if len(events) <= MOST_EVENTS and (jumps := spread(cell, forecast, ask)):
            forecast = forecast.model_copy(update={"notes": (*forecast.notes, jumps)})
        reach = largest(cell, maximum, ask, bf16=bf16, said=said, tell=tell) if maximum is not None else None
        advice = None
        if advices:
            quick = None if cell.workload.lengths is None else worst_alone
            advice = advise(cell, advices, ask, quick=quick, expandable=expandable, bf16=bf16, said=said, tell=tell)
            if forecast.verdict != "fits" and maximum is None:
                forecast = forecast.model_copy(update={"notes": (*forecast.notes, less_work(cell))})
    warned = tuple(finding for finding in check(cell, "cuda", bf16=bf16) if finding.kind == "warn")
    return Answer(cell, card, forecast, warned, reach, advice)


def less_work(cell: Cell) -> str:
    """How to ask for the largest work that the cell as it is has room for: advice changes none."""
    fields = integer_fields(cell)
    length = "max_length" if "max_length" in fields else "response_tokens"
    asked = [name for name in ("group_size", length) if name in fields]
    return f"advice leaves the work as it is; how far that goes: {' or '.join(f'--max {name}' for name in asked)}"


def has_bf16(card: Card | None) -> bool:
    """Whether `card` has bf16 arithmetic; one that nobody named does."""
    return card is None or card.capability >= FIRST_BF16
