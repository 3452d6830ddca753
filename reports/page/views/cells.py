"""The view of every cell: for each its row of the table and its details, as text that only needs placing."""

from __future__ import annotations

from dataclasses import dataclass

from vrambench.reports.columns import SWEPT_COLUMNS, Column, columns, why
from vrambench.reports.page.details import Table, facts, tables
from vrambench.reports.page.view import View
from vrambench.reports.report import Report
from vrambench.reports.rerun import command
from vrambench.reports.rows import Row
from vrambench.reports.sizes import SIZES

PAGE = 100
"""Rows that are in the page's table at once; the script shows more when asked. To lay twice as many out doubles what a browser does
before the page answers."""


@dataclass(frozen=True)
class Line:
    """One cell of the table. `command` runs it again."""

    row: Row
    label: str
    texts: tuple[str, ...]
    why: str | None
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class Filter:
    """A choice among a column's values."""

    key: str
    label: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class CellsData:
    """`common`: what holds for every cell. `sizes`: of cards, where it is known which the cells fit. `more_fields`: swept fields
    that are no columns."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    filters: tuple[Filter, ...]
    statuses: dict[str, int]
    common: tuple[tuple[str, str], ...]
    sizes: tuple[int, ...]
    more_fields: tuple[str, ...]
    page: int = PAGE


def cells(report: Report) -> CellsData | None:
    """Every cell, with what its row shows, what it is sorted by and what its details hold."""
    if not report.rows:
        return None
    shown = columns(report)
    choices = [column for column in shown if column.kind in ("text", "fit")]
    filters = (
        Filter(column.key, column.label, tuple(sorted({column.text(row) for row in report.rows}))) for column in choices
    )
    return CellsData(
        shown,
        tuple(_line(report, row, shown) for row in report.rows),
        tuple(one for one in filters if len(one.values) > 1),
        report.counts,
        report.common,
        SIZES if any(column.kind == "sign" for column in shown) else (),
        report.swept[SWEPT_COLUMNS:],
    )


def _line(report: Report, row: Row, shown: tuple[Column, ...]) -> Line:
    result = row.result
    return Line(
        row=row,
        label=report.labels[row.index],
        texts=tuple(column.text(row) for column in shown),
        why=why(row),
        facts=facts(row),
        tables=tables(row),
        notes=tuple(note for note in result.notes if note not in report.common_notes) if result else (),
        command=command(row, report.infos[row.run]),
    )


VIEW = View("cells", "Every cell", "cells.html", cells)
