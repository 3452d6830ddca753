"""Charts as Vega-Lite specifications made with Altair, and their drawing with the installed vl-convert.

In: rows and what to draw of them. Out: a `Chart`, whose specification is complete in itself; `svgs` draws them without
a browser (drawing.py), and the page draws them again with the JavaScript of Vega that vl-convert holds. Every chart has
a parameter `shown`, an object from a row's index to its rank: it draws those rows only, bars in that order. The page
sets it to what the table shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt

from vrambench.reports import units
from vrambench.reports.page.drawing import drawings
from vrambench.reports.rows import Row

# Okabe and Ito's palette for all kinds of colour vision, its blue a little lighter for dark pages, its yellow and
# black left out.
HUES = ("#1f83c6", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c8c8c", "#9a7d0a")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
NEUTRAL = "#8c8c8c"


@dataclass(frozen=True)
class Legend:
    """Names of a legend, and by row index which of them its marks have: the legend shows those of what is shown."""

    names: Sequence[str]
    of: Mapping[int, Sequence[int]]

    @classmethod
    def of_names(cls, names: Sequence[str], of: Mapping[int, Iterable[str]]) -> Legend:
        """`of`: names by row index."""
        places = {name: place for place, name in enumerate(names)}
        return cls(names, {index: sorted({places[name] for name in found}) for index, found in of.items()})


@dataclass(frozen=True)
class Chart:
    """`spec`: Vega-Lite. `rows`: the indices of the rows it can draw, in order. `limit`: how many it draws at once.
    `min_width`: it may be made as narrow as that, and as wide as the page; None: it may not. `alt`: what it shows,
    for those who cannot see it. `legends`: by parameter, what each row has of that legend's names.
    `labelled`: cells' names stand beside the plot, which the page makes as wide as they leave room. `only`: the one row that is
    drawn, until another is chosen."""

    id: str
    title: str
    alt: str
    spec: dict[str, Any]
    rows: tuple[int, ...]
    limit: int | None = None
    min_width: int | None = None
    legends: Mapping[str, Legend] = field(default_factory=dict)
    labelled: bool = False
    only: int | None = None


def svgs(charts: Sequence[Chart]) -> list[str]:
    """The charts drawn, to a hundredth of a pixel and without attributes that say what goes without saying. Raises NotDrawn."""
    drawn = drawings([chart.spec for chart in charts])
    return [TAG.sub(lambda tag: NEEDLESS.sub("", LONG_NUMBER.sub(r"\1", tag[0])), one) for one in drawn]


def category(value: str) -> str:
    """A value as legends and headings show it."""
    return units.short(value, 40) or units.DASH


TAG = re.compile(r"<(?:g|path|line|rect|text)\b[^>]*>")
NEEDLESS = re.compile(r' (?:opacity="1"|stroke-width="1"|pointer-events="none"|aria-hidden="true"|font-family="[^"]*")')
LONG_NUMBER = re.compile(r"(?<=\d)(\.\d\d)\d+")
SHOWN_NAME = "shown"
SHOWN = "shown[datum.i] >= 0"


ROOM = 0
"""Pixels that labels of bars take at most; the page gives them a share of what it has. 0: all that they need, which is drawn in a
quarter of the time, since no label is measured again and again to be cut."""
WIDE = 800
"""Pixels that legends have; the page says how many it has."""


def specification(
    chart: Any, rows: Sequence[Row], datasets: dict[str, Any], legends: Mapping[str, Legend] | None = None
) -> dict[str, Any]:
    """The specification with its data, its parameters (`shown`, `room`, `wide` and those of its legends), and the look of all our
    charts."""
    indices = {row.index for row in rows}
    params = [alt.param(name=SHOWN_NAME, value={str(row.index): rank for rank, row in enumerate(rows)})]
    for name, of in (legends or {}).items():
        found = {place for index, places in of.of.items() if index in indices for place in places}
        params.append(alt.param(name=name, value=[one for place, one in enumerate(of.names) if place in found]))
    spec: dict[str, Any] = chart.add_params(
        *params, alt.param(name="room", value=ROOM), alt.param(name="wide", value=WIDE)
    ).to_dict(validate=False)
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
        "labelSeparation": 6,
    },
    "legend": {
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelLimit": 320,
        "symbolSize": 60,
        "layout": {"top": {"anchor": "start", "direction": "vertical"}},
    },
    "aria": False,
}


def legend(title: str | None, names: Sequence[str], parameter: str | None = None, **more: Any) -> Any:
    """Above the plot; left out for one nameless entry, which tells nothing. `parameter`: the name of one of the chart's
    `legends`."""
    if len(names) < 2:
        return None
    longest = min(max(map(len, names)), 45)
    columns = alt.ExprRef(expr=f"max(1, min({8 if longest < 16 else 4}, floor(wide / {30 + 6 * longest})))")
    if parameter:
        more["values"] = alt.ExprRef(expr=parameter)
    return alt.Legend(title=title, orient="top", columns=columns, symbolOpacity=1, symbolStrokeWidth=2, **more)


def hues(names: Sequence[str]) -> Any:
    return alt.Scale(domain=list(names), range=[HUES[place % len(HUES)] for place in range(len(names))])


def shapes(names: Sequence[str]) -> Any:
    return alt.Scale(domain=list(names), range=[SHAPES[place % len(SHAPES)] for place in range(len(names))])


def rounded(value: float) -> float:
    """Four significant digits: what a chart can show."""
    return float(f"{value:.4g}")
