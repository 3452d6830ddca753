"""Sequences of several lengths: which batches are simulated, and what is told of the worst and of a usual one.

The first are those that the job itself draws: lengths that change from batch to batch leave cached blocks that do not fit the next.
Then come the worst, as in the step in which a measurement counts bytes, and a usual one, to tell what that takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vrambench.bench.allocator import AllocatorSettings
from vrambench.bench.predict.replay import Replay
from vrambench.bench.results.forecast import PredictedBatch, PredictedBatches
from vrambench.methods.batches import Batch, Batches, Kind
from vrambench.methods.cell import Cell

MOST_DRAWN = 8
"""Micro-batches that are drawn; of two steps at least."""

AFTER = ("evaluate", "save")
"""Phases that follow a step under its number."""

Peaks = Mapping[tuple[str, int | None], tuple[int, int]]
"""Allocated and reserved bytes, by phase and step."""


def order_of(cell: Cell, *, worst_alone: bool = False) -> tuple[Kind, ...]:
    """Which batches the simulated steps have, the last of them in the memory that an evaluation leaves; none where all sequences
    are as long. `worst_alone`: each of the worst, and before them one, with which optimizer state comes into being."""
    work = cell.workload
    if work.lengths is None:
        return ()
    drawn: tuple[Kind, ...] = ("drawn",)
    worst: tuple[Kind, ...] = ("worst",)
    if worst_alone:
        return worst * (1 + len(Batches(work).worst))
    steps = min(work.warmup_steps + work.steps, MOST_DRAWN // work.gradient_accumulation_steps)
    after = () if work.eval_batch_size is None else worst
    return (*drawn * max(2, steps), *worst * len(Batches(work).worst), "usual", *after)


def predicted_batches(cell: Cell, peaks: Peaks) -> PredictedBatches | None:
    """What the simulated steps show of the worst batch and of a usual one."""
    order = order_of(cell)
    if not order:
        return None
    batches = Batches(cell.workload)
    worst = [_predicted(batch, step, peaks) for step, batch in enumerate(batches.worst, start=order.index("worst"))]
    usual = _predicted(batches.usual, order.index("usual"), peaks)
    return PredictedBatches(
        worst=max(worst, key=lambda one: one.allocated_bytes), worst_share=batches.worst_share, usual=usual
    )


def order_note(replay: Replay, settings: AllocatorSettings) -> str:
    """How far reserved memory goes with the order in which lengths come."""
    growing = replay.reserved_bytes
    if not settings.expandable_segments:
        growing = Replay(replay.trace, dataclasses.replace(settings, expandable_segments=True)).reserved_bytes
    return (
        f"reserved memory goes with the order in which lengths come: {replay.reserved_bytes / 2**30:.2f} GiB in that of the job's "
        f"first batches, {growing / 2**30:.2f} GiB with expandable segments; other orders leave more cached, up to the budget, "
        "where the allocator gives it back"
    )


def _predicted(batch: Batch, step: int, peaks: Peaks) -> PredictedBatch:
    return PredictedBatch(
        step=step,
        rows=len(batch.rows),
        row_tokens=batch.width,
        tokens=batch.tokens,
        sequences=sum(map(len, batch.rows)),
        allocated_bytes=max(
            (allocated for (phase, its), (allocated, _) in peaks.items() if its == step and phase not in AFTER),
            default=0,
        ),
    )
