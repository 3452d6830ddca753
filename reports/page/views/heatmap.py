"""The view of one field against another: the best cell of each pair of values, as a map that leads to its cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vrambench.reports import units
from vrambench.reports.columns import Column, columns
from vrambench.reports.page.view import View
from vrambench.reports.pairs import pairs
from vrambench.reports.report import PEAKS, Report
from vrambench.reports.rows import Row, peak_basis

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
    values. `runs`: of several, those that can be chosen; `run`: the one that is shown first, "" for all together."""

    fields: tuple[tuple[str, str], ...]
    measures: tuple[tuple[str, str], ...]
    measure: str
    down: str
    across: str
    runs: tuple[str, ...]
    run: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Square, ...]], ...]


def heatmap(report: Report) -> HeatmapData | None:
    """None where fewer than two fields vary, or no cell has a peak or a rate."""
    fields = [column for column in columns(report) if column.kind == "text" and column.key != "source"]
    measures = _measures(report)
    if len(fields) < 2 or not measures:
        return None
    run = _run(report)
    rows = [row for row in report.rows if run in ("", row.run)]
    down, across = _chosen(rows, fields)
    basis = peak_basis(rows) or report.basis or ""
    heads, names = _values(rows, across), _values(rows, down)
    squares: dict[tuple[str, str], list[Row]] = {(name, head): [] for name in names for head in heads}
    for row in rows:
        squares[down.text(row), across.text(row)].append(row)

    def value(row: Row) -> int | None:
        return getattr(row.memory, basis) if basis else None

    known = [best for of in squares.values() if (best := _best(of, value)) is not None]
    low, high = min(known, default=0), max(known, default=0)
    lines = tuple((name, tuple(_square(squares[name, head], value, low, high) for head in heads)) for name in names)
    return HeatmapData(
        tuple((column.key, column.label) for column in fields),
        measures,
        basis.removesuffix("_bytes"),
        down.key,
        across.key,
        tuple(one.name for one in report.runs) if len(report.runs) > 1 else (),
        run,
        tuple(heads),
        lines,
    )


def _measures(report: Report) -> tuple[tuple[str, str], ...]:
    """Key of the column and name of what some cell that is ok has; nothing where no cell has a peak."""
    found = [
        (key.removesuffix("_bytes"), f"peak of {words}")
        for key, words in PEAKS.items()
        if any(getattr(row.memory, key) is not None for row in report.ok)
    ]
    if found and any(row.tokens_per_second for row in report.ok):
        found.append(("tokens", "tokens per second"))
    return tuple(found)


def _run(report: Report) -> str:
    """Of runs that have no cell in common, which are other work, the one whose cells are known to fit or not, else the first;
    all together where they have."""
    found = pairs(report)
    if found is None or found.pairs:
        return ""
    judged = [run for run in found.runs if any(row.run == run and row.verdict.fit != "unknown" for row in report.rows)]
    return (*judged, *found.runs)[0]


def _chosen(rows: Sequence[Row], fields: Sequence[Column]) -> tuple[Column, Column]:
    """The two of most values, as far as they have room; the one of fewer stands across."""
    counts = {column.key: len(_values(rows, column)) for column in fields}
    by_values = sorted(fields, key=lambda column: (counts[column.key] > LONGEST, -counts[column.key]))
    narrow = [column for column in by_values[1:] if counts[column.key] <= WIDEST]
    return by_values[0], (narrow or by_values[1:])[0]


def _values(rows: Sequence[Row], column: Column) -> list[str]:
    return list(dict.fromkeys(column.text(row) for row in rows))


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
