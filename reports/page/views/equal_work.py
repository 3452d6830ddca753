"""The view of algorithms side by side: what a step of each takes in time and memory, where they do the same work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from vrambench.bench.results.settings import flat_settings
from vrambench.methods.written_options import option_names
from vrambench.reports import units
from vrambench.reports.page.view import View
from vrambench.reports.report import PEAKS, Report
from vrambench.reports.rows import Row

ROLES = ("value", "reference", "reference_dtype", "rollout_batch", "group_size")
"""What an algorithm decides of its roles, and into how many prompts it divides its responses."""
NO_WORK = ("seed", "learning_rate", "steps", "warmup_steps", "budget")
"""Settings on which a step's time and memory do not depend."""
PASSES = ("epochs", "num_iterations")
"""Options that say how often a step trains on its tokens."""

BASES = 3
"""Lines that others are divided by, at most: each is two columns."""

GROUPS = 12
"""Shown at most, those of most lines first."""


@dataclass(frozen=True)
class Compared:
    """One line: cells that differ in nothing but the seed and lengths of the job. Each ratio is to one of the group's `bases`;
    None where it is the line itself, or unknown."""

    label: str
    index: int
    cells: int
    time: str
    times: tuple[str | None, ...]
    peak: str
    peaks: tuple[str | None, ...]
    rate: str
    learned: str


@dataclass(frozen=True)
class Group:
    """Cells that do the same work in a step. `about`: what they agree in, `bases`: the lines that others are divided by."""

    about: str
    bases: tuple[str, ...]
    lines: tuple[Compared, ...]


@dataclass(frozen=True)
class EqualWorkData:
    """`more`: groups that are not shown, since there are GROUPS with as many lines or more."""

    groups: tuple[Group, ...]
    peak: str
    more: int = 0


def equal_work(report: Report) -> EqualWorkData | None:
    """Groups of cells that ended well and differ in nothing but the algorithm, its roles and options: their steps train on as many
    tokens, as often. None where there is no such group."""
    timed = [row for row in report.ok if row.step_seconds and row.tokens_per_second]
    alike = Counter((row.run, row.axes[:-1]) for row in timed)
    several = [row for row in timed if alike[row.run, row.axes[:-1]] > 1]
    work: dict[str, list[Row]] = {}
    for row in several:
        work.setdefault(_work(row), []).append(row)
    groups = [group for rows in work.values() if (group := _group(report, rows))]
    groups.sort(key=lambda group: -len(group.lines))
    peak = PEAKS.get(report.basis or "", "memory")
    return EqualWorkData(tuple(groups[:GROUPS]), peak, len(groups[GROUPS:])) if groups else None


def _work(row: Row) -> str:
    """What cells of one group have in common: of the algorithm, whether it trains a policy, and how often on the same tokens. A
    switch that is off is as one that an algorithm does not have."""
    assert row.result
    settings, namespaces = flat_settings(row.cell), option_names("algorithms")
    same = {
        name: value
        for name, value in settings.items()
        if value is not False and name not in (*ROLES, *NO_WORK) and name.partition(".")[0] not in namespaces
    }
    options = {
        name.partition(".")[2]: value for name, value in settings.items() if name.partition(".")[0] in namespaces
    }
    passes = next((options[name] for name in PASSES if name in options), 1)
    policy = "policy" in row.result.roles
    return repr((row.run, row.axes[:-1], sorted(same.items(), key=lambda item: item[0]), policy, passes, _tokens(row)))


def _tokens(row: Row) -> int:
    """How many a step trains on; by the rate without GaLore's decompositions, which are in few of the steps."""
    assert row.result
    rate = row.result.throughput.train_tokens_per_second_without_svd or row.tokens_per_second
    return round((row.step_seconds or 0) * (rate or 0))


def _group(report: Report, rows: Sequence[Row]) -> Group | None:
    """The lines of cells that do the same work; None where all are one line."""
    forms: dict[str, list[Row]] = {}
    for row in rows:
        content = {name: value for name, value in row.cell.items() if name not in NO_WORK}
        forms.setdefault(repr(sorted((name, repr(value)) for name, value in content.items())), []).append(row)
    if len(forms) == 1:
        return None
    known = [
        (of, median(row.step_seconds or 0 for row in of), max(report.peak(row) or 0 for row in of))
        for of in forms.values()
    ]
    labels = _labels([of[0] for of, _, _ in known])
    bases = _bases([of[0] for of, _, _ in known])
    lines = [
        Compared(
            label,
            of[0].index,
            len(of),
            units.seconds(time),
            tuple(_ratio(time, known[base][1], place != base) for base in bases),
            units.size(peak or None),
            tuple(_ratio(peak, known[base][2], place != base) for base in bases),
            units.rate(median(row.tokens_per_second or 0 for row in of), "tokens/s"),
            f"reward {units.change(of[0].reward)}" if of[0].reward else f"loss {units.change(of[0].loss)}",
        )
        for place, (label, (of, time, peak)) in enumerate(zip(labels, known, strict=True))
    ]
    first = rows[0]
    model, axes = first.cell.get("model"), ", ".join(first.axes[:-1])
    return Group(
        f"{model}, {axes}, {units.plural(_tokens(first), 'token')} trained on in a step",
        tuple(labels[base] for base in bases),
        tuple(lines),
    )


def _labels(rows: Sequence[Row]) -> list[str]:
    """The algorithm, and its roles where several lines have the same."""
    names = [row.algorithm for row in rows]
    labels = []
    for row in rows:
        alike = [flat_settings(one.cell) for one in rows if one.algorithm == row.algorithm]
        own = flat_settings(row.cell)
        told = [
            f"{name} {value}"
            for name, value in own.items()
            if any(one.get(name) != value for one in alike) and name not in NO_WORK
        ]
        labels.append(", ".join((row.algorithm, *told)) if names.count(row.algorithm) > 1 else row.algorithm)
    return labels


def _bases(rows: Sequence[Row]) -> list[int]:
    """The first line of each of the first algorithms; not of the last, to which nothing is left to compare."""
    firsts: dict[str, int] = {}
    for place, row in enumerate(rows):
        firsts.setdefault(row.algorithm, place)
    return list(firsts.values())[: min(BASES, max(1, len(firsts) - 1))]


def _ratio(value: float, base: float, other: bool) -> str | None:
    return f"{value / base:.2f}" if other and base else None


VIEW = View("equal_work", "Algorithms at equal work", "equal_work.html", equal_work)
