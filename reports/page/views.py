"""The report's views: what each one shows, as records that can be looked at without rendering.

`VIEWS` is the page, top to bottom. A view is a function from the `Report` to its data, or to None where there is
nothing to show, and the template in `templates/` that renders it; adding a view is one function, one template and one
line. Charts are Vega-Lite specifications here (`charts.py`); drawing them is `html.py`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vrambench.reports import units
from vrambench.reports.page import charts
from vrambench.reports.page.cells import cells
from vrambench.reports.report import PEAKS, Report
from vrambench.reports.rows import Row, Run, pareto


@dataclass(frozen=True)
class View:
    """`data` gives what `template` renders, or None where the report has nothing to show here."""

    id: str
    title: str
    template: str
    data: Callable[[Report], Any]


@dataclass(frozen=True)
class Best:
    """A cell that stands out, and the words for why."""

    index: int
    label: str
    words: str


@dataclass(frozen=True)
class AlgorithmLine:
    """One algorithm's line of the verdict: rates are compared within an algorithm, whose steps do the same work."""

    algorithm: str
    cells: int
    ok: int
    fits: int | None
    fastest: Best | None
    smallest: Best | None


@dataclass(frozen=True)
class VerdictData:
    sentences: tuple[str, ...]
    lines: tuple[AlgorithmLine, ...]
    judged: bool
    """Whether any cell's fit is known; where not, `fastest` and `smallest` are of all that are ok."""


def verdict(report: Report) -> VerdictData:
    """What a reader takes away: how many ended how, how many fit, and per algorithm the fastest that fits and the
    smallest."""
    known = [row for row in report.rows if row.verdict.fit != "unknown"]
    fitting = [row for row in known if row.verdict.fit in ("fits", "tight")]
    judged = bool(known)
    algorithms = dict.fromkeys(row.algorithm for row in report.rows)
    lines = []
    for algorithm in algorithms:
        of = [row for row in report.rows if row.algorithm == algorithm]
        ok = [row for row in of if row.status == "ok"]
        candidates = [row for row in ok if row.verdict.fit in ("fits", "tight")] if judged else ok
        lines.append(
            AlgorithmLine(
                algorithm,
                len(of),
                len(ok),
                sum(row in fitting for row in of) if judged else None,
                _best(report, candidates, lambda row: row.tokens_per_second),
                _best(report, candidates, lambda row: None if (peak := report.peak(row)) is None else -peak),
            )
        )
    return VerdictData(tuple(_sentences(report, known, fitting)), tuple(lines), judged)


def _sentences(report: Report, known: Sequence[Row], fitting: Sequence[Row]) -> list[str]:
    if not report.rows:
        return ["This run has no cells."]
    words = {
        "oom": "out of memory",
        "timeout": "timed out",
        "error": "ended in an error",
        "invalid": "forbidden by a rule",
    }
    words |= {"pruned": "left out, as predicted far too big", "unreadable": "with a result that cannot be read"}
    ended = [f"{count:,} {words.get(status, status)}" for status, count in report.counts.items()]
    sentences = [f"{units.plural(len(report.rows), 'cell')}: {_and(ended)}."]
    budget = f"the budget of {units.size(report.budgets[0])}" if len(report.budgets) == 1 else "their budgets"
    if known:
        sources = Counter(row.verdict.source or "measured" for row in fitting)
        tight = sum(row.verdict.fit == "tight" for row in fitting)
        how = f" ({_and([f'{count:,} {source}' for source, count in sources.items()])})" if fitting else ""
        near = f", {tight:,} of them only tightly" if tight else ""
        sentences.append(
            f"{len(fitting):,} of the {len(known):,} whose device memory is known fit {budget}{how}{near}."
        )
    elif report.ok:
        peak = PEAKS.get(report.basis or "", "memory")
        sentences.append(
            f"No device memory was measured, so this report does not say whether they fit {budget}; "
            f"cells are compared by their peak of {peak}."
        )
    return sentences


def _best(report: Report, rows: Sequence[Row], score: Callable[[Row], float | None]) -> Best | None:
    scored = [(value, row) for row in rows if (value := score(row)) is not None]
    if not scored:
        return None
    _, row = max(scored, key=lambda pair: (pair[0], -pair[1].index))
    words = f"{units.rate(row.tokens_per_second, 'tokens/s')}, {units.size(report.peak(row))}"
    return Best(row.index, report.labels[row.index], words)


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


@dataclass(frozen=True)
class ChartsData:
    """A view that is charts, with what must be said beside them."""

    charts: tuple[charts.Chart, ...]
    text: str = ""
    remarks: tuple[str, ...] = ()


def tradeoff(report: Report) -> ChartsData | None:
    """Peak memory against throughput. On the front: cells that no other beats in both."""
    points = {row.index: point for row in report.ok if (point := _point(report, row))}
    if not points:
        return None
    rows = [row for row in report.ok if row.index in points]
    algorithms = dict.fromkeys(row.algorithm for row in rows)
    fronts = [pareto((row.index, *points[row.index]) for row in rows if row.algorithm == one) for one in algorithms]
    front = sum(map(len, fronts))
    budget = report.budgets[0] if len(report.budgets) == 1 and report.basis == "device_bytes" else None
    chart = charts.tradeoff(rows, report.labels, points, PEAKS[report.basis or ""], budget)
    text = (
        f"{units.plural(front, 'cell')} of {len(points):,} lie on their algorithm's Pareto front: no other cell of the "
        "algorithm has less memory and more throughput. Algorithms do different work for a token, so compare within one. "
        "Fronts follow the table's filter."
    )
    absent = len(report.rows) - len(points)
    remarks = (f"{units.plural(absent, 'cell')} without a peak or a throughput: only in the table.",) if absent else ()
    return ChartsData((chart,), text, remarks)


def _point(report: Report, row: Row) -> tuple[float, float] | None:
    peak, rate = report.peak(row), row.tokens_per_second
    return (peak, rate) if peak and rate else None


def ledger(report: Report) -> ChartsData | None:
    """What filled the memory, per role and kind, and the peak inside each phase; of the first cells of the table that
    have them."""
    bars = [row for row in report.rows if row.result and row.result.roles]
    dots = [row for row in report.rows if row.result and charts.phase_peaks(row)]
    made = [
        charts.ledger_bars(bars, report.labels) if bars else None,
        charts.phase_dots(dots, report.labels) if dots else None,
    ]
    drawn = tuple(chart for chart in made if chart)
    if not drawn:
        return None
    remarks = []
    if over := [row for row in bars if charts.beyond_peak(row)]:
        remarks.append(
            f"In {units.plural(len(over), 'cell')} the roles hold more than the peak of allocated memory: part of "
            "them lies outside the device's allocator (on the host, or in managed memory). No rest is drawn there."
        )
    if max(len(bars), len(dots)) > charts.LEDGER_CELLS:
        remarks.append(f"Drawn: the first {charts.LEDGER_CELLS} cells, in the order and selection of the table.")
    text = (
        "Weights, gradients and optimizer state are counted by role; what is left up to the peak of allocated memory is "
        "activations and workspace. Peaks need not fall together, so the parts beyond allocated memory are differences between "
        "peaks."
    )
    return ChartsData(drawn, text, tuple(remarks))


def learning(report: Report) -> ChartsData | None:
    """Loss and reward over the steps. Cells that differ in nothing but the seed are one group: thin lines, their mean
    and range."""
    drawn: list[charts.Chart] = []
    remarks: list[str] = []
    for metric in ("loss", "reward"):
        curves = {
            row.index: curve
            for row in report.rows
            if row.result and len(curve := getattr(row.result.learning, metric)) > 1
        }
        if not curves:
            continue
        shortest = max(2, max(map(len, curves.values())) // 4)
        rows = [row for row in report.rows if len(curves.get(row.index, ())) >= shortest]
        chart = charts.curves(metric, rows, report.labels, curves)
        if chart is None:
            continue
        drawn.append(chart)
        if short := len(curves) - len(rows):
            remarks.append(f"{metric}: {units.plural(short, 'cell')} of fewer than {shortest} steps not drawn.")
        if len(chart.rows) > charts.CURVES:
            remarks.append(f"{metric}: the first {charts.CURVES} cells, in the order and selection of the table.")
        if max(len(curves[row.index]) for row in rows) > charts.curve_points(len(rows)):
            remarks.append(f"{metric}: long curves are drawn as means over equal stretches of steps.")
    if not drawn:
        return None
    text = (
        "Thin lines are cells; where cells differ in nothing but the seed, the thick line is their mean and the band their "
        "range."
    )
    return ChartsData(tuple(drawn), text, tuple(remarks))


@dataclass(frozen=True)
class RunFacts:
    name: str
    facts: tuple[tuple[str, str], ...]
    corrupted: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    text: str
    cells: int


@dataclass(frozen=True)
class EnvironmentData:
    runs: tuple[RunFacts, ...]
    notes: tuple[Note, ...]


def environment(report: Report) -> EnvironmentData:
    """Where and how each run ran, what readers must know to trust its numbers, and the files that could not be read."""
    runs = tuple(RunFacts(run.name, tuple(_run_facts(run)), run.corrupted) for run in report.runs)
    return EnvironmentData(runs, tuple(Note(text, count) for text, count in report.notes.most_common()))


def _run_facts(run: Run) -> list[tuple[str, str]]:
    plain = {key: value for key, value in run.info.items() if key not in ("schema", "cells", "environment")}
    environment = run.info.get("environment")
    return _flat(plain) + _flat(environment if isinstance(environment, Mapping) else {})


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A mapping's lines with dotted names; sizes in units, unknown as a dash, empty parts left out."""
    lines: list[tuple[str, str]] = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            lines += _flat(value, name + ".")
        elif isinstance(value, list | tuple):
            if value:
                lines.append((name, ", ".join(map(str, value))))
        elif name.endswith("_bytes") and isinstance(value, int):
            lines.append((name.removesuffix("_bytes").replace("_", " "), units.size(value)))
        elif isinstance(value, bool):
            lines.append((name.replace("_", " "), "yes" if value else "no"))
        else:
            lines.append((name.replace("_", " "), units.DASH if value is None else str(value)))
    return lines


VIEWS: tuple[View, ...] = (
    View("verdict", "Verdict", "verdict.html", verdict),
    View("cells", "Every cell", "cells.html", cells),
    View("tradeoff", "Memory against throughput", "charts.html", tradeoff),
    View("ledger", "What filled the memory", "charts.html", ledger),
    View("learning", "Loss and reward", "charts.html", learning),
    View("environment", "Environment", "environment.html", environment),
)
