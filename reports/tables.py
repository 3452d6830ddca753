"""The report's cells as a table for other tools: a data frame, and it as Markdown, CSV and Parquet.

    frame(Report(runs))         one row for each cell, numbers as they were stored: bytes, seconds, None for unknown

Columns that no cell has are there, too: the same columns for every run, so that tables of several can be laid together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vrambench.bench.results.records import Memory
from vrambench.bench.results.settings import flat_settings
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.workload import AXIS_NAMES
from vrambench.reports.columns import columns, why
from vrambench.reports.report import Report
from vrambench.reports.rerun import command
from vrambench.reports.rows import Row
from vrambench.reports.sizes import SIZES, verdicts

if TYPE_CHECKING:
    import pandas as pd


def record(report: Report, row: Row) -> dict[str, Any]:
    """A cell's line. Settings follow as `set.NAME`."""
    result = row.result
    on_sizes = verdicts(row)
    memory = {name: getattr(row.memory, name) for name in Memory.model_fields}
    predicted = result.predicted if result else None
    rates = result.throughput if result else None
    return {
        "run": row.run,
        "id": row.id,
        "name": row.name,
        "status": row.status,
        "source": result.source if result else None,
        "phase": result.phase if result else None,
        "reason": why(row),
        **dict(zip(AXIS_NAMES, row.axes, strict=True)),
        "fit": None if row.verdict.fit == "unknown" else row.verdict.fit,
        "budget_bytes": row.budget_bytes,
        "headroom_bytes": row.verdict.margin_bytes,
        **{f"fits_{size}gb": on_sizes.get(size) for size in SIZES},
        **memory,
        "predicted_device_bytes": predicted.device_bytes if predicted else None,
        "step_seconds": row.step_seconds,
        "train_tokens_per_second": row.tokens_per_second,
        "generated_tokens_per_second": rates.generated_tokens_per_second if rates else None,
        "samples_per_second": rates.samples_per_second if rates else None,
        "loss": row.loss[1] if row.loss else None,
        "reward": row.reward[1] if row.reward else None,
        "command": command(row, report.infos[row.run]),
        **{f"set.{name}": value for name, value in flat_settings(row.cell).items() if name != "budget"},
    }


WHOLE = ("budget_bytes", "headroom_bytes", *Memory.model_fields, "predicted_device_bytes")
FRACTIONS = (
    "step_seconds",
    *("train_tokens_per_second", "generated_tokens_per_second", "samples_per_second"),
    *("loss", "reward"),
)
"""Columns of numbers; the others are text."""


def frame(report: Report) -> pd.DataFrame:
    """One row for each cell. A column has the same type in every run, so that files of runs with the same settings load as one:
    what is known of no cell is a number or a text all the same, and whole numbers stay whole beside what is not known."""
    import pandas as pd

    records = [record(report, row) for row in report.rows]
    names = list(dict.fromkeys(name for one in records for name in one))
    return pd.DataFrame({name: _column(name, [one.get(name) for one in records]) for name in names})


def _column(name: str, values: Sequence[Any]) -> Any:
    """The column's values as pandas holds them. A setting has the type of its values; it is text where they have several, or
    are lists."""
    import pandas as pd

    dtype: Any
    kinds = {type(value) for value in values if value is not None}
    if name in WHOLE or (name.startswith("set.") and kinds == {int}):
        dtype = "Int64"
    elif name in FRACTIONS or (name.startswith("set.") and kinds and kinds <= {int, float}):
        dtype = "Float64"
    elif kinds == {bool}:
        dtype = "boolean"
    else:
        dtype, values = "string", [None if value is None else str(value) for value in values]
    return pd.array(values, dtype=dtype)


def markdown(report: Report) -> str:
    """What the page's table shows, as Markdown."""
    shown = [column for column in columns(report) if column.kind not in ("text", "sign")]
    heads = ["cell", "status", *(column.label for column in shown)]
    aligned = ["---", "---", *("---:" if column.kind == "number" else "---" for column in shown)]
    lines = [[report.labels[row.index], row.status, *(column.text(row) for column in shown)] for row in report.rows]
    told = ", ".join(f"{name} {value}" for name, value in report.common)
    return "\n".join([*([f"Every cell: {told}", ""] if told else []), *map(_line, [heads, aligned, *lines])]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def write_parquet(report: Report, out: Path) -> None:
    """Raises ConfigurationError where pyarrow is not installed."""
    try:
        import pyarrow  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "--format parquet: needs pyarrow, which is not installed; `pip install pyarrow` brings it, and csv needs nothing more",
            field="format",
        ) from None
    frame(report).to_parquet(out, index=False)
