"""The report's subject: all rows of the runs that are reported, and what several views need of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from vrambench.bench.results.settings import flat_settings
from vrambench.methods.workload import AXIS_NAMES
from vrambench.reports import units
from vrambench.reports.rows import STATUSES, Row, Run, peak_basis, rows_of, setting_text, varying_fields

if TYPE_CHECKING:
    from vrambench.bench.gate.check import Check

PEAKS = {
    "device_bytes": "device memory",
    "reserved_bytes": "memory reserved by the allocator",
    "allocated_bytes": "allocated memory",
}
"""The ledger's lines that cells are compared by, as sentences name them."""

FIRST_ASKED = (
    *("model", "batch_size", "prompt_tokens", "response_tokens", "max_length", "rollout_batch", "group_size"),
    *("gradient_accumulation_steps", "gradient_checkpointing", "attention", "learning_rate", "steps", "seed", "budget"),
)
"""Settings that a reader asks for first."""


class Report:
    """Rows of one or several runs; everything here is derived from them. `check`: how the run compares with a baseline."""

    def __init__(self, runs: Sequence[Run], check: Check | None = None) -> None:
        self.runs = tuple(runs)
        self.check = check
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
        """Names that tell rows apart, by index: what no other row shares of the cell's, with the run's where several runs have the
        cell."""
        return told_apart(self.rows)

    @cached_property
    def common(self) -> tuple[tuple[str, str], ...]:
        """What never varies and is the first that a reader asks for, by name: said once, and no column."""
        if not self.rows:
            return ()
        axes = [
            (axis, self.rows[0].axes[place])
            for place, axis in enumerate(AXIS_NAMES)
            if len({row.axes[place] for row in self.rows}) == 1
        ]
        flat = [flat_settings(row.cell) for row in self.rows]
        settings = [
            (name, setting_text(self.rows[0], name))
            for name in FIRST_ASKED
            if name in flat[0] and all(repr(one.get(name)) == repr(flat[0][name]) for one in flat)
        ]
        return tuple((name, units.short(value, 60)) for name, value in (*axes, *settings) if value)

    @cached_property
    def infos(self) -> Mapping[str, Mapping[str, object]]:
        """Each run's run.json, by the run's name."""
        return {run.name: run.info for run in self.runs}

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


def told_apart(rows: Sequence[Row]) -> dict[int, str]:
    """A label for each row by index. What all names have in common is left out: of cells that differ in one field, the label
    is that field."""
    parts = {row.index: _parts(row) for row in rows}
    shared = set.intersection(*(set(of.items()) for of in parts.values())) if len(parts) > 1 else set()
    names = {
        row.index: " ".join(text for field, text in parts[row.index].items() if (field, text) not in shared)
        or " ".join(filter(None, row.axes))
        or row.name
        for row in rows
    }
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    labels: dict[int, str] = {}
    used: set[str] = set()
    for row in rows:
        name, run = units.short(names[row.index]), units.short(row.run, 40)
        label = f"{name} ({run})" if names[row.index] in twice and row.run else name
        label = f"{label} #{row.index}" if label in used else label
        used.add(label)
        labels[row.index] = label
    return labels


def _parts(row: Row) -> dict[str, str]:
    """What the cell's name says, by field."""
    words = row.name.split()
    if tuple(words[: len(AXIS_NAMES)]) != row.axes:
        return {"name": row.name}
    return dict(zip(AXIS_NAMES, words, strict=False)) | {
        word.partition("=")[0]: word for word in words[len(AXIS_NAMES) :]
    }
