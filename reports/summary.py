"""What a report comes to, in sentences and in the best of like cells: for the page and for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vrambench.reports import units
from vrambench.reports.alike import Like, alike
from vrambench.reports.report import PEAKS, Report
from vrambench.reports.rows import Row
from vrambench.reports.sizes import verdicts

STATUS_WORDS = {
    "oom": "out of memory",
    "timeout": "timed out",
    "error": "ended in an error",
    "invalid": "forbidden by a rule",
    "pruned": "left out, as predicted far too big",
    "unreadable": "with a result that cannot be read",
}


@dataclass(frozen=True)
class Summary:
    """`known`: of how many cells it is known whether they fit their budget, `fitting` how many do; `sized`: whether it is
    known which cards any fits. `lines`: the best of like cells."""

    sentences: tuple[str, ...]
    lines: tuple[Like, ...]
    known: int
    fitting: int
    sized: bool

    @property
    def judged(self) -> bool:
        """Whether any cell's fit is known; where not, the fastest and smallest are of all that are ok."""
        return self.known > 0


def summary(report: Report) -> Summary:
    """How many cells ended how, how many fit, and which are the fastest that fit and the smallest."""
    known = [row for row in report.rows if row.verdict.fit != "unknown"]
    fitting = [row for row in known if row.verdict.fit in ("fits", "tight")]
    return Summary(
        tuple(_sentences(report, known, fitting)),
        alike(report),
        len(known),
        len(fitting),
        any(verdicts(row) for row in report.rows),
    )


def _sentences(report: Report, known: Sequence[Row], fitting: Sequence[Row]) -> list[str]:
    if not report.rows:
        return ["This run has no cells."]
    ended = [f"{count:,} {STATUS_WORDS.get(status, status)}" for status, count in report.counts.items()]
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
        unknown = "No budget was set" if report.basis == "device_bytes" else "No device memory was measured"
        what = f"which cells fit {budget}" if report.budgets else "whether the cells fit"
        sentences.append(f"{unknown}, so this report does not say {what}. Cells are compared by their peak of {peak}.")
    return sentences


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
