"""The report's views: what each one shows, as records that can be looked at without rendering.

`VIEWS` is the page, top to bottom. A view is a function from the `Report` to its data, or to None where there is nothing to show, and the
template in `templates/` that renders it; adding a view is one function, one template and one line. Charts are Vega-Lite specifications
here (`charts.py`); drawing them is `html.py`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from vrambench.bench.result import Memory, Sample
from vrambench.reports import charts, units
from vrambench.reports.rows import (
    AXES,
    STATUSES,
    TIGHT,
    Row,
    Run,
    axis_options,
    pareto,
    peak_basis,
    rows_of,
    setting_options,
    varying_fields,
)

PEAKS = {
    "device_bytes": "device memory",
    "reserved_bytes": "memory reserved by the allocator",
    "allocated_bytes": "allocated memory",
}
"""The ledger's lines that cells are compared by, as sentences name them."""

LEDGER_LINES = {
    "requested_bytes": "requested",
    "allocated_bytes": "allocated",
    "active_bytes": "active",
    "reserved_bytes": "reserved",
    "device_bytes": "device",
    "context_bytes": "CUDA context and libraries",
    "managed_bytes": "managed",
    "host_rss_bytes": "host, resident",
    "host_pinned_bytes": "host, pinned",
}

NOT_MEASURED = {
    "allocated_bytes": "not measured: the cell was not counted, or ended before its counted step",
    "reserved_bytes": "not measured: no caching allocator on this device, or the cell ended too early",
    "device_bytes": "not measured: no GPU, or none that tells, or the cell ended too early",
    "host_rss_bytes": "not measured: the cell's process did not report it",
}

SWEPT_COLUMNS = 6
"""More swept fields than this are not columns; the details of each cell have them all."""


class Report:
    """What is reported, and what several views need of it."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)
        self.rows = rows_of(runs)

    @cached_property
    def ok(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.status == "ok")

    @cached_property
    def counts(self) -> dict[str, int]:
        """Cells by status, those that occur, in the order of STATUSES."""
        found = Counter(row.status for row in self.rows)
        return {status: found[status] for status in STATUSES if found[status]}

    @cached_property
    def basis(self) -> str | None:
        """The ledger's line that cells are compared by (`peak_basis`)."""
        return peak_basis(self.rows)

    def peak(self, row: Row) -> int | None:
        return getattr(row.memory, self.basis) if self.basis else None

    @cached_property
    def labels(self) -> dict[int, str]:
        """Names that tell rows apart, by index: the cell's, with the run's where several runs have the cell."""
        twice = {name for name, count in Counter(row.name for row in self.rows).items() if count > 1}
        labels: dict[int, str] = {}
        used: set[str] = set()
        for row in self.rows:
            label = f"{row.name} ({row.run})" if row.name in twice else row.name
            label = f"{label} #{row.index}" if label in used else label
            used.add(label)
            labels[row.index] = label
        return labels

    @cached_property
    def swept(self) -> tuple[str, ...]:
        return varying_fields(self.rows)

    @cached_property
    def notes(self) -> Counter[str]:
        """The notes of all results, and how many cells have each."""
        return Counter(note for row in self.rows if row.result for note in dict.fromkeys(row.result.notes))

    @cached_property
    def common_notes(self) -> frozenset[str]:
        """Notes that every finished cell of several has: they are said once, for all."""
        return frozenset(note for note, count in self.notes.items() if count == len(self.ok) > 1)

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        return tuple(sorted({row.budget_bytes for row in self.rows if row.budget_bytes}))


@dataclass(frozen=True)
class View:
    """`data` gives what `template` renders, or None where the report has nothing to show here."""

    id: str
    title: str
    template: str
    data: Callable[[Report], Any]


# 1 ------------------------------------------------------------------------------------------------ verdict


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
    """What a reader takes away: how many ended how, how many fit, and per algorithm the fastest that fits and the smallest."""
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
        near = f", {tight:,} of them by less than {TIGHT:.0%} of it" if tight else ""
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


# 2 ------------------------------------------------------------------------------------------------ every cell


@dataclass(frozen=True)
class Column:
    """One column of the table. `text` is what a row shows there, `sort` what it is sorted by (None, that is unknown, goes last)."""

    key: str
    label: str
    title: str
    text: Callable[[Row], str]
    sort: Callable[[Row], Any]
    kind: str = "number"
    missing: str = ""


@dataclass(frozen=True)
class Table:
    """A small table in a cell's details."""

    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Line:
    """One cell of the table."""

    row: Row
    label: str
    texts: tuple[str, ...]
    why: str | None
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    command: str
    """What runs the cell again, without `CellsData.shared`, which goes between its axes and its other settings."""
    settings: str


@dataclass(frozen=True)
class Filter:
    """A choice among a column's values."""

    key: str
    label: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class CellsData:
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    filters: tuple[Filter, ...]
    statuses: dict[str, int]
    shared: str
    """The settings that all cells have in common, as the command line takes them."""
    more_fields: tuple[str, ...]
    """Swept fields that are no columns."""


def cells(report: Report) -> CellsData | None:
    """Every cell, with what its row shows, what it is sorted by and what its details hold."""
    if not report.rows:
        return None
    columns = _columns(report)
    choices = [column for column in columns if column.kind == "text" or column.key == "fit"]
    filters = (
        Filter(column.key, column.label, tuple(sorted({column.text(row) for row in report.rows}))) for column in choices
    )
    options = {row.index: setting_options(row.cell) for row in report.rows}
    first, *others = options.values()
    shared = {name: text for name, text in first.items() if all(other.get(name) == text for other in others)}
    return CellsData(
        columns,
        tuple(_line(report, row, columns, options[row.index], shared) for row in report.rows),
        tuple(one for one in filters if len(one.values) > 1),
        report.counts,
        " ".join(shared.values()),
        report.swept[SWEPT_COLUMNS:],
    )


def _columns(report: Report) -> tuple[Column, ...]:
    def text(key: str, label: str, title: str, value: Callable[[Row], str]) -> Column:
        return Column(key, label, title, value, value, kind="text")

    def setting(name: str) -> Column:
        return text(name, name, f"workload: {name}", lambda row: _setting(row, name))

    def peak(key: str, label: str, title: str) -> Column:
        return Column(
            key.removesuffix("_bytes"),
            label,
            title,
            lambda row: units.size(getattr(row.memory, key)),
            lambda row: getattr(row.memory, key),
            missing=NOT_MEASURED[key],
        )

    mean = "mean over the first and over the last quarter of the steps"
    several = len({run.name for run in report.runs}) > 1
    return (
        *([text("run", "run", "the run's folder", lambda row: row.run)] if several else []),
        *(
            text(axis, axis, f"axis: {axis}", lambda row, place=place: row.axes[place])
            for place, axis in enumerate(AXES)
        ),
        *(setting(name) for name in report.swept[:SWEPT_COLUMNS]),
        Column(
            "fit",
            "fits",
            "whether the cell's device memory is within its budget",
            _fit_text,
            lambda row: {"fits": 0, "tight": 1, "does not fit": 2}.get(row.verdict.fit),
            kind="fit",
            missing="not known: no device memory was measured or predicted, or the cell was not started",
        ),
        peak("allocated_bytes", "alloc.", "peak of allocated memory: live tensors"),
        peak("reserved_bytes", "reserved", "peak of memory that PyTorch's allocator reserved"),
        peak("device_bytes", "device", "peak of device memory, as the driver counts it"),
        peak("host_rss_bytes", "host", "peak of the process' resident host memory"),
        Column(
            "step",
            "step",
            "median of the timed steps",
            lambda row: units.seconds(row.step_seconds),
            lambda row: row.step_seconds,
            missing="no timed step",
        ),
        Column(
            "tokens",
            "tokens/s",
            "train tokens per second over the whole step's time",
            lambda row: units.rate(row.tokens_per_second),
            lambda row: row.tokens_per_second,
            missing="no timed step",
        ),
        Column(
            "loss",
            "loss",
            f"loss, {mean}; sorted by the last",
            lambda row: units.change(row.loss),
            lambda row: row.loss[1] if row.loss else None,
            missing="no loss was recorded",
        ),
        Column(
            "reward",
            "reward",
            f"reward, {mean}; sorted by the last",
            lambda row: units.change(row.reward),
            lambda row: row.reward[1] if row.reward else None,
            missing="no reward was recorded: the algorithm has none, or the cell ended too early",
        ),
    )


def _fit_text(row: Row) -> str:
    verdict = row.verdict
    if verdict.fit == "unknown":
        return units.DASH
    return f"{verdict.fit}, predicted" if verdict.source == "predicted" else verdict.fit


def _setting(row: Row, name: str) -> str:
    namespace, _, option = name.partition(".")
    value = row.cell.get(namespace)
    if option:
        value = value.get(option) if isinstance(value, Mapping) else None
    if value is None:
        return units.DASH
    if isinstance(value, bool):
        return str(value).lower()
    return units.size(value) if name == "budget" and isinstance(value, int) else str(value)


def _line(
    report: Report, row: Row, columns: Sequence[Column], options: Mapping[str, str], shared: Mapping[str, str]
) -> Line:
    result = row.result
    why = None
    if row.status != "ok":
        parts = [row.reason, f"in phase {result.phase}" if result and result.phase else None]
        rule = f"{result.rule}: " if result and result.rule else ""
        why = rule + "; ".join(part for part in parts if part) or None
    return Line(
        row=row,
        label=report.labels[row.index],
        texts=tuple(column.text(row) for column in columns),
        why=why,
        facts=_facts(row),
        tables=_tables(row),
        notes=tuple(note for note in result.notes if note not in report.common_notes) if result else (),
        command=f"vrambench run {axis_options(row.cell)}",
        settings=" ".join(text for name, text in options.items() if name not in shared),
    )


def _facts(row: Row) -> tuple[tuple[str, str], ...]:
    facts: list[tuple[str, str | None]] = [("id", row.id)]
    if row.budget_bytes:
        margin = row.verdict.margin_bytes
        room = "" if margin is None else f", {units.size(abs(margin))} {'to spare' if margin >= 0 else 'too little'}"
        size = f"{units.size(row.budget_bytes)}: " if margin is None else ""
        facts.append(("budget", f"{size}{row.verdict.why}{room}"))
    if row.result:
        result, rates = row.result, row.result.throughput
        facts.append(("source", result.source if row.verdict.margin_bytes is None else None))
        if result.oom:
            asked, missing = units.size(result.oom.asked_bytes), units.size(result.oom.missing_bytes)
            facts.append(("out of memory", f"on the {result.oom.where}; asked for {asked}, missing {missing}"))
        facts.append(("signal", result.signal))
        if result.parameters:
            total, trained = result.parameters.total, result.parameters.trainable
            facts.append(("parameters", f"{total:,}, {trained:,} of them trained"))
        generated = rates.generated_tokens_per_second
        facts.append(("generated", None if generated is None else units.rate(generated, "tokens/s")))
        facts.append(
            ("samples", None if rates.samples_per_second is None else units.rate(rates.samples_per_second, "per s"))
        )
        facts.append(
            (
                "energy",
                None if rates.energy_joules is None else f"{units.rate(rates.energy_joules)} J over the timed steps",
            )
        )
        kl = units.quarters(result.learning.kl)
        facts.append(("KL", None if kl is None else units.change(kl)))
        retries = result.memory.num_alloc_retries
        facts.append(("allocator retries", f"{retries:,}" if retries else None))
        parts = ", ".join(f"{name} {units.seconds(value)}" for name, value in result.seconds.items())
        facts.append(("time", parts or None))
    return tuple((name, value) for name, value in facts if value is not None)


def _tables(row: Row) -> tuple[Table, ...]:
    if row.result is None:
        return ()
    made = (
        _memory_table(row.result.memory, row.result.predicted),
        _role_table(row),
        _phase_table(row),
        _sample_table(row),
    )
    return tuple(table for table in made if table)


def _memory_table(measured: Memory, predicted: Memory | None) -> Table | None:
    lines = []
    for key, name in LEDGER_LINES.items():
        real, told = getattr(measured, key), getattr(predicted, key, None)
        if real is None and told is None:
            continue
        cells: tuple[str, ...] = (name, units.size(real))
        if predicted:
            known = real is not None and told is not None
            error = units.percent((told - real) / real) if known and real else units.DASH
            cells += (units.size(told), units.signed_size(told - real) if known else units.DASH, error)
        lines.append(cells)
    head = ("peak of", "measured", *(("predicted", "error", "of it") if predicted else ()))
    return Table("Memory", head, tuple(lines)) if lines else None


def _role_table(row: Row) -> Table | None:
    roles = row.result.roles if row.result else {}
    lines = tuple(
        (
            name + (f" (shares {held.shares})" if held.shares else ""),
            units.size(held.weights_bytes),
            units.size(held.gradients_bytes),
            units.size(held.optimizer_bytes),
        )
        for name, held in roles.items()
    )
    return Table("Roles", ("role", "weights", "gradients", "optimizer"), lines) if lines else None


def _phase_table(row: Row) -> Table | None:
    """Steps together: how often a phase ran, its median time, the highest of its peaks."""
    phases = row.result.phases if row.result else ()
    if not phases:
        return None
    keys = [
        key
        for key in ("allocated_bytes", "reserved_bytes", "device_bytes")
        if any(getattr(p, key) is not None for p in phases)
    ]
    lines = []
    for name in dict.fromkeys(phase.name for phase in phases):
        stretch = [phase for phase in phases if phase.name == name]
        peaks = [max((v for p in stretch if (v := getattr(p, key)) is not None), default=None) for key in keys]
        lines.append(
            (name, str(len(stretch)), units.seconds(median(p.seconds for p in stretch)), *map(units.size, peaks))
        )
    return Table("Phases", ("phase", "times", "median", *(key.removesuffix("_bytes") for key in keys)), tuple(lines))


def _sample_table(row: Row) -> Table | None:
    samples: Sequence[Sample] = row.result.samples if row.result else ()
    if len(samples) < 2:
        return None
    lines = tuple(
        (
            str(number),
            sample.status,
            units.size(sample.memory.allocated_bytes),
            units.size(sample.memory.device_bytes),
            units.seconds(median(sample.throughput.step_seconds) if sample.throughput.step_seconds else None),
            units.rate(sample.throughput.train_tokens_per_second),
        )
        for number, sample in enumerate(samples, 1)
    )
    return Table("Samples", ("sample", "status", "allocated", "device", "step", "tokens/s"), lines)


# 3 ------------------------------------------------------------------------------------------------ memory against throughput


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
        f"{units.plural(front, 'cell')} of {len(points):,} lie on their algorithm's Pareto front: no other cell of the algorithm has less "
        "memory and more throughput. Algorithms do different work for a token, so compare within one. Fronts follow the table's filter."
    )
    absent = len(report.rows) - len(points)
    remarks = (f"{units.plural(absent, 'cell')} without a peak or a throughput: only in the table.",) if absent else ()
    return ChartsData((chart,), text, remarks)


def _point(report: Report, row: Row) -> tuple[float, float] | None:
    peak, rate = report.peak(row), row.tokens_per_second
    return (peak, rate) if peak and rate else None


# 4 ------------------------------------------------------------------------------------------------ ledger


def ledger(report: Report) -> ChartsData | None:
    """What filled the memory, per role and kind, and the peak inside each phase; of the first cells of the table that have them."""
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
            f"In {units.plural(len(over), 'cell')} the roles hold more than the peak of allocated memory: part of them lies outside the "
            "device's allocator (on the host, or in managed memory). No rest is drawn there."
        )
    if max(len(bars), len(dots)) > charts.LEDGER_CELLS:
        remarks.append(f"Drawn: the first {charts.LEDGER_CELLS} cells, in the order and selection of the table.")
    text = (
        "Weights, gradients and optimizer state are counted by role; what is left up to the peak of allocated memory is activations "
        "and workspace. Peaks need not fall together, so the parts beyond allocated memory are differences between peaks."
    )
    return ChartsData(drawn, text, tuple(remarks))


# 5 ------------------------------------------------------------------------------------------------ learning


def learning(report: Report) -> ChartsData | None:
    """Loss and reward over the steps. Cells that differ in nothing but the seed are one group: thin lines, their mean and range."""
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
    text = "Thin lines are cells; where cells differ in nothing but the seed, the thick line is their mean and the band their range."
    return ChartsData(tuple(drawn), text, tuple(remarks))


# 6 ------------------------------------------------------------------------------------------------ environment


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
