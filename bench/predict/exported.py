"""A predicted job as a recording: what torch would have recorded of it on a GPU, for PyTorch's memory viewer and for `explain`.

    forecast, recording = recorded(cell, card=CARDS["rtx-4090"])
    Path("cell.pickle").write_bytes(pickle.dumps(recording))

Every block says what asked for it: in the place of lines of code the operator, the module with its role, and the phase. Its
metadata says what it is, as the ledger does: `policy weights`, `critic optimizer`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from vrambench.bench.allocator import AllocatorSettings
from vrambench.bench.allocator.snapshot import Asked, snapshot_of
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.replay import Replay, whose
from vrambench.bench.predict.tracing.trace import ALLOC, Place
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.called import card_of
from vrambench.methods.cards import Card
from vrambench.methods.cell import Cell


def recorded(cell: Cell, card: Card | None = None, alloc_conf: str | None = None) -> tuple[Forecast, dict[str, Any]]:
    """The prediction for `cell` on `card` under its own budget, and what torch.cuda.memory._snapshot() would give after it: loading
    and two steps, or up to where memory runs out. Times are the entries' numbers, as microseconds: nothing has run. Raises as
    `Predictor.forecast`."""
    predictor = Predictor(alloc_conf)
    card = card or card_of(cell.workload.budget)
    forecast = predictor.forecast(cell, card=card)
    trace = predictor.simulation(cell, card).trace
    allowed = _allowed_bytes(forecast)
    replay = Replay(trace, AllocatorSettings.parse(forecast.alloc_conf), allowed, record=True)
    # Nothing is recorded of requests of 0 bytes.
    requests = (event for event in trace.events if event.kind == ALLOC and event.nbytes)
    asked = [_asked(event.operator, event.place, *whose(event, trace)) for event in requests]
    if replay.oom is not None and allowed is not None:
        _tell_what_was_left(replay, allowed)
    return forecast, snapshot_of(replay.allocator, asked=asked, spans=replay.spans)


def _allowed_bytes(forecast: Forecast) -> int | None:
    """What the allocator may reserve where that decides; None where all fits."""
    memory = forecast.memory
    budget = forecast.budget_bytes - (memory.elsewhere_bytes or 0)
    return None if forecast.unlimited_bytes <= budget else max(0, budget - (memory.context_bytes or 0))


def _tell_what_was_left(replay: Replay, allowed: int) -> None:
    """On a card the driver says it. The model knows a cap, and no card."""
    entries = replay.allocator.trace
    assert entries is not None
    action, _, nbytes, stream = entries[-1]
    assert action == "oom"
    entries[-1] = action, allowed - replay.allocator.stats.reserved.current, nbytes, stream


@cache
def _asked(operator: str, place: Place, role: str | None, kind: str) -> Asked:
    """Innermost frame first. The same object for the same words: a file names it once."""
    module = "/".join(filter(None, (place.role, place.module))) or "job"
    phase = place.phase or "load"
    step = "" if place.step is None else f"step {place.step}"
    passing = "backward" if place.backward else "forward" if place.module else phase
    frames = (
        {"filename": module, "line": 0, "name": operator},
        {"filename": "/".join(filter(None, (step, phase))), "line": 0, "name": passing},
    )
    return Asked([*frames], " ".join(filter(None, (role, kind))))
