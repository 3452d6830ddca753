"""The view of what differs from a baseline, where one was given."""

from __future__ import annotations

from dataclasses import dataclass

from vrambench.reports.checked import OUTCOMES, headline, lines
from vrambench.reports.page.view import View
from vrambench.reports.report import Report


@dataclass(frozen=True)
class Change:
    """One cell. `index`: of its row, where the run has it."""

    outcome: str
    words: str
    label: str
    index: int | None
    told: tuple[str, ...]


@dataclass(frozen=True)
class ChangesData:
    headline: str
    comparable: bool
    notes: tuple[str, ...]
    changes: tuple[Change, ...]


def changes(report: Report) -> ChangesData | None:
    """None without a baseline."""
    found = report.check
    if found is None:
        return None
    indices = {row.id: row.index for row in report.rows}
    return ChangesData(
        headline(found),
        not found.not_comparable,
        found.notes,
        tuple(
            Change(
                cell.outcome,
                OUTCOMES[cell.outcome],
                report.labels[indices[cell.id]] if cell.id in indices else cell.name,
                indices.get(cell.id),
                tuple(lines(cell)),
            )
            for cell in found.cells
        ),
    )


VIEW = View("changes", "Difference from the baseline", "changes.html", changes)
