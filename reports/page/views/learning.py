"""The view of loss and reward, and of how pairs are told apart, over the steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import altair as alt

from vrambench.methods.workload import AXIS_NAMES
from vrambench.reports import units
from vrambench.reports.page.charts import HUES, SHOWN, Chart, Legend, category, hues, legend, rounded, specification
from vrambench.reports.page.view import ChartsData, View
from vrambench.reports.report import Report, told_apart
from vrambench.reports.rows import Row

METRICS = ("loss", "reward", "margin", "accuracy")
"""What is drawn where cells tell it."""
WHOLE = "datum.value % 1 ? '' : format(datum.value, ',d')"
"""Labels of whole steps."""
CURVES = 60
"""Curves that one chart holds: with more, none could be followed."""
CURVE_POINTS = 6000
"""Points of all curves of one chart together, shown or not."""


def learning(report: Report) -> ChartsData | None:
    """Each of METRICS over the steps. Cells that differ in nothing but the seed are one group: thin lines, their mean
    and range."""
    drawn: list[Chart] = []
    remarks: list[str] = []
    for metric in METRICS:
        curves = {
            row.index: curve for row in report.rows if row.result and len(curve := row.result.learning.of(metric)) > 1
        }
        if not curves:
            continue
        shortest = max(2, max(map(len, curves.values())) // 4)
        rows = [row for row in report.rows if len(curves.get(row.index, ())) >= shortest]
        chart = learning_chart(metric, rows, report.labels, curves)
        if chart is None:
            continue
        drawn.append(chart)
        if short := len(curves) - len(rows):
            remarks.append(f"{metric}: {units.plural(short, 'cell')} of fewer than {shortest} steps not drawn.")
        if len(chart.rows) > CURVES:
            remarks.append(f"{metric}: the first {CURVES} cells, in the order and selection of the table.")
        if max(len(curves[row.index]) for row in rows) > curve_points(len(rows)):
            remarks.append(f"{metric}: long curves are drawn as means over equal stretches of steps.")
    if not drawn:
        return None
    text = (
        "Thin lines are cells; where cells differ in nothing but the seed, the thick line is their mean and the band their "
        "range."
    )
    return ChartsData(tuple(drawn), text, tuple(remarks))


def curve_points(count: int) -> int:
    """How many points each of `count` curves may have."""
    return max(8, CURVE_POINTS // max(1, count))


def learning_chart(
    metric: str, rows: Sequence[Row], labels: Mapping[int, str], values: Mapping[int, Sequence[float | None]]
) -> Chart | None:
    """`values` by row index over the steps, a facet per algorithm. None where no value is finite."""
    groups = group_names(rows, labels)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups.values()))}
    colour_title, colours = _curve_colours(rows, groups)
    names = list(dict.fromkeys(colours[row.index] for row in rows))
    points = curve_points(len(rows))
    data = []
    for row in rows:
        steps, thinned = _thinned(values[row.index], points)
        if steps:
            data.append(
                {
                    "i": row.index,
                    "cell": labels[row.index],
                    "algorithm": category(row.algorithm),
                    "group": numbers[groups[row.index]],
                    "shade": names.index(colours[row.index]),
                    "step": steps,
                    "value": thinned,
                }
            )
    if not data:
        return None
    # Data, selection and flattening belong to the facets' parent, so that no facet is drawn for what is not shown.
    base = alt.Chart()
    x, y = (
        alt.X("step:Q", title="step", axis=alt.Axis(labelExpr=WHOLE)),
        alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
    )
    colour = alt.Color("colour:N", scale=hues(names), legend=legend(colour_title, names, "legend_curves"))
    seeds = {"groupby": ["group", "step", "colour", "algorithm"]}
    spread = base.transform_aggregate(mean="mean(value)", low="min(value)", high="max(value)", seeds="count()", **seeds)
    spread = spread.transform_filter("datum.seeds > 1")
    tooltip = [alt.Tooltip("cell:N"), alt.Tooltip("step:Q"), alt.Tooltip("value:Q", title=metric, format=".4~g")]
    layers = alt.layer(
        spread.mark_area(opacity=0.18).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), color=colour, detail="group:N"),
        base.mark_line(strokeWidth=0.9, opacity=0.75).encode(x, y, color=colour, detail="i:N", tooltip=tooltip),
        spread.mark_line(strokeWidth=2.2).encode(x, alt.Y("mean:Q"), color=colour, detail="group:N"),
    ).properties(width=330, height=190)
    facet = alt.Facet(
        "algorithm:N", title=None, header=alt.Header(labelFontWeight="bold", labelFontSize=12, labelAnchor="start")
    )
    chart = (
        layers.facet(facet, columns=3, data=alt.NamedData(name="curves"))
        .transform_filter(SHOWN)
        .transform_flatten(["step", "value"])
        .transform_calculate(colour=f"{json.dumps(names)}[datum.shade]")
        .resolve_scale(y="independent", x="independent")
    )
    with_curve = {curve["i"] for curve in data}
    drawn = [row for row in rows if row.index in with_curve]
    legends = {"legend_curves": Legend.of_names(names, {row.index: [colours[row.index]] for row in drawn})}
    spec = specification(chart, drawn[:CURVES], {"curves": data}, legends)
    described = f"Line charts of {metric} over the steps, one for each algorithm, {units.plural(len(data), 'cell')}."
    indices = tuple(row.index for row in drawn)
    return Chart(metric, metric.capitalize(), described, spec, indices, limit=CURVES, legends=legends)


def group_names(rows: Sequence[Row], labels: Mapping[int, str]) -> dict[int, str]:
    """The group of each row by index: rows of one run whose cells differ in nothing but the seed have the same one."""
    names: dict[str, str] = {}
    groups: dict[int, str] = {}
    for row in rows:
        content = repr((row.run, sorted((key, repr(value)) for key, value in row.cell.items() if key != "seed")))
        groups[row.index] = names.setdefault(content, labels[row.index])
    return groups


def _curve_colours(rows: Sequence[Row], groups: Mapping[int, str]) -> tuple[str, dict[int, str]]:
    """What colour stands for, and its value for each row: the group, or where there are too many the axis that tells
    most apart."""
    if len(set(groups.values())) <= len(HUES):
        words = _told_apart(rows, groups)
        return "cells", {index: words[group] for index, group in groups.items()}
    choices = [axis for axis in AXIS_NAMES if axis != "algorithm"]
    distinct = {axis: len({str(row.cell.get(axis, "")) for row in rows}) for axis in choices}
    few = [axis for axis in choices if distinct[axis] <= len(HUES)] or [min(choices, key=distinct.__getitem__)]
    axis = max(few, key=distinct.__getitem__)
    return axis, {row.index: category(str(row.cell.get(axis, ""))) for row in rows}


def _told_apart(rows: Sequence[Row], groups: Mapping[int, str]) -> dict[str, str]:
    """What legends call a group: its algorithm, and where the algorithm has several what tells it from these."""
    firsts = {groups[row.index]: row for row in reversed(rows)}
    words = {}
    for name, row in firsts.items():
        rivals = [other for other in firsts.values() if other.algorithm == row.algorithm]
        algorithm = category(row.algorithm)
        words[name] = algorithm if len(rivals) == 1 else f"{algorithm}: {told_apart(rivals)[row.index]}"
    return words


def _thinned(values: Sequence[float | None], points: int) -> tuple[list[float], list[float]]:
    """Steps and values that are finite; with more than `points` of them, means over equal stretches of steps."""
    width = math.ceil(len(values) / points)
    steps, drawn = [], []
    for start in range(0, len(values), width):
        known = [
            (step, value)
            for step, value in enumerate(values[start : start + width], start)
            if value is not None and math.isfinite(value)
        ]
        if known:
            steps.append(rounded(sum(step for step, _ in known) / len(known)) if width > 1 else start)
            drawn.append(rounded(sum(value / len(known) for _, value in known)))
    return steps, drawn


VIEW = View("learning", "Loss and reward", "charts.html", learning)
