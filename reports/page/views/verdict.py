"""The view of what a reader takes away: what fits which card, as a picture, and which cells are the fastest and the smallest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from vrambench.reports import units
from vrambench.reports.alike import Like
from vrambench.reports.page.charts import SHOWN, Chart, specification
from vrambench.reports.page.view import ChartsData, View
from vrambench.reports.report import Report
from vrambench.reports.sizes import SIZES, verdicts
from vrambench.reports.summary import Summary, summary

BAR = 26
"""Pixels that a bar and its gap take."""
LINES = 12
"""Groups of like work that are shown, those of most cells first."""
USUAL_SIZE = 24
"""The card, in GB, that the headline is about where no budget is."""
NO_BUDGET = 256 * 2**30
"""A budget of more bytes than any card has limits nothing."""
UNKNOWN = "not known"
FIT_HUES = {"fits": "#009e73", "tight": "#e6b422", "unsure": "#b79bd0", "does not fit": "#d55e00", UNKNOWN: "#a8a8a8"}
STATUS_HUES = {
    **{"ok": "#009e73", "oom": "#d55e00", "timeout": "#e69f00", "crashed": "#cc79a7", "error": "#9b2242"},
    **{"invalid": "#a8a8a8", "pruned": "#b79bd0", "unreadable": "#6b4fa0", "not run": "#cfd3d8"},
}


@dataclass(frozen=True)
class VerdictData(ChartsData):
    """`figure`: the headline's number, `of`: what it counts, `by`: by which column of the table. `more`: groups that are not
    shown."""

    figure: str = ""
    of: str = ""
    by: str = ""
    sentences: tuple[str, ...] = ()
    lines: tuple[Like, ...] = ()
    judged: bool = False
    rated: bool = False
    more: int = 0


def verdict(report: Report) -> VerdictData:
    """What a reader takes away."""
    told = summary(report)
    figure, of, by = headline(report, told)
    lines = told.lines[:LINES]
    return VerdictData(
        (on_cards(report) if told.sized else by_status(report),) if report.rows else (),
        figure=figure,
        of=of,
        by=by,
        sentences=told.sentences,
        lines=lines,
        judged=told.judged,
        rated=any(line.fastest for line in lines),
        more=len(told.lines) - len(lines),
    )


def headline(report: Report, told: Summary) -> tuple[str, str, str]:
    """How many cells fit their budget; a usual card where the budget is larger than any; where neither is known, how many
    ended well."""
    if told.known and not (report.budgets and min(report.budgets) > NO_BUDGET):
        budget = units.size(report.budgets[0]) if len(report.budgets) == 1 else "their budgets"
        return f"{told.fitting:,} of {told.known:,}", f"cells fit {budget}", "fit"
    found = [fit for row in report.rows if (fit := verdicts(row).get(USUAL_SIZE))]
    if found:
        fitting = sum(fit in ("fits", "tight") for fit in found)
        return f"{fitting:,} of {len(found):,}", f"cells fit a card of {USUAL_SIZE} GB", f"gb{USUAL_SIZE}"
    return f"{len(report.ok):,} of {len(report.rows):,}", "cells ended well", "status"


def on_cards(report: Report) -> Chart:
    """A bar for each size of card: how many cells fit it. What was never started has no part in it."""
    order = [*FIT_HUES]
    data: list[dict[str, Any]] = []
    rows = []
    for row in report.rows:
        found = verdicts(row)
        if found:
            rows.append(row)
            places = [order.index(found.get(size, UNKNOWN)) for size in SIZES]
            data.append({"i": row.index, "size": SIZES, "place": places})
    present = [fit for place, fit in enumerate(FIT_HUES) if any(place in one["place"] for one in data)]
    return _counts(
        "cards",
        "What fits which card",
        f"Bars of {units.plural(len(rows), 'cell')} by size of card: how many fit, are tight and do not fit.",
        data,
        {fit: FIT_HUES[fit] for fit in present},
        "'card of ' + datum.size + ' GB'",
        [f"card of {size} GB" for size in SIZES],
        [row.index for row in rows],
        list(FIT_HUES),
        report,
    )


def by_status(report: Report) -> Chart:
    """Where no device memory is known: how the cells ended, by algorithm."""
    order = [*STATUS_HUES]
    data = [
        {"i": row.index, "size": [units.short(row.algorithm, 40) or units.DASH], "place": [order.index(row.status)]}
        for row in report.rows
    ]
    present = {row.status for row in report.rows}
    return _counts(
        "cards",
        "How the cells ended",
        f"Bars of {units.plural(len(data), 'cell')} by algorithm: how they ended.",
        data,
        {status: hue for status, hue in STATUS_HUES.items() if status in present},
        "datum.size",
        None,
        [row.index for row in report.rows],
        order,
        report,
    )


def _counts(
    id_: str,
    title: str,
    described: str,
    data: Sequence[dict[str, Any]],
    hues: dict[str, str],
    label: str,
    bars: list[str] | None,
    indices: list[int],
    order: list[str],
    report: Report,
) -> Chart:
    """Stacked bars of how many rows are what, each part with its number in it."""
    base = (
        alt.Chart(alt.NamedData(name="counts"))
        .transform_filter(SHOWN)
        .transform_flatten(["size", "place"])
        .transform_calculate(bar=label, part=f"{json.dumps(order)}[datum.place]")
        .transform_aggregate(count="count()", groupby=["bar", "part", "place"])
    )
    sort = bars or alt.EncodingSortField("count", op="sum", order="descending")
    y = alt.Y("bar:N", title=None, sort=sort, axis=alt.Axis(labelLimit=150, ticks=False, domain=False))
    x = alt.X("count:Q", title="cells", stack="zero", axis=alt.Axis(tickMinStep=1, grid=False, format=",d"))
    colour = alt.Color(
        "part:N",
        scale=alt.Scale(domain=list(hues), range=list(hues.values())),
        legend=alt.Legend(title=None, orient="top", symbolType="square"),
    )
    bar = base.mark_bar(height={"band": 0.78}).encode(
        x, y, color=colour, order=alt.Order("place:Q"), tooltip=["bar:N", "part:N", "count:Q"]
    )
    number = base.mark_text(fontSize=11, fontWeight="bold").encode(
        alt.X("count:Q", stack="zero", bandPosition=0.5),
        y,
        text=alt.Text("count:Q", format=",d"),
        order=alt.Order("place:Q"),
        detail="part:N",
    )
    chart = alt.layer(bar, number).properties(
        width=620, height=BAR * (len(bars) if bars else len({str(one["size"]) for one in data}))
    )
    rows = [report.rows[index] for index in indices]
    spec = specification(chart, rows, {"counts": list(data)})
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return Chart(id_, title, described, spec, tuple(indices), min_width=300)


VIEW = View("verdict", "Verdict", "verdict.html", verdict)
