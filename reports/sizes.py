"""Whether a cell fits on a card of each usual size, from what it needed: measured, else predicted.

    verdicts(row)               ->  {8: "does not fit", 12: "does not fit", 16: "tight", 24: "fits", ...}

Cards of one size do not offer the same: a card of 24 GB leaves a process 22.0 to 23.7 GiB. A cell fits where it stays under the
least of them by more than the error band of a prediction; it is tight where only some of them have room, or only if the allocator
gives back what it keeps cached. The verdict under the cell's own budget counts before that.
"""

from __future__ import annotations

from vrambench.bench.predict.band import error_band
from vrambench.methods.cards import CARDS, DRIVERS_SHARE, GIB
from vrambench.reports.rows import Fit, Row

SIZES = (8, 12, 16, 24, 40, 48, 80)
"""What cards are called by, in GB."""


def capacities(size: int) -> tuple[int, int]:
    """The least and the most bytes that cards of this size offer to a process; of a size of which no figure is known, what is left
    by the most that a driver keeps."""
    marked = size * GIB
    known = [card.usable_bytes for card in CARDS.values() if card.marked_bytes == marked and card.usable_bytes]
    least = round((1 - DRIVERS_SHARE) * marked)
    return (min(known), max(known)) if known else (least, least)


CAPACITIES = {size: capacities(size) for size in SIZES}


def verdicts(row: Row) -> dict[int, Fit]:
    """By size; empty where nothing is known of the cell's device memory."""
    result = row.result
    if result is None or result.status == "invalid":
        return {}
    told = _under_budget(row)
    whole = result.status == "ok" or (result.status == "oom" and result.source == "predicted")
    held = result.memory if whole else result.predicted
    needed = held.device_bytes if held else None
    if needed is None or held is None:
        return told
    exact = result.status == "ok" and result.source != "predicted"
    band = 0 if exact else (result.predicted_verdict.band_bytes if result.predicted_verdict else None)
    band = round(error_band().share * needed) if band is None else band
    cached = max(0, held.reserved_bytes - held.active_bytes) if held.reserved_bytes and held.active_bytes else 0
    return {size: told.get(size) or _fit(needed, band, cached, *CAPACITIES[size]) for size in SIZES}


def _fit(needed: int, band: int, cached: int, least: int, most: int) -> Fit:
    """Bytes in, a verdict out."""
    if needed + band <= least:
        return "fits"
    return "tight" if needed - cached <= most else "does not fit"


def _under_budget(row: Row) -> dict[int, Fit]:
    """What the verdict under the cell's own budget says of sizes: what fits there fits on larger cards, and what does not fits
    on no smaller one."""
    budget, fit = row.budget_bytes, row.verdict.fit
    if budget is None or fit == "unknown":
        return {}
    if row.result and row.result.source == "measured" and row.device_capacity_bytes and fit == "does not fit":
        budget = min(budget, row.device_capacity_bytes)
    told: dict[int, Fit] = {}
    for size, (least, most) in CAPACITIES.items():
        named = (1 - DRIVERS_SHARE) * size * GIB <= budget <= size * GIB or least <= budget <= most
        if named:
            told[size] = fit
        elif fit == "fits" and budget < least:
            told[size] = "fits"
        elif fit == "does not fit" and most < budget:
            told[size] = "does not fit"
    return told


def smallest(row: Row) -> int | None:
    """The smallest size on which the cell fits, be it tightly; None where it fits on none, or nothing is known."""
    return next((size for size, fit in verdicts(row).items() if fit in ("fits", "tight")), None)
