"""Charts as Vega-Lite specifications made with Altair, and their drawing with the installed vl-convert.

In: rows and what to draw of them. Out: a `Chart`, whose specification is complete in itself; `svg` draws it without
a browser, and the page draws it again with `bundle()`, the JavaScript of Vega that vl-convert holds. Every chart has
a parameter `shown`, an object from a row's index to its rank: it draws those rows only, bars in that order. The page
sets it to what the table shows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import altair as alt
import vl_convert

from vrambench.reports import units
from vrambench.reports.rows import AXES, Row

LEDGER_CELLS = 40
"""Bars that one chart holds."""
CURVES = 60
"""Curves that one chart holds: with more, none could be followed."""
CURVE_POINTS = 6000
"""Points of all curves of one chart together, shown or not."""
LOG_RATIO = 30
"""From this ratio of largest to smallest on, an axis is logarithmic."""

# Okabe and Ito's palette for all kinds of colour vision, its blue a little lighter for dark pages, its yellow and
# black left out.
HUES = ("#1f83c6", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c8c8c", "#9a7d0a")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
NEUTRAL = "#8c8c8c"
# One hue per kind; the policy strongest, further roles lighter.
KIND_HUES = {
    "weights": ("#1f6fb0", "#5b9fd4", "#93c3e6", "#c0dcf0"),
    "gradients": ("#d55e00", "#e98e4e", "#f2b48a", "#f7d3bc"),
    "optimizer": ("#00805d", "#3aab8a", "#7fcbb3", "#b5e2d4"),
}
REST_HUES = {"activations and workspace": "#b7a6cf", "held by the allocator": "#9a9a9a", "outside PyTorch": "#c4c4c4"}


@dataclass(frozen=True)
class Chart:
    """`spec`: Vega-Lite. `rows`: the indices of the rows it can draw, in order. `limit`: how many it draws at once.
    `min_width`: it may be made as narrow as that, and as wide as the page; None: it may not. `alt`: what it shows,
    for those who cannot see it."""

    id: str
    title: str
    alt: str
    spec: dict[str, Any]
    rows: tuple[int, ...]
    limit: int | None = None
    min_width: int | None = None


def vl_version() -> str:
    """Altair's version of Vega-Lite as vl-convert names it: `6.4`."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def svg(chart: Chart) -> str:
    """The chart drawn, to a hundredth of a pixel and without attributes that say what goes without saying; nothing is
    loaded."""
    drawn: str = vl_convert.vegalite_to_svg(chart.spec, vl_version=vl_version(), allowed_base_urls=[])
    return TAG.sub(lambda tag: NEEDLESS.sub("", LONG_NUMBER.sub(r"\1", tag[0])), drawn)


@cache
def bundle() -> str:
    """JavaScript that defines `vegaEmbed`, with all it needs."""
    code: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version())
    return code


def tradeoff(
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
    data = [
        {
            "i": row.index,
            "cell": labels[row.index],
            "memory": _rounded(points[row.index][0] / scale),
            "rate": _rounded(points[row.index][1]),
            "algorithm": _category(row.algorithm),
            "precision": _category(row.axes[0]),
            "loss": units.change(row.loss),
            "reward": units.change(row.reward),
            "fit": row.verdict.fit,
        }
        for row in rows
    ]
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
    colour = alt.Color("algorithm:N", scale=_hues(algorithms), legend=_legend("algorithm", algorithms))
    layers = [
        front.mark_line(interpolate="step-after", strokeDash=[4, 3], strokeWidth=1.2).encode(x, y, color=colour),
        base.mark_point(filled=True, size=64, opacity=0.9).encode(
            x,
            y,
            color=colour,
            shape=alt.Shape(
                "precision:N",
                scale=_shapes(precisions),
                legend=_legend("precision", precisions, symbolFillColor=NEUTRAL),
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
    if budget is not None:
        rule = alt.Chart(alt.NamedData(name="budget")).mark_rule(color="#d55e00", strokeDash=[2, 2])
        layers.append(rule.encode(x="memory:Q", tooltip=[alt.Tooltip("budget:N")]))
    datasets = {"points": data, "budget": [{"memory": (budget or 0) / scale, "budget": units.size(budget)}]}
    spec = _spec(alt.layer(*layers).properties(width=860, height=380), rows, datasets)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    described = (
        f"Scatter plot of {units.plural(len(rows), 'cell')}: peak of {peak_name} against train tokens per second."
    )
    title = "Rings and dashed lines: each algorithm's Pareto front" + (
        "; dotted line: the budget" if budget is not None else ""
    )
    return Chart("tradeoff", title, described, spec, tuple(row.index for row in rows), min_width=340)


def segments(row: Row) -> list[tuple[str, int]]:
    """What filled a cell's memory, in bytes: roles' parts, then the rest up to each further peak, as far as these are
    known."""
    assert row.result is not None
    memory = row.result.memory
    parts = [
        (f"{role} {kind}", getattr(held, f"{kind}_bytes"))
        for role, held in row.result.roles.items()
        for kind in KIND_HUES
    ]
    filled = sum(held for _, held in parts)
    peaks = (memory.allocated_bytes, memory.reserved_bytes, memory.device_bytes)
    for name, peak in zip(REST_HUES, peaks, strict=True):
        if peak is None or peak < filled:
            break
        parts.append((name, peak - filled))
        filled = peak
    return [(name, held) for name, held in parts if held > 0]


def beyond_peak(row: Row) -> bool:
    """Whether the roles hold more than the peak of what was allocated on the device."""
    if row.result is None or row.memory.allocated_bytes is None:
        return False
    held = sum(r.weights_bytes + r.gradients_bytes + r.optimizer_bytes for r in row.result.roles.values())
    return held > row.memory.allocated_bytes


def ledger_bars(rows: Sequence[Row], labels: Mapping[int, str]) -> Chart:
    """One stacked bar per cell: `segments`."""
    parts = {row.index: segments(row) for row in rows}
    unit = units.common_unit(sum(held for _, held in of) for of in parts.values())
    roles = list(dict.fromkeys(role for row in rows if row.result for role in row.result.roles))
    colours = {
        f"{role} {kind}": hues[min(place, len(hues) - 1)]
        for kind, hues in KIND_HUES.items()
        for place, role in enumerate(roles)
    } | REST_HUES
    present = {name for of in parts.values() for name, _ in of}
    order = [name for name in colours if name in present]
    data = [_bar(row, labels, parts[row.index], unit, order) for row in rows]
    chart = (
        alt.Chart(alt.NamedData(name="bars"))
        .transform_filter(SHOWN)
        .transform_flatten(["place", "held"])
        .transform_calculate(rank=RANK, part=_named(order))
        .mark_bar(height=12)
        .encode(
            x=alt.X("held:Q", title=unit, stack="zero"),
            y=_cells_axis(),
            color=alt.Color(
                "part:N",
                scale=alt.Scale(domain=order, range=[colours[name] for name in order]),
                legend=_legend(None, order),
            ),
            order=alt.Order("place:Q"),
            tooltip=[alt.Tooltip("cell:N"), alt.Tooltip("part:N"), alt.Tooltip("held:Q", title=unit, format=",.4~r")],
        )
        .properties(width=620, height=alt.Step(18))
    )
    alt_text = (
        f"Stacked bars of {units.plural(len(rows), 'cell')}: bytes by role and kind, and the rest up to the peaks."
    )
    return _ranked("ledger", "Memory by role and kind", alt_text, chart, rows, {"bars": data})


def phase_peaks(row: Row) -> dict[str, int]:
    """The highest peak inside each phase over all steps, by phase: of allocated memory, or of what else is known."""
    phases = row.result.phases if row.result else ()
    for key in ("allocated_bytes", "reserved_bytes", "device_bytes"):
        known = [(phase.name, getattr(phase, key)) for phase in phases if getattr(phase, key) is not None]
        if known:
            peaks: dict[str, int] = {}
            for name, peak in known:
                peaks[name] = max(peak, peaks.get(name, 0))
            return peaks
    return {}


def phase_dots(rows: Sequence[Row], labels: Mapping[int, str]) -> Chart:
    """One line of dots per cell: the peak inside each phase."""
    peaks = {row.index: phase_peaks(row) for row in rows}
    unit = units.common_unit(peak for of in peaks.values() for peak in of.values())
    order = list(dict.fromkeys(name for of in peaks.values() for name in of))
    data = [_bar(row, labels, list(peaks[row.index].items()), unit, order) for row in rows]
    chart = (
        alt.Chart(alt.NamedData(name="dots"))
        .transform_filter(SHOWN)
        .transform_flatten(["place", "held"])
        .transform_calculate(rank=RANK, part=_named(order))
        .mark_point(filled=True, size=60, opacity=0.9)
        .encode(
            x=alt.X("held:Q", title=unit, scale=alt.Scale(zero=True)),
            y=_cells_axis(),
            color=alt.Color("part:N", scale=_hues(order), legend=_legend("phase", order)),
            shape=alt.Shape("part:N", scale=_shapes(order), legend=_legend("phase", order)),
            tooltip=[
                alt.Tooltip("cell:N"),
                alt.Tooltip("part:N", title="phase"),
                alt.Tooltip("held:Q", title=f"peak, {unit}", format=",.4~r"),
            ],
        )
        .properties(width=620, height=alt.Step(18))
    )
    described = f"Dots of {units.plural(len(rows), 'cell')}: the peak inside each phase."
    return _ranked("phases", "Peak inside each phase", described, chart, rows, {"dots": data})


def curve_points(count: int) -> int:
    """How many points each of `count` curves may have."""
    return max(8, CURVE_POINTS // max(1, count))


def curves(
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
                    "algorithm": _category(row.algorithm),
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
        alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1)),
        alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
    )
    colour = alt.Color("colour:N", scale=_hues(names), legend=_legend(colour_title, names))
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
    spec = _spec(chart, drawn[:CURVES], {"curves": data})
    described = f"Line charts of {metric} over the steps, one for each algorithm, {units.plural(len(data), 'cell')}."
    return Chart(metric, metric.capitalize(), described, spec, tuple(row.index for row in drawn), limit=CURVES)


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
        return "cells", dict(groups)
    choices = [axis for axis in AXES if axis != "algorithm"]
    distinct = {axis: len({str(row.cell.get(axis, "")) for row in rows}) for axis in choices}
    few = [axis for axis in choices if distinct[axis] <= len(HUES)] or [min(choices, key=distinct.__getitem__)]
    axis = max(few, key=distinct.__getitem__)
    return axis, {row.index: _category(str(row.cell.get(axis, ""))) for row in rows}


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
            steps.append(_rounded(sum(step for step, _ in known) / len(known)) if width > 1 else start)
            drawn.append(_rounded(sum(value / len(known) for _, value in known)))
    return steps, drawn


def _bar(
    row: Row, labels: Mapping[int, str], parts: Sequence[tuple[str, int]], unit: units.Unit, order: Sequence[str]
) -> dict[str, Any]:
    return {
        "i": row.index,
        "cell": labels[row.index],
        "place": [order.index(name) for name, _ in parts],
        "held": [_rounded(held / units.SCALE[unit]) for _, held in parts],
    }


def _category(value: str) -> str:
    """A value as legends and headings show it."""
    return units.short(value, 40) or units.DASH


def _named(order: Sequence[str]) -> str:
    """The expression that turns a part's place back into its name."""
    return f"{json.dumps(list(order))}[datum.place]"


TAG = re.compile(r"<(?:g|path|line|rect|text)\b[^>]*>")
NEEDLESS = re.compile(r' (?:opacity="1"|stroke-width="1"|pointer-events="none"|aria-hidden="true"|font-family="[^"]*")')
LONG_NUMBER = re.compile(r"(?<=\d)(\.\d\d)\d+")
SHOWN = "shown[datum.i] >= 0"
RANK = "shown[datum.i]"


def _cells_axis() -> Any:
    axis = alt.Axis(labelLimit=460, ticks=False, domain=False)
    return alt.Y("cell:N", title=None, sort=alt.EncodingSortField("rank", op="min"), axis=axis)


def _ranked(id_: str, title: str, described: str, chart: Any, rows: Sequence[Row], datasets: dict[str, Any]) -> Chart:
    spec = _spec(chart, rows[:LEDGER_CELLS], datasets)
    return Chart(id_, title, described, spec, tuple(row.index for row in rows), limit=LEDGER_CELLS)


def _spec(chart: Any, rows: Sequence[Row], datasets: dict[str, Any]) -> dict[str, Any]:
    """The specification with its data, the parameter `shown`, and the look of all our charts."""
    shown = alt.param(name="shown", value={str(row.index): rank for rank, row in enumerate(rows)})
    spec: dict[str, Any] = chart.add_params(shown).to_dict()
    printable: dict[str, Any] = _printable(spec | {"config": CONFIG, "datasets": datasets})
    return printable


def _printable(part: Any) -> Any:
    """A specification whose texts can be drawn: vl-convert aborts the process at a character that XML cannot hold."""
    if isinstance(part, str):
        return units.printable(part)
    if isinstance(part, dict):
        return {units.printable(key): _printable(value) for key, value in part.items()}
    return [_printable(one) for one in part] if isinstance(part, list | tuple) else part


CONFIG: dict[str, Any] = {
    "background": None,
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "gridColor": "#e3e3e3",
        "domainColor": "#999999",
        "tickColor": "#999999",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "legend": {
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelLimit": 320,
        "symbolSize": 60,
    },
    "aria": False,
}


def _legend(title: str | None, names: Sequence[str], **more: Any) -> Any:
    """Above the plot; left out for one nameless entry, which tells nothing."""
    if len(names) < 2:
        return None
    columns = 8 if max(map(len, names)) < 16 else 4 if max(map(len, names)) < 32 else 2
    return alt.Legend(title=title, orient="top", columns=columns, symbolOpacity=1, symbolStrokeWidth=2, **more)


def _hues(names: Sequence[str]) -> Any:
    return alt.Scale(domain=list(names), range=[HUES[place % len(HUES)] for place in range(len(names))])


def _shapes(names: Sequence[str]) -> Any:
    return alt.Scale(domain=list(names), range=[SHAPES[place % len(SHAPES)] for place in range(len(names))])


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


def _rounded(value: float) -> float:
    """Four significant digits: what a chart can show."""
    return float(f"{value:.4g}")
