"""The answer to "does it fit?" for one cell, with how far a field goes and what else would fit.

answer = fit(cell, card=CARDS["rtx-4090"], maximum="batch_size,response_tokens", advices=3)
answer.document()                   as `vrambench fit --json` prints it
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

from vrambench.bench.plan.validity import check
from vrambench.bench.predict.advise import advise
from vrambench.bench.predict.answer import Answer
from vrambench.bench.predict.cache import Cache
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.many import frozen
from vrambench.bench.predict.neighbours import MOST_EVENTS, spread
from vrambench.bench.predict.reach import integer_fields, largest
from vrambench.bench.predict.searchable import searched_fields
from vrambench.bench.results.forecast import Forecast, Unmodelled
from vrambench.methods.cards import Card
from vrambench.methods.cell import Cell


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
    cache: Cache | None = None,
) -> Answer:
    """Predicts `cell` under its budget. `maximum`: fields, with commas between them, whose largest values are wanted, each with the
    others as they are; `advices`: how many configurations that fit. `alloc_conf`, `left_out`, `cache`: see Predictor; `said`: see
    `advise`, `largest`. `tell` hears of each further prediction."""
    predictor = Predictor(alloc_conf, left_out, cache)
    made: dict[str, Forecast] = {}  # searches of several fields, and advice, begin with the same cell

    def ask(one: Cell) -> Forecast:
        if one.id not in made:
            made[one.id] = predictor.forecast(one, card=card)
            if freezes:
                gc.freeze()  # the next one's collections need not look at what the libraries made: 0.2 s less
        return made[one.id]

    def expandable(one: Cell) -> Forecast:
        return predictor.forecast(one, card=card, expandable=True)

    def worst_alone(one: Cell) -> Forecast:
        return predictor.forecast(one, card=card, worst_alone=True)

    with frozen() as freezes:
        forecast = ask(cell)
        if predictor.events <= MOST_EVENTS and (jumps := spread(cell, forecast, ask)):
            forecast = forecast.model_copy(update={"notes": (*forecast.notes, jumps)})
        fields = searched_fields(maximum)
        reach = tuple(largest(cell, field, ask, said=said, tell=tell) for field in fields)
        advice = None
        if advices:
            quick = None if cell.workload.lengths is None else worst_alone
            advice = advise(cell, advices, ask, quick=quick, expandable=expandable, said=said, tell=tell)
            if forecast.verdict != "fits" and maximum is None:
                forecast = forecast.model_copy(update={"notes": (*forecast.notes, less_work(cell))})
    warned = tuple(finding for finding in check(cell, "cuda") if finding.kind == "warn")
    return Answer(cell, card, forecast, warned, reach, advice)


def less_work(cell: Cell) -> str:
    """How to ask for the largest work that the cell as it is has room for: advice makes it less only where nothing else does."""
    fields = integer_fields(cell)
    length = "max_length" if "max_length" in fields else "response_tokens"
    asked = [name for name in ("group_size", length) if name in fields]
    return f"how much work it has room for as it is: --max {','.join(asked)}"
