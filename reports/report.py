"""The report's subject: all rows of the runs that are reported, and what several views need of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from vrambench.reports import units
from vrambench.reports.rows import STATUSES, Row, Run, peak_basis, rows_of, varying_fields

PEAKS = {
    "device_bytes": "device memory",
    "reserved_bytes": "memory reserved by the allocator",
    "allocated_bytes": "allocated memory",
}
"""The ledger's lines that cells are compared by, as sentences name them."""


class Report:
    """Rows of one or several runs; everything here is derived from them."""

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
            name, run = units.short(row.name), units.short(row.run, 40)
            label = f"{name} ({run})" if row.name in twice else name
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
