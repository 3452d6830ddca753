"""The view of several runs side by side."""

from __future__ import annotations

from dataclasses import dataclass

from vrambench.reports import units
from vrambench.reports.page.view import View
from vrambench.reports.pairs import Pair
from vrambench.reports.pairs import pairs as paired
from vrambench.reports.report import PEAKS, Report
from vrambench.reports.rows import Row

LINES = 500
"""Pairs that are shown, those that differ most first."""


@dataclass(frozen=True)
class Side:
    """A cell in one run. `peak_by`, `rate_by`: by how much it differs from the first run's; `worse`, `better`: which way."""

    index: int | None
    status: str
    peak: str
    rate: str
    peak_by: str = ""
    rate_by: str = ""
    peak_way: str = ""
    rate_way: str = ""


@dataclass(frozen=True)
class PairLine:
    label: str
    changed: bool
    sides: tuple[Side, ...]


@dataclass(frozen=True)
class PairsData:
    """`more`: pairs that are not shown."""

    runs: tuple[str, ...]
    peak: str
    rated: bool
    lines: tuple[PairLine, ...]
    changed: int
    total: int
    alone: tuple[str, ...]
    more: int


def pairs(report: Report) -> PairsData | None:
    """None for one run, and where no cell is in several."""
    found = paired(report)
    if found is None or not found.pairs:
        return None
    lines = tuple(_line(report, pair) for pair in found.pairs[:LINES])
    return PairsData(
        found.runs,
        PEAKS.get(report.basis or "", "memory"),
        any(row and row.tokens_per_second for pair in found.pairs for row in pair.rows),
        lines,
        sum(pair.changed for pair in found.pairs),
        len(found.pairs),
        tuple(
            f"{run}: {units.plural(count, 'cell')}" for run, count in zip(found.runs, found.alone, strict=True) if count
        ),
        len(found.pairs) - len(lines),
    )


def _line(report: Report, pair: Pair) -> PairLine:
    first, *others = pair.rows
    sides = [_side(report, first, None), *(_side(report, row, first) for row in others)]
    return PairLine(pair.label, pair.changed, tuple(sides))


def _side(report: Report, row: Row | None, first: Row | None) -> Side:
    if row is None:
        return Side(None, "", units.DASH, units.DASH)
    peak, rate = report.peak(row), row.tokens_per_second
    told = Side(row.index, row.status, units.size(peak), units.rate(rate))
    if first is None:
        return told
    before, then = report.peak(first), first.tokens_per_second
    by = peak - before if peak is not None and before is not None else None
    ratio = rate / then - 1 if rate and then else None
    peak_by = (
        units.signed_size(by) + (f" ({units.percent(by / before)})" if by and before else "") if by is not None else ""
    )
    return Side(
        told.index,
        told.status,
        told.peak,
        told.rate,
        peak_by,
        units.percent(ratio) if ratio is not None else "",
        _way(by),
        _way(-ratio if ratio is not None else None),
    )


def _way(grown: float | None) -> str:
    return "worse" if grown and grown > 0 else "better" if grown and grown < 0 else ""


VIEW = View("pairs", "Runs side by side", "pairs.html", pairs)
