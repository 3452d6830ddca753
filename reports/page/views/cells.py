"""The view of every cell: the table's columns, and for each cell its row and its details, as text that only needs placing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from vrambench.bench.results.curves import quarters
from vrambench.bench.results.records import Memory, Sample
from vrambench.methods.workload import AXIS_NAMES
from vrambench.reports import units
from vrambench.reports.page.view import View
from vrambench.reports.report import Report
from vrambench.reports.rows import Row, axis_options, setting_options

LEDGER_LINES = {
    "requested_bytes": "requested",
    "allocated_bytes": "allocated",
    "active_bytes": "active",
    "reserved_bytes": "reserved",
    "device_bytes": "device",
    "context_bytes": "CUDA context and libraries",
    "elsewhere_bytes": "another process'",
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


@dataclass(frozen=True)
class Column:
    """One column of the table. `text` is what a row shows there, `sort` what it is sorted by (None, that is unknown,
    goes last)."""

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
    several = len({run.name for run in report.runs}) > 1
    return (
        *([_text_column("run", "the run's folder", lambda row: row.run)] if several else []),
        *(_text_column(axis, f"axis: {axis}", partial(_axis, place=place)) for place, axis in enumerate(AXIS_NAMES)),
        *(column for column in MEASURED if any(column.text(row) != units.DASH for row in report.rows)),
        *(
            _text_column(name, f"workload: {name}", partial(_setting, name=name))
            for name in report.swept[:SWEPT_COLUMNS]
        ),
    )


def _text_column(key: str, title: str, text: Callable[[Row], str]) -> Column:
    return Column(key, key, title, text, text, kind="text")


def _peak_column(key: str, label: str, title: str) -> Column:
    def peak(row: Row) -> int | None:
        found: int | None = getattr(row.memory, key)
        return found

    shown = key.removesuffix("_bytes")
    return Column(shown, label, title, lambda row: units.size(peak(row)), peak, missing=NOT_MEASURED[key])


def _axis(row: Row, place: int) -> str:
    return row.axes[place]


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


MEAN = "mean over the first and over the last quarter of the steps"
MEASURED = (
    Column(
        "fit",
        "fits",
        "whether the cell's device memory is within its budget",
        _fit_text,
        lambda row: {"fits": 0, "tight": 1, "unsure": 2, "does not fit": 3}.get(row.verdict.fit),
        kind="fit",
        missing="not known: no device memory was measured or predicted, or the cell was not started",
    ),
    _peak_column("allocated_bytes", "alloc.", "peak of allocated memory: live tensors"),
    _peak_column("reserved_bytes", "reserved", "peak of memory that PyTorch's allocator reserved"),
    _peak_column("device_bytes", "device", "peak of device memory, as the driver counts it"),
    _peak_column("host_rss_bytes", "host", "peak of the process' resident host memory"),
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
        f"loss, {MEAN}; sorted by the last",
        lambda row: units.change(row.loss),
        lambda row: row.loss[1] if row.loss else None,
        missing="no loss was recorded",
    ),
    Column(
        "reward",
        "reward",
        f"reward, {MEAN}; sorted by the last",
        lambda row: units.change(row.reward),
        lambda row: row.reward[1] if row.reward else None,
        missing="no reward was recorded: the algorithm has none, or the cell ended too early",
    ),
)
"""The columns of what was measured or predicted; what no cell has is no column."""


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
        kl = quarters(result.learning.kl)
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
        _memory_table(row.result.memory, None if row.result.source == "predicted" else row.result.predicted),
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


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


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
            (
                name,
                str(len(stretch)),
                units.seconds(_median([p.seconds for p in stretch if p.seconds is not None])),
                *map(units.size, peaks),
            )
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
            units.seconds(_median(sample.throughput.step_seconds)),
            units.rate(sample.throughput.train_tokens_per_second),
        )
        for number, sample in enumerate(samples, 1)
    )
    return Table("Samples", ("sample", "status", "allocated", "device", "step", "tokens/s"), lines)


VIEW = View("cells", "Every cell", "cells.html", cells)
