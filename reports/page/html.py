"""The report: one HTML file that holds all it needs and loads nothing.

    write_report([Path("runs/first")], Path("report.html"))

The page is complete without JavaScript: tables, and every chart as a drawing. With it, the table sorts and filters,
and the charts are drawn again by Vega, whose code comes from the installed vl-convert and travels packed in the page.
A content security policy of hashes forbids whatever else could run or load; what users wrote (names, reasons, paths)
is escaped, in markup by Jinja, in JSON by `json_for_script`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from altair.utils.schemapi import debug_mode
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vrambench.bench.gate.baseline import read_baseline
from vrambench.bench.gate.check import Check, check
from vrambench.bench.results import PREDICTED
from vrambench.bench.results.store import RunFolder, write_atomically
from vrambench.reports import units
from vrambench.reports.page import charts
from vrambench.reports.page.drawing import NotDrawn, bundle
from vrambench.reports.page.table import column_styles, live_data, table_data
from vrambench.reports.page.view import ChartsData, View
from vrambench.reports.page.views import VIEWS
from vrambench.reports.page.views.cells import CellsData
from vrambench.reports.page.views.timeline import TimelineData
from vrambench.reports.read import read_runs, unread_of
from vrambench.reports.report import Report
from vrambench.reports.rows import Run

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("report.js", "table.js", "charts.js", "heatmap.js", "timeline.js", "start.js")
"""Parts of the page's one script, in order."""
MOST_BUDGETS = 4
"""More are told by the least and the most."""
Draw = Callable[[Sequence[charts.Chart]], Sequence[str]]


def write_report(folders: Sequence[Path], out: Path, baseline: Path | None = None) -> tuple[str, ...]:
    """Writes the report about the runs in `folders` to `out`, in one step; the first run's difference from the `baseline` too.
    Gives a line for each result file that cannot be read. Raises ConfigurationError where a folder is no run's, OSError where
    `out` cannot be drawn or written."""
    runs = read_runs(folders)
    found = check(read_baseline(baseline), RunFolder.open(folders[0])) if baseline else None
    try:
        page = render(runs, found)
    except NotDrawn as error:
        raise OSError(f"{out}: the report could not be drawn; {error}") from error
    write_atomically(out, page)
    return unread_of(folders, runs)


@dataclass(frozen=True)
class Shown:
    """A view that has something to show, rendered."""

    view: View
    html: Markup


def render(runs: Sequence[Run], found: Check | None = None, *, draw: Draw = charts.svgs) -> str:
    """The page about `runs`, and what was `found` beside a baseline; `draw` gives charts' static drawings. Raises NotDrawn."""
    report = Report(runs, found)
    templates = _templates()
    sections: list[Shown] = []
    living: dict[str, Any] = {}
    table: dict[str, Any] = {}
    details = ""
    with debug_mode(False):  # else Altair checks each part of a chart again and again, for a third of a page's time
        filled = [(view, data) for view in VIEWS if (data := view.data(report)) is not None]
    drawn = iter(draw([chart for _, data in filled if isinstance(data, ChartsData) for chart in data.charts]))
    for view, data in filled:
        drawings: list[Markup] = []
        if isinstance(data, ChartsData):
            drawings = [Markup(next(drawn)) for _ in data.charts]
            living |= {chart.id: _living(chart) for chart in data.charts}
        if isinstance(data, CellsData):
            table |= table_data(report, data)
            details = _details(data)
        if isinstance(data, TimelineData):
            table["live"] = live_data(data)
        sections.append(Shown(view, Markup(templates.get_template(view.template).render(data=data, drawings=drawings))))
    css, script, code = _text("report.css") + column_styles(table), "".join(map(_text, SCRIPTS)), bundle()
    page = templates.get_template("page.html").render(
        title=_title(report),
        subtitle=_subtitle(report),
        version=version("vrambench"),
        sections=sections,
        css=Markup(css),
        script=Markup(script),
        bundle=Markup(_packed(code)),
        details=Markup(details),
        charts=Markup(_pack(json.dumps(living, ensure_ascii=False, allow_nan=False).encode(errors="replace"))),
        data=Markup(json_for_script(table)),
        script_hashes=Markup(f"{_hash(script)} {_hash(code)}"),
        style_hash=Markup(_hash(css)),
    )
    # A path that was not UTF-8 comes as halves of pairs, which no file can hold.
    return page.encode(errors="replace").decode()


def json_for_script(data: object) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element, opens a comment, or is a line end
    to JavaScript."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _details(data: CellsData) -> str:
    """The details of the cells that are not on the table's first page, packed: each is a thousand characters and more."""
    module: Any = _templates().get_template("details.html").module
    rest = [str(module.details(line)) for line in data.lines[data.page :]]
    return _pack(json.dumps(rest, ensure_ascii=False).encode(errors="replace")) if rest else ""


def _living(chart: charts.Chart) -> dict[str, Any]:
    """What the script draws a chart from. Cells' labels, which every chart's data have, travel once for all."""
    datasets = {
        name: [{key: value for key, value in one.items() if key != "cell"} for one in data]
        for name, data in chart.spec["datasets"].items()
    }
    return {
        "spec": chart.spec | {"datasets": datasets},
        "rows": chart.rows,
        "limit": chart.limit,
        "min_width": chart.min_width,
        "labelled": chart.labelled,
        "only": chart.only,
        "legends": {name: {"names": one.names, "of": one.of} for name, one in chart.legends.items()},
    }


def _title(report: Report) -> str:
    measured = dict.fromkeys(_device(run) for run in report.runs if run.info.get("device") != PREDICTED)
    predicted = dict.fromkeys(_device(run) for run in report.runs if run.info.get("device") == PREDICTED)
    parts = [" and ".join(measured), f"predicted for {' and '.join(predicted)}" if predicted else ""]
    return ": ".join(filter(None, ("vrambench", "; ".join(filter(None, parts)))))


def _device(run: Run) -> str:
    """What the run ran on, or was predicted for, by its own name."""
    environment, device = run.info.get("environment") or {}, run.info.get("device")
    several = [gpu["name"] for gpu in (environment.get("gpus") or {}).values() if gpu and gpu.get("name")]
    if several:
        return " and ".join(dict.fromkeys(several))
    parts = [("gpu", "name")] if device == PREDICTED else [("gpu", "name"), ("cpu", "model")]
    for part, key in parts:
        about = environment.get(part)
        if isinstance(about, dict) and about.get(key):
            return str(about[key])
    budgets = {cell.get("budget") for cell in run.info.get("cells") or ()}
    if device == PREDICTED and len(budgets) == 1 and isinstance(budget := budgets.pop(), int):
        return f"a card of {units.size(budget)}"
    return "an unnamed card" if device == PREDICTED else str(device or "an unnamed device")


def _subtitle(report: Report) -> list[str]:
    started = [f"{run.name}, {str(run.info.get('started_at') or 'not dated').replace('T', ' ')}" for run in report.runs]
    counts = [f"{count:,} {status}" for status, count in report.counts.items()]
    sizes = [units.size(budget) for budget in report.budgets]
    budgets = [f"budget {' and '.join(sizes)}"] if sizes else []
    budgets = [f"budgets of {sizes[0]} to {sizes[-1]}"] if len(sizes) > MOST_BUDGETS else budgets
    return [
        *started,
        f"{units.plural(len(report.rows), 'cell')}: {', '.join(counts)}" if counts else "no cells",
        *budgets,
    ]


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["zip"] = lambda first, second: zip(first, second, strict=True)
    return environment


@cache
def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@cache
def _packed(code: str) -> str:
    """For a page that is a third of the size; the script unpacks it, and the policy knows its hash unpacked."""
    return _pack(code.encode())


def _pack(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


@cache
def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
