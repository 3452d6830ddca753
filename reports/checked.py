"""What a gate found, in words that the terminal, JUnit and Markdown share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vrambench.bench.gate.check import CellCheck, Check, Difference, Growth
from vrambench.bench.gate.tolerance import TIME
from vrambench.reports import units

OUTCOMES = {
    "regressed": "worse than the baseline",
    "failed": "failed to be measured",
    "improved": "better",
    "vanished": "not in this run any more",
    "new": "new",
    "same": "as before",
}


UNTOLD = "no role's weights, gradients or optimizer state grew; what else did is told of cells that both runs recorded (--record)"


def headline(found: Check) -> str:
    """What the whole came to, in a sentence."""
    if found.not_comparable:
        return f"not comparable: {'; '.join(found.not_comparable)}"
    shrank = any(not any(one.worse for one in cell.differences) for cell in found.of("regressed") if cell.differences)
    words = OUTCOMES | ({"regressed": "other than the baseline, by more than is allowed"} if shrank else {})
    counts = ", ".join(f"{count:,} {words[outcome]}" for outcome, count in found.counts.items())
    return f"{units.plural(len(found.cells), 'cell')}: {counts}" if found.cells else "no cells"


def differences(cell: CellCheck) -> Iterator[str]:
    """A line for each metric that changed by more than it may."""
    yield from (difference(one) for one in cell.differences)


def difference(one: Difference) -> str:
    """`reserved 1.25 GiB more: 12.3 GiB before, 13.6 GiB now (allowed: 64 MiB)`; to the byte where both would read alike."""
    shown: Callable[[float], str] = units.seconds if one.metric == TIME else units.size
    name = "step" if one.metric == TIME else one.metric.removesuffix("_bytes")
    change = one.now - one.before
    words = f"{name} {shown(abs(change))} {'more' if change > 0 else 'less'}"
    both = "{:,.0f} B".format if one.metric != TIME and abs(change) < one.before / 1000 else shown
    return f"{words}: {both(one.before)} before, {both(one.now)} now (allowed: {shown(one.allowed) if one.allowed else 'nothing'})"


def where(cell: CellCheck) -> str | None:
    """The phase that grew most."""
    if cell.phase is None:
        return None
    step = "" if cell.step is None else f" of step {cell.step}"
    return f"most in {cell.phase}{step}: {units.size(cell.phase_bytes)} more"


def growth(one: Growth) -> str:
    """`policy logits_and_loss +1.21 GiB: lm_head aten.mm.default in learn`."""
    whose = " ".join(filter(None, (one.role, one.kind)))
    by = " ".join(filter(None, (one.module, one.operator)))
    place = f" in {one.phase}" if one.phase else ""
    return f"{whose} +{units.size(one.grown_bytes)}" + (f": {by}{place}" if by or place else "")


def lines(cell: CellCheck) -> list[str]:
    """All that is known of a cell's change."""
    told = [cell.reason] if cell.reason else []
    told += differences(cell)
    if cell.outcome in ("regressed", "improved") and (place := where(cell)):
        told.append(place)
    if cell.outcome == "regressed":
        told += (growth(one) for one in cell.growth)
        if (
            not cell.growth
            and cell.phase
            and any(one.metric == "allocated_bytes" and one.worse for one in cell.differences)
        ):
            told.append(UNTOLD)
    return told
