"""The table's columns: which there are for the cells that are reported, what a row shows in each, and what it is sorted by.

What never varies and what no cell has is no column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from vrambench.methods.workload import AXIS_NAMES
from vrambench.reports import units
from vrambench.reports.report import Report
from vrambench.reports.rows import FITS, Row, setting_text
from vrambench.reports.sizes import SIZES, verdicts

NOT_MEASURED = {
    "allocated_bytes": "not measured: the cell was not counted, or ended before its counted step",
    "reserved_bytes": "not measured: no caching allocator on this device, or the cell ended too early",
    "device_bytes": "not measured: no GPU, or none that tells, or the cell ended too early",
    "host_rss_bytes": "not measured: the cell's process did not report it",
}

SWEPT_COLUMNS = 6
"""More swept fields than this are not columns; the details of each cell have them all."""
SECONDARY = {"reserved": "device", "host_rss": "device", "step": "tokens", "weights": "model", "data": "model"}
"""Columns that are shown only when asked for where there is the other."""
LAPTOP = 1200
"""Pixels that a laptop's window leaves for the table."""
LETTER, AROUND, SIGN, STATUS, LEAST_REASON = 5.9, 14.4, 17, 74, 126
"""Pixels of the table: a letter, the room at a word's sides, a column of signs, the first column, and the least of the reason's."""
LEAST_ASKED = ("source", "loss", "headroom", "reward", "offload")
"""Columns that are shown only when asked for where the table would be wider than a laptop's window, in this order, after swept
fields."""
SIGNS = {"fits": "✓", "tight": "≈", "unsure": "?", "does not fit": "✕"}


@dataclass(frozen=True)
class Column:
    """One column of the table. `text` is what a row shows there, `sort` what it is sorted by (None, that is unknown,
    goes last). `kind`: words that can be filtered by, a number, a verdict, or a verdict's sign."""

    key: str
    label: str
    title: str
    text: Callable[[Row], str]
    sort: Callable[[Row], Any]
    kind: Literal["text", "number", "fit", "sign", "reason"] = "number"
    missing: str = ""
    secondary: bool = False
    """Shown when asked for: the details of each cell have it."""


def columns(report: Report) -> tuple[Column, ...]:
    """Those in which the report's cells differ, or that were measured."""
    rows = report.rows
    fields = (
        _text_column("run", "the run's folder", lambda row: row.run),
        *(_text_column(axis, f"axis: {axis}", partial(_axis, place=place)) for place, axis in enumerate(AXIS_NAMES)),
        _text_column("source", "measured, predicted, or verified under an enforced budget", _source),
    )
    swept = report.swept[:SWEPT_COLUMNS]
    found = (
        *(column for column in fields if len({column.text(row) for row in rows} - {units.DASH}) > 1),
        *(column for column in (FIT, *ON_SIZES, *MEASURED) if any(column.text(row) != units.DASH for row in rows)),
        *map(_swept, swept),
        *((REASON,) if any(row.status != "ok" for row in rows) else ()),
    )
    keys = {column.key for column in found}
    hidden = {key for key, other in SECONDARY.items() if other in keys}
    order = [*(_swept(name).key for name in reversed(swept)), *LEAST_ASKED]
    hidden |= _too_wide([column for column in found if column.key not in hidden], rows, order)
    return tuple(replace(column, secondary=True) if column.key in hidden else column for column in found)


def _too_wide(shown: Sequence[Column], rows: Sequence[Row], order: Sequence[str]) -> set[str]:
    """Keys of `order`, from its begin, of columns that must go for the others to have room in a laptop's window."""
    widths = {column.key: _width(column, rows) for column in shown}
    gone: set[str] = set()
    for key in order:
        if STATUS + sum(widths.values()) <= LAPTOP:
            break
        if widths.pop(key, None) is not None:
            gone.add(key)
    return gone


def _width(column: Column, rows: Sequence[Row]) -> float:
    """Pixels, about."""
    if column.kind == "reason":
        return LEAST_REASON
    if column.kind == "sign":
        return SIGN
    return AROUND + LETTER * max(len(text) for text in (column.label, *(column.text(row) for row in rows)))


def _text_column(key: str, title: str, text: Callable[[Row], str]) -> Column:
    return Column(key, key, title, text, text, kind="text")


def _swept(name: str) -> Column:
    key = f"workload-{name}" if any(name == column.key for column in MEASURED) else name
    text = partial(setting_text, name=name)
    return Column(key, name, f"workload: {name}", text, text, kind="text")


def _axis(row: Row, place: int) -> str:
    return row.axes[place]


def _source(row: Row) -> str:
    return (row.result.source if row.result else None) or units.DASH


def why(row: Row) -> str | None:
    """Why a cell is not ok, in words."""
    if row.status == "ok":
        return None
    result = row.result
    parts = [row.reason, f"in phase {result.phase}" if result and result.phase else None]
    rule = f"{result.rule}: " if result and result.rule else ""
    return rule + "; ".join(part for part in parts if part) or None


def _fit_text(row: Row) -> str:
    verdict = row.verdict
    if verdict.fit == "unknown":
        return units.DASH
    elsewhere = verdict.source == "predicted" and not (row.result and row.result.source == "predicted")
    return f"{verdict.fit}, predicted" if elsewhere else verdict.fit


def _place(fit: str | None) -> int | None:
    return FITS.index(fit) if fit in FITS else None


def _on_size(size: int) -> Column:
    return Column(
        f"gb{size}",
        str(size),
        f"whether it fits a card of {size} GB: ✓ fits, ≈ tight, ✕ does not",
        lambda row: SIGNS.get(verdicts(row).get(size, ""), units.DASH),
        lambda row: _place(verdicts(row).get(size)),
        kind="sign",
        missing="not known: no device memory was measured or predicted, or the cell ran out of a smaller card's",
    )


ON_SIZES = tuple(map(_on_size, SIZES))
FIT = Column(
    "fit",
    "budget",
    "whether the cell's device memory is within its budget",
    _fit_text,
    lambda row: _place(row.verdict.fit),
    kind="fit",
    missing="not known: no device memory was measured or predicted, or the cell was not started",
)
REASON = Column("reason", "reason", "why the cell is not ok", lambda row: why(row) or "", why, kind="reason")


def _peak_column(key: str, label: str, title: str) -> Column:
    def peak(row: Row) -> int | None:
        found: int | None = getattr(row.memory, key)
        return found

    shown = key.removesuffix("_bytes")
    return Column(shown, label, title, lambda row: units.size(peak(row)), peak, missing=NOT_MEASURED[key])


MEAN = "mean over the first and over the last quarter of the steps"
MEASURED = (
    Column(
        "headroom",
        "headroom",
        "budget less device memory; negative where it does not fit",
        lambda row: units.signed_size(row.verdict.margin_bytes),
        lambda row: row.verdict.margin_bytes,
        missing="not known: no budget was set, or no device memory was measured or predicted",
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
"""What was measured or predicted."""
