"""What the page's script knows of the cells: by column, what a row shows and what it is sorted by."""

from __future__ import annotations

import math
from typing import Any

from vrambench.reports import units
from vrambench.reports.columns import Column
from vrambench.reports.page.views.cells import CellsData, Line
from vrambench.reports.page.views.timeline import TimelineData
from vrambench.reports.report import Report

TEXT_KINDS = ("text", "fit", "reason")


def table_data(report: Report, data: CellsData) -> dict[str, Any]:
    """`words`: by column of words, its different values and which of them each row has. `keys`: by column, sort keys that are
    no words. `basis`: the column of the peak by which cells are compared."""
    words = {"status": _coded([line.row.status for line in data.lines])}
    words |= {
        column.key: _coded([line.texts[place] for line in data.lines])
        for place, column in enumerate(data.columns)
        if column.kind in TEXT_KINDS
    }
    numbers = [column for column in data.columns if column.kind not in ("text", "reason")]
    return {
        "columns": {column.key: column.label for column in data.columns},
        "kinds": {column.key: column.kind for column in data.columns},
        "words": words,
        "secondary": [column.key for column in data.columns if column.secondary],
        "keys": {column.key: [_key(column, line) for line in data.lines] for column in numbers},
        "labels": [line.label for line in data.lines],
        "ids": [line.row.id for line in data.lines],
        "notes": [" ".join(line.notes) for line in data.lines] if any(line.notes for line in data.lines) else [],
        "basis": report.basis.removesuffix("_bytes") if report.basis else None,
        "budget": units.size(report.budgets[0]) if len(report.budgets) == 1 else None,
        "page": data.page,
    }


def live_data(data: TimelineData) -> dict[str, Any]:
    """What was in use at the peak of each cell that can be chosen: places of its words among `texts`, and its bytes."""
    texts: dict[str, int] = {}
    cells = {
        index: [
            [
                *(texts.setdefault(text, len(texts)) for text in (one.what, one.module, one.operator, one.phase)),
                one.nbytes,
            ]
            for one in live
        ]
        for index, live in (data.live or {}).items()
    }
    return {"texts": list(texts), "cells": cells}


def column_styles(table: dict[str, Any]) -> str:
    """Rules for the places that columns have on this page: numbers to the right, signs in the middle, the reason as wide as
    there is room."""
    ways = {
        "number": "text-align:right;white-space:nowrap",
        "sign": "text-align:center;padding-left:.1rem;padding-right:.1rem",
        "reason": "max-width:0;width:100%;min-width:9rem;overflow:hidden;text-overflow:ellipsis;color:var(--dim)",
    }
    rules = []
    for place, (key, kind) in enumerate(table.get("kinds", {}).items(), 2):
        cells = "{0}>thead th:nth-child({1}),{0}>tbody>tr:first-child>td:nth-child({1})"
        if kind in ways:
            rules.append(f"{cells.format('#table', place)}{{{ways[kind]}}}")
        if key in table["secondary"]:
            rules.append(f"{cells.format('#table:not(.all)', place)}{{display:none}}")
    return "".join(f"{rule}\n" for rule in rules)


def _coded(values: list[str]) -> dict[str, list[Any]]:
    different = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return {"values": list(different), "of": [different[value] for value in values]}


def _key(column: Column, line: Line) -> Any:
    value = column.sort(line.row)
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
