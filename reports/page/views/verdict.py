"""The view of what a reader takes away: how many cells fit, and which are the fastest and the smallest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vrambench.reports import units
from vrambench.reports.page.view import View
from vrambench.reports.report import PEAKS, Report
from vrambench.reports.rows import Row


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
                _best(report, candidates, lambda row: row.tokens_per_second or None),
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
            f"No device memory was measured, so this report does not say which cells fit {budget}; "
            f"cells are compared by their peak of {peak}."
        )
    return sentences


def _best(report: Report, rows: Sequence[Row], score: Callable[[Row], float | None]) -> Best | None:
    scored = [(value, row) for row in rows if (value := score(row)) is not None]
    if not scored:
        return None
    _, row = max(scored, key=lambda pair: (pair[0], -pair[1].index))
    rate = f"{units.rate(row.tokens_per_second, 'tokens/s')}, " if row.tokens_per_second else ""
    return Best(row.index, report.labels[row.index], rate + units.size(report.peak(row)))


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


VIEW = View("verdict", "Verdict", "verdict.html", verdict)
