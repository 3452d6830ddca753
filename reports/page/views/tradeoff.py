"""The view of memory against throughput, with each algorithm's Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import altair as alt

from vrambench.reports import units
from vrambench.reports.page.charts import (
    NEUTRAL,
    SHOWN,
    Chart,
    Legend,
    category,
    hues,
    legend,
    rounded,
    shapes,
    specification,
)
from vrambench.reports.page.view import ChartsData, View
from vrambench.reports.report import PEAKS, Report
from vrambench.reports.rows import Row, pareto

LOG_RATIO = 30
"""From this ratio of largest to smallest on, an axis is logarithmic."""
BUDGET_IN_SIGHT = 1.6
"""A budget so many times the highest peak is not drawn: it would leave the points a corner."""


AREAS = (30, 260)
"""Of the points with the least and the most reward, in square pixels."""
AREA = 64
"""Of a point without reward."""


def tradeoff(report: Report) -> ChartsData | None:
    """Peak memory against throughput. On the front: cells that no other beats in both."""
    points = {row.index: point for row in report.ok if (point := _point(report, row))}
    if not points:
        return None
    rows = [row for row in report.ok if row.index in points]
    algorithms = dict.fromkeys(row.algorithm for row in rows)
    fronts = [pareto((row.index, *points[row.index]) for row in rows if row.algorithm == one) for one in algorithms]
    front = sum(map(len, fronts))
    highest = max(peak for peak, _ in points.values())
    in_sight = (
        len(report.budgets) == 1 and report.basis == "device_bytes" and report.budgets[0] < BUDGET_IN_SIGHT * highest
    )
    budget = report.budgets[0] if in_sight else None
    chart = tradeoff_chart(rows, report.labels, points, PEAKS[report.basis or ""], budget)
    lie = "lies" if front == 1 else "lie"
    text = (
        f"{units.plural(front, 'cell')} of {len(points):,} {lie} on their algorithm's Pareto front: no other cell of the "
        "algorithm has less memory and more throughput. Algorithms do different work for a token, so compare within one. "
        "Fronts follow the table's filter."
    )
    absent = len(report.rows) - len(points)
    remarks = (f"{units.plural(absent, 'cell')} without a peak or a throughput: only in the table.",) if absent else ()
    return ChartsData((chart,), text, remarks, text_id="front")


def _point(report: Report, row: Row) -> tuple[float, float] | None:
    peak, rate = report.peak(row), row.tokens_per_second
    return (peak, rate) if peak and rate else None


def tradeoff_chart(
    rows: Sequence[Row],
    labels: Mapping[int, str],
    points: Mapping[int, tuple[float, float]],
    peak_name: str,
    budget: int | None,
) -> Chart:
    """Peak memory (bytes) against throughput (tokens/s), from `points` by row index. The Pareto front is computed in
    the chart, from what it shows."""
    peaks, rates = ([point[place] for point in points.values()] for place in (0, 1))
    x, unit = _bytes_axis("memory", f"peak of {peak_name}", peaks)
    y, scale = _rate_axis("rate", "train tokens per second", rates), units.SCALE[unit]
    areas = _areas(rows)
    data = [
        _point_data(row, labels[row.index], points[row.index], scale) | {"area": areas.get(row.index, AREA)}
        for row in rows
    ]
    legends = {
        f"legend_{name}": Legend.of_names(
            sorted({str(one[name]) for one in data}), {int(one["i"]): [str(one[name])] for one in data}
        )
        for name in ("algorithm", "precision")
    }
    layers = _layers(data, x, y, unit)
    if budget is not None:
        rule = alt.Chart(alt.NamedData(name="budget")).mark_rule(color="#d55e00", strokeDash=[2, 2])
        layers.append(rule.encode(x="memory:Q", tooltip=[alt.Tooltip("budget:N")]))
    datasets = {"points": data, "budget": [{"memory": (budget or 0) / scale, "budget": units.size(budget)}]}
    spec = specification(alt.layer(*layers).properties(width=860, height=380), rows, datasets, legends)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    described = (
        f"Scatter plot of {units.plural(len(rows), 'cell')}: peak of {peak_name} against train tokens per second."
    )
    title = (
        "Rings and dashed lines: each algorithm's Pareto front"
        + ("; dotted line: the budget" if budget is not None else "")
        + ("; larger points: more reward" if areas else "")
    )
    indices = tuple(row.index for row in rows)
    return Chart("tradeoff", title, described, spec, indices, min_width=300, legends=legends)


def _areas(rows: Sequence[Row]) -> dict[int, float]:
    """Of points by the last reward, by row index; empty where all have the same."""
    rewards = {row.index: last for row in rows if row.reward and (last := row.reward[1]) is not None and isfinite(last)}
    low, high = (min(rewards.values()), max(rewards.values())) if rewards else (0.0, 0.0)
    if not high > low:
        return {}
    least, most = AREAS
    return {index: rounded(least + (most - least) * ((last - low) / (high - low))) for index, last in rewards.items()}


def _point_data(row: Row, label: str, point: tuple[float, float], scale: float) -> dict[str, Any]:
    return {
        "i": row.index,
        "cell": label,
        "memory": rounded(point[0] / scale),
        "rate": rounded(point[1]),
        "algorithm": category(row.algorithm),
        "precision": category(row.axes[0]),
        "loss": units.change(row.loss),
        "reward": units.change(row.reward),
        "fit": row.verdict.fit,
    }


def _layers(data: Sequence[Mapping[str, Any]], x: Any, y: Any, unit: units.Unit) -> list[Any]:
    """The front's line, a point for each cell, and the front's rings; `data` as `_point_data` gives it."""
    base = alt.Chart(alt.NamedData(name="points")).transform_filter(SHOWN)
    # On the front: more throughput than any cell of the algorithm that needs no more memory.
    by = {"sort": [alt.SortField("memory"), alt.SortField("rate", order="descending")], "groupby": ["algorithm"]}
    front = (
        base.transform_window([alt.WindowFieldDef(op="max", field="rate", **{"as": "best"})], frame=[None, 0], **by)
        .transform_window([alt.WindowFieldDef(op="lag", field="best", **{"as": "before"})], **by)
        .transform_filter("!isValid(datum.before) || datum.rate > datum.before")
    )
    algorithms = sorted({str(point["algorithm"]) for point in data})
    precisions = sorted({str(point["precision"]) for point in data})
    # Vega makes one legend of two with the same names.
    of_shapes = "legend_algorithm" if precisions == algorithms else "legend_precision"
    colour = alt.Color(
        "algorithm:N", scale=hues(algorithms), legend=legend("algorithm", algorithms, "legend_algorithm")
    )
    return [
        front.mark_line(interpolate="step-after", strokeDash=[4, 3], strokeWidth=1.2).encode(x, y, color=colour),
        base.mark_point(filled=True, size=64, opacity=0.85).encode(
            x,
            y,
            color=colour,
            size=alt.Size("area:Q", scale=None),
            shape=alt.Shape(
                "precision:N",
                scale=shapes(precisions),
                legend=legend("precision", precisions, of_shapes, symbolFillColor=NEUTRAL),
            ),
            tooltip=[
                alt.Tooltip("cell:N"),
                alt.Tooltip("memory:Q", title=f"peak, {unit}", format=",.4~r"),
                alt.Tooltip("rate:Q", title="tokens/s", format=",.4~r"),
                *(alt.Tooltip(f"{name}:N") for name in ("fit", "loss", "reward")),
            ],
        ),
        front.mark_point(filled=False, size=190, color=NEUTRAL, strokeWidth=1.4).encode(x, y),
    ]


def _bytes_axis(field: str, title: str, values: Sequence[float]) -> tuple[Any, units.Unit]:
    """An axis of memory, and the unit of its values. A wide range is logarithmic, its ticks powers of two."""
    if _wide(values):
        text = (
            "datum.value >= 1024 ? format(datum.value / 1024, ',.3~r') + ' GiB' : format(datum.value, ',.3~r') + ' MiB'"
        )
        axis = alt.Axis(labelExpr=text, tickCount=8, labelOverlap=True)
        return alt.X(f"{field}:Q", title=title, axis=axis, scale=alt.Scale(type="log", base=2, padding=14)), "MiB"
    unit = units.common_unit([int(value) for value in values])
    return alt.X(f"{field}:Q", title=f"{title} ({unit})", scale=alt.Scale(zero=False, padding=14)), unit


def _rate_axis(field: str, title: str, values: Sequence[float]) -> Any:
    if _wide(values):
        axis = alt.Axis(tickCount=6, format=",~r")
        return alt.Y(f"{field}:Q", title=f"{title} (logarithmic)", axis=axis, scale=alt.Scale(type="log", padding=14))
    return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False, padding=14))


def _wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= LOG_RATIO


VIEW = View("tradeoff", "Memory against throughput", "charts.html", tradeoff)
