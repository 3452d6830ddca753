"""What a few tokens more or less would take: cached blocks that just fit, or just do not, move reserved memory in cliffs.

spread(cell, forecast, ask)     "reserved memory jumps with the length: ...", or None where it does not by more than the band
"""

from __future__ import annotations

from vrambench.bench.predict.changes import changed
from vrambench.bench.predict.reach import Ask, rejection
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError

STEPS = (-8, -1, 1, 8)
"""Tokens by which the neighbours' prompts are longer."""

NEAR = 0.15
"""Share of the budget that the margin must be below for a cliff to matter: the largest seen was a tenth of a budget."""

MOST_EVENTS = 150_000
"""Allocs and frees of a job up to which four more predictions take a few seconds."""


def spread(cell: Cell, forecast: Forecast, ask: Ask) -> str | None:
    """A sentence where neighbouring lengths differ by more than the error band; where sequences are of several, many are predicted
    already."""
    if cell.workload.lengths is not None or abs(forecast.margin_bytes) > NEAR * forecast.budget_bytes:
        return None
    own = cell.workload.prompt_tokens
    taken = {own: forecast.memory.device_bytes or 0}
    for step in STEPS:
        try:
            variant = changed(cell, {"prompt_tokens": own + step})
        except ConfigurationError:
            continue
        if rejection(variant) is None:
            taken[own + step] = ask(variant).memory.device_bytes or 0
    least, most = min(taken, key=taken.__getitem__), max(taken, key=taken.__getitem__)
    if taken[most] - taken[least] <= forecast.band_bytes:
        return None
    return (
        f"reserved memory jumps with the length: {taken[least] / 2**30:.2f} GiB at {least} prompt tokens, "
        f"{taken[most] / 2**30:.2f} GiB at {most}, which is further apart than the error band"
    )
