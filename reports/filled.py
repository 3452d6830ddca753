"""What filled a cell's memory, in parts that add up: the same kinds as `fit` tells, as far as the result holds them.

A prediction knows what is live at the peak by kind, and so does a measurement that was recorded. Any other counts weights,
gradients and optimizer state by role; the rest of what was allocated is one part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vrambench.bench.results.records import Held, Memory, RoleBytes, Share
from vrambench.reports.rows import Row

COUNTED = ("weights", "gradients", "optimizer")
"""Kinds that a measurement counts, too, by role."""
REST = "activations and workspace"
LITTLE = "little parts"
WHOLE = "allocated"
"""Where nothing tells what it was."""
BEYOND = ("held by the allocator", "outside PyTorch")
"""From allocated to reserved bytes, and on to the device's."""


def parts(row: Row) -> list[tuple[str, int]]:
    """Parts in bytes: of each role what it holds, then of other kinds, then the rest up to each further peak, as far as these are
    known. A role's part is called `policy weights`."""
    result = row.result
    if result is None:
        return []
    told = _told_at_peak(row) or counted(result.roles)
    return _up_to_peaks(told, LITTLE if result.held else REST if told else WHOLE, result.memory)


def _up_to_peaks(told: list[tuple[str, int]], rest: str, memory: Memory) -> list[tuple[str, int]]:
    """The parts, and what is beyond them up to each peak."""
    filled = sum(held for _, held in told)
    whole = list(told)
    for name, peak in zip((rest, *BEYOND), _peaks(memory), strict=True):
        if peak is None or peak < filled:
            break
        whole.append((name, peak - filled))
        filled = peak
    return [(name, held) for name, held in whole if held > 0]


def _peaks(memory: Memory) -> tuple[int | None, int | None, int | None]:
    return memory.allocated_bytes, memory.reserved_bytes, memory.device_bytes


def _told_at_peak(row: Row) -> list[tuple[str, int]]:
    """Of a predicted or recorded cell: what was live at the peak."""
    assert row.result is not None
    return told_parts(row.result.held, row.result.roles)


def told_parts(live: Iterable[Held | Share], roles_in_order: Iterable[str]) -> list[tuple[str, int]]:
    """What is live at a peak, by role where a measurement tells the role, too, else by kind alone."""
    found: dict[tuple[str | None, str], int] = {}
    for held in live:
        role = held.role if held.kind in COUNTED else None
        found[role, held.kind] = found.get((role, held.kind), 0) + held.nbytes
    roles = {role: place for place, role in enumerate(roles_in_order)}

    def order(key: tuple[str | None, str]) -> tuple[int, int, str]:
        role, kind = key
        return COUNTED.index(kind) if kind in COUNTED else len(COUNTED), roles.get(role or "", len(roles)), kind

    return [(" ".join(filter(None, key)), found[key]) for key in sorted(found, key=order)]


def counted(roles: Mapping[str, RoleBytes]) -> list[tuple[str, int]]:
    """What roles hold."""
    return [(f"{role} {kind}", getattr(held, f"{kind}_bytes")) for kind in COUNTED for role, held in roles.items()]


def foretold(row: Row) -> list[tuple[str, int]]:
    """Of a measured cell: the parts that were predicted, up to the device's bytes; none where the result does not tell."""
    result = row.result
    if result is None or result.predicted is None or result.predicted_parts is None:
        return []
    told = told_parts(result.predicted_parts.held, result.roles)
    return _up_to_peaks(told, LITTLE, result.predicted)


def compared(row: Row) -> list[tuple[str, int | None, int | None]]:
    """Parts of a measured cell and of its prediction side by side, in bytes: what was in use at the peak where the cell was
    recorded, else what roles hold."""
    result = row.result
    if result is None or result.predicted_parts is None:
        return []
    if result.held:
        both = told_parts(result.held, result.roles), told_parts(result.predicted_parts.held, result.roles)
    else:
        both = counted(result.roles), counted(result.predicted_parts.roles)
    real, told = map(dict, both)
    return [(name, real.get(name), told.get(name)) for name in dict.fromkeys((*real, *told))]


def beyond_peak(row: Row) -> bool:
    """Whether the roles hold more than the peak of what was allocated on the device."""
    if row.result is None or row.result.held or row.memory.allocated_bytes is None:
        return False
    return sum(held for _, held in counted(row.result.roles)) > row.memory.allocated_bytes


def prediction_error(row: Row) -> tuple[int, float] | None:
    """Predicted bytes of the outermost line of the ledger that was measured, too, and the signed error as a share of the
    measurement."""
    result = row.result
    if result is None or result.predicted is None or result.source == "predicted" or result.status != "ok":
        return None
    for key in ("device_bytes", "reserved_bytes", "allocated_bytes"):
        told, real = getattr(result.predicted, key), getattr(result.memory, key)
        if told is not None and real:
            return told, (told - real) / real
    return None
