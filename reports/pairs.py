"""Several runs side by side: the same cell in each of them, and by how much it differs from the first.

A cell is the same where its id is; else where all that it says is, but for the budget and for the kernel that attention took,
which a device decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vrambench.reports.report import Report, told_apart
from vrambench.reports.rows import Row

OF_DEVICE = ("budget", "attention")
PEAK_SHARE, PEAK_BYTES = 0.01, 64 * 2**20
"""A peak differs where it does by more than both: the gate's own measure."""
RATE_SHARE = 0.05
"""A rate differs where it does by more than this, and no step of one run is as fast as any of the other."""


@dataclass(frozen=True)
class Pair:
    """One cell, in the order of the runs; None where a run does not have it. `changed`: it ended otherwise somewhere, or its
    peak or rate differs."""

    label: str
    rows: tuple[Row | None, ...]
    changed: bool
    weight: float


@dataclass(frozen=True)
class Pairs:
    """`alone`: by run, cells that no other run has."""

    runs: tuple[str, ...]
    pairs: tuple[Pair, ...]
    alone: tuple[int, ...]


def pairs(report: Report) -> Pairs | None:
    """Cells that two runs have, those that differ most first. None for one run."""
    if len(report.runs) < 2:
        return None
    names = tuple(run.name for run in report.runs)
    by_id = _groups(report.rows, names, [row.id for row in report.rows])
    paired = {row.index for group in by_id for row in group if row}
    left = [row for row in report.rows if row.index not in paired]
    groups = [*by_id, *_groups(left, names, [_content(row) for row in left])]
    firsts = [next(row for row in group if row) for group in groups]
    labels = told_apart(firsts)
    found = [_pair(report, labels[first.index], group) for first, group in zip(firsts, groups, strict=True)]
    found.sort(key=lambda pair: (not pair.changed, -pair.weight))
    together = {row.index for pair in found for row in pair.rows if row}
    alone = tuple(sum(row.run == name and row.index not in together for row in report.rows) for name in names)
    return Pairs(names, tuple(found), alone)


def _groups(rows: Sequence[Row], runs: Sequence[str], keys: Sequence[str]) -> list[tuple[Row | None, ...]]:
    """Rows of one key, a row for each run; without keys that one run has only, or one has twice."""
    found: dict[str, list[Row]] = {}
    for row, key in zip(rows, keys, strict=True):
        found.setdefault(key, []).append(row)
    groups = []
    for of in found.values():
        in_runs = {row.run: row for row in of}
        if len(in_runs) == len(of) > 1:
            groups.append(tuple(in_runs.get(name) for name in runs))
    return groups


def _content(row: Row) -> str:
    return repr(sorted((name, repr(value)) for name, value in row.cell.items() if name not in OF_DEVICE))


def _pair(report: Report, label: str, rows: tuple[Row | None, ...]) -> Pair:
    there = [row for row in rows if row]
    first, *others = there
    shares = [
        share
        for other in others
        for share in (_peak_differs(report, first, other), _rate_differs(first, other))
        if share
    ]
    ended = len({row.status for row in there}) > 1
    return Pair(label, rows, ended or bool(shares), 1e9 if ended else max(shares, default=0.0))


def _peak_differs(report: Report, first: Row, other: Row) -> float | None:
    before, now = report.peak(first), report.peak(other)
    if not before or now is None or abs(now - before) <= max(PEAK_SHARE * before, PEAK_BYTES):
        return None
    return abs(now - before) / before


def _rate_differs(first: Row, other: Row) -> float | None:
    before, now = first.tokens_per_second, other.tokens_per_second
    if not before or not now or not first.rates or not other.rates:
        return None
    apart = max(first.rates) < min(other.rates) or max(other.rates) < min(first.rates)
    share = abs(now - before) / before
    return share if apart and share > RATE_SHARE else None
