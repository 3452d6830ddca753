"""The view of one field against another: the best cell of each pair of values, as a map that leads to its cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vrambench.reports import units
from vrambench.reports.columns import Column, columns
from vrambench.reports.page.view import View
from vrambench.reports.report import PEAKS, Report
from vrambench.reports.rows import Row

LEVELS = 7
"""Shades of a map."""
WIDEST = 12
LONGEST = 40
"""Values of a field that stands across, and down, at most, where the page chooses."""


@dataclass(frozen=True)
class Square:
    """One pair of values. `level`: its shade, 0 for the least; None where no cell of it is ok. `state`: what its cells came to
    where none is."""

    text: str
    level: int | None
    state: str
    cells: int


@dataclass(frozen=True)
class HeatmapData:
    """`fields`: what can be chosen, keys and labels of columns. `down`, `across`: the two that are shown first, with their
    values."""

    fields: tuple[tuple[str, str], ...]
    measures: tuple[tuple[str, str], ...]
    down: str
    across: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Square, ...]], ...]


def heatmap(report: Report) -> HeatmapData | None:
    """None where fewer than two fields vary, or no cell has a peak or a rate."""
    fields = [column for column in columns(report) if column.kind == "text" and column.key != "source"]
    measures = list(_measures(report))
    if len(fields) < 2 or not measures:
        return None
    down, across = _chosen(report, fields)
    _, _, value, _ = measures[0]
    heads, names = _values(report, across), _values(report, down)
    squares: dict[tuple[str, str], list[Row]] = {(name, head): [] for name in names for head in heads}
    for row in report.rows:
        squares[down.text(row), across.text(row)].append(row)
    known = [best for rows in squares.values() if (best := _best(rows, value)) is not None]
    lines = tuple(
        (name, tuple(_square(squares[name, head], value, min(known), max(known)) for head in heads)) for name in names
    )
    return HeatmapData(
        tuple((column.key, column.label) for column in fields),
        tuple((key, label) for key, label, _, _ in measures),
        down.key,
        across.key,
        tuple(heads),
        lines,
    )


def _measures(report: Report) -> list[tuple[str, str, Callable[[Row], float | None], bool]]:
    """Key of the column, name, value, and whether more is better, of what some cell that is ok has."""
    found: list[tuple[str, str, Callable[[Row], float | None], bool]] = []
    if report.basis and any(report.peak(row) is not None for row in report.ok):
        found.append((report.basis.removesuffix("_bytes"), f"peak of {PEAKS[report.basis]}", report.peak, False))
        if any(row.tokens_per_second for row in report.ok):
            found.append(("tokens", "tokens per second", lambda row: row.tokens_per_second, True))
    return found


def _chosen(report: Report, fields: Sequence[Column]) -> tuple[Column, Column]:
    """The two of most values, as far as they have room; the one of fewer stands across."""
    counts = {column.key: len(_values(report, column)) for column in fields}
    by_values = sorted(fields, key=lambda column: (counts[column.key] > LONGEST, -counts[column.key]))
    narrow = [column for column in by_values[1:] if counts[column.key] <= WIDEST]
    return by_values[0], (narrow or by_values[1:])[0]


def _values(report: Report, column: Column) -> list[str]:
    return list(dict.fromkeys(column.text(row) for row in report.rows))


def _best(rows: Sequence[Row], value: Callable[[Row], float | None]) -> float | None:
    return min((found for row in rows if row.status == "ok" and (found := value(row)) is not None), default=None)


def _square(rows: Sequence[Row], value: Callable[[Row], float | None], low: float, high: float) -> Square:
    best = _best(rows, value)
    if best is not None:
        share = (best - low) / (high - low) if high > low else 0.0
        return Square(units.size(best), min(LEVELS - 1, int(share * LEVELS)), "", len(rows))
    if not rows:
        return Square("", None, "none", 0)
    state = "oom" if any(row.status == "oom" for row in rows) else rows[0].status
    needed = min((found for row in rows if row.status == "oom" and (found := value(row)) is not None), default=None)
    return Square(units.size(needed) if needed else state, None, state, len(rows))


VIEW = View("heatmap", "One field against another", "heatmap.html", heatmap)
