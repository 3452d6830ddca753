"""What a job may take on a GPU and its prediction leaves out, and whether that decides the verdict."""

from __future__ import annotations

from collections.abc import Iterable

from vrambench.bench.predict.band import Miss
from vrambench.bench.predict.tracing.trace import ALLOC, Trace
from vrambench.bench.results.forecast import Unmodelled
from vrambench.methods.cell import Cell

KNOWN = frozenset({"", "aten", "prims", "prim", "bitsandbytes", "transformers", "profiler"})
"""Namespaces of operators whose kernels were read (unseen/workspaces.py, and the axis values' own `workspaces`)."""


def unmodelled(cell: Cell, trace: Trace) -> tuple[Unmodelled, ...]:
    """What the cell's values say of themselves, and operators of libraries of which nobody has told what they take inside."""
    said = [value.unmodelled(cell.workload) for value in cell.values.values() if value.unmodelled]
    found = [Unmodelled(reason=reason) for reason in said if reason]
    told = {name for value in cell.values.values() for name in value.workspaces}
    operators = {event.operator for event in trace.events if event.kind == ALLOC}
    foreign = sorted(name for name in operators - told if name.partition(".")[0] not in KNOWN)
    if foreign:
        found.append(Unmodelled(reason=f"what {', '.join(foreign)} take inside themselves"))
    return tuple(found)


def missed(misses: Iterable[Miss], device_bytes: int) -> tuple[Unmodelled, ...]:
    """What `device_bytes` leave out if this job takes as much more as published ones of its kind, at least."""
    return tuple(
        Unmodelled(
            reason=f"{miss.row} of docs/accuracy.md, a job of this kind, ran out of memory where it was predicted to fit, and "
            f"so took {miss.share:.0%} more at least; why is not known",
            nbytes=round(miss.share * device_bytes),
        )
        for miss in misses
    )


def decides(one: Unmodelled, needed_bytes: int, budget_bytes: int) -> bool:
    """Whether it may be what does not fit. Where nobody knows its bytes, it is taken for as much again as all the rest."""
    return needed_bytes + (needed_bytes if one.nbytes is None else one.nbytes) > budget_bytes


def saves(one: Unmodelled, needed_bytes: int, budget_bytes: int) -> bool:
    """Whether the job may fit for it. Nobody knows by how much less it takes: by half of all at most."""
    return one.less and needed_bytes // 2 <= budget_bytes
