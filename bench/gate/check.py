"""What changed between a baseline and a run, cell by cell, and whether it is a regression.

    found = check(read_baseline(path), RunFolder.open(run))
    found.exit_code, found.of("regressed")

A cell that fitted and does not any more is always a regression, whatever the tolerances. Cells with other settings are other cells:
where none is left to compare, the run is not comparable. One whose measurement failed is neither a regression nor a pass. Time
counts only where it is longer by more than its tolerance and the samples can be told apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist, median
from typing import Any, Literal

from pydantic import Field, computed_field

from vrambench.bench.gate.baseline import Baseline, BaselineCell, baseline_of
from vrambench.bench.gate.tolerance import MEMORY, TIME, Tolerance, tolerances
from vrambench.bench.results.comparable import changed_versions, same_allocation, same_hardware
from vrambench.bench.results.records import FAILED, SCHEMA, Record
from vrambench.bench.results.settings import flat_settings
from vrambench.bench.results.store import RunFolder
from vrambench.methods.workload import AXIS_NAMES

Outcome = Literal["regressed", "failed", "improved", "vanished", "new", "same"]
OUTCOMES: tuple[Outcome, ...] = ("regressed", "failed", "improved", "vanished", "new", "same")

OURS = ("vrambench",)
"""Packages whose change is what a gate is for."""
MOST_GROWN = 5
"""Of what grew, so much is told."""
FEWEST_STEPS = 5
"""Timed steps on either side, below which times are not compared."""
CERTAIN = 0.01
"""Two series of times are told apart where chance alone would set them so far apart less often than this."""


class Difference(Record):
    """One metric of a cell, in bytes or, of time, in seconds. `worse`: it grew by more than is `allowed`; `better`: it shrank by
    more."""

    metric: str
    before: int | float
    now: int | float
    allowed: int | float
    worse: bool
    better: bool


class Growth(Record):
    """What takes more at the peak than before, in bytes. `kind` is one of the ledger's; `module` and `operator` where they are
    stored, which they are of predicted cells."""

    role: str | None
    kind: str
    phase: str | None = None
    module: str = ""
    operator: str = ""
    before_bytes: int
    now_bytes: int

    @property
    def grown_bytes(self) -> int:
        return self.now_bytes - self.before_bytes


class CellCheck(Record):
    """One cell. `reason`: why it is `failed` or `vanished`, or regressed other than by a metric. `phase`, `step`: where the peak of
    allocated memory grew most."""

    id: str
    name: str
    outcome: Outcome
    reason: str | None = None
    differences: tuple[Difference, ...] = ()
    phase: str | None = None
    step: int | None = None
    phase_bytes: int = 0
    growth: tuple[Growth, ...] = ()


class Check(Record):
    """`not_comparable`: why the run cannot be held against the baseline; the cells are none then. `notes`: what else differs."""

    schema_: int = Field(SCHEMA, alias="schema")
    device: str
    not_comparable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cells: tuple[CellCheck, ...] = ()

    def of(self, outcome: Outcome) -> tuple[CellCheck, ...]:
        return tuple(cell for cell in self.cells if cell.outcome == outcome)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def counts(self) -> dict[Outcome, int]:
        """Cells by outcome, those that occur."""
        found = Counter(cell.outcome for cell in self.cells)
        return {outcome: found[outcome] for outcome in OUTCOMES if found[outcome]}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exit_code(self) -> int:
        """As the command line's: 0 passed, 1 regressed, 3 not comparable, 4 a measurement failed."""
        if self.not_comparable:
            return 3
        return 1 if self.of("regressed") else 4 if self.of("failed") else 0

    def document(self) -> dict[str, Any]:
        """As `check --json` prints it."""
        return self.model_dump(mode="json", by_alias=True)


def check(
    baseline: Baseline,
    folder: RunFolder,
    told: Mapping[str, str] | None = None,
    *,
    across_versions: bool = False,
    two_sided: bool = False,
) -> Check:
    """`folder`'s run against `baseline`. `told`: tolerances that count before those of the file. `across_versions`: other versions
    of packages are compared all the same. `two_sided`: what shrank is a regression, too: every change is to be approved. Raises
    ConfigurationError for a tolerance that cannot be read, or is of nothing."""
    told = told or {}
    tolerances(None, told)
    run = baseline_of(folder)
    apart, notes = _apart(baseline, run, across_versions)
    if apart:
        return Check(device=run.device, not_comparable=tuple(apart), notes=tuple(notes))
    now = {cell.id: cell for cell in run.cells}
    absent = {cell.id: "the run has no result of it" for cell in folder.run.cells} if folder.run else {}
    absent |= {one.cell_id: f"its result file is {one.reason}" for one in folder.unreadable}
    known = {cell.id for cell in baseline.cells}
    new = [cell for cell in run.cells if cell.id not in known]
    alike = _by_axes(new)
    if not known & {*now, *absent}:
        return Check(device=run.device, not_comparable=(_nothing_left(baseline.cells, alike),), notes=tuple(notes))
    cells = [
        _checked(cell, now.get(cell.id), absent.get(cell.id), baseline.tolerances, told, two_sided, alike)
        for cell in baseline.cells
    ]
    return Check(device=run.device, notes=tuple(notes), cells=_ordered([*cells, *map(_new, new)]))


def confirmed(found: Check, again: Check) -> Check:
    """`found`, where a regression counts only if it shows `again`, when its cell was measured once more."""
    once_more = {cell.id: cell for cell in again.cells}

    def counted(cell: CellCheck) -> CellCheck:
        second = once_more.get(cell.id)
        if cell.outcome != "regressed" or second is None or second.outcome == "regressed":
            return cell
        told = "measured once more: " + ("not worse" if second.outcome in ("same", "improved") else second.reason or "")
        outcome: Outcome = "failed" if second.outcome == "failed" else "same"
        return cell.model_copy(update={"outcome": outcome, "reason": told})

    return found.model_copy(update={"cells": _ordered(counted(cell) for cell in found.cells)})


def _ordered(cells: Iterable[CellCheck]) -> tuple[CellCheck, ...]:
    return tuple(sorted(cells, key=lambda cell: (OUTCOMES.index(cell.outcome), -_weight(cell))))


def _apart(baseline: Baseline, run: Baseline, across_versions: bool) -> tuple[list[str], list[str]]:
    """Why the two cannot be compared, and what else differs."""
    before, now = baseline.environment, run.environment
    apart = [*same_hardware(before, now), *same_allocation(before, now)]
    versions = [one for one in changed_versions(_known(before), _known(now)) if not one.startswith(OURS)]
    if across_versions:
        return apart, versions
    return [*apart, *versions], []


def _known(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Without what moves no memory: Python's last number."""
    python = environment.get("python")
    return {**environment, "python": ".".join(python.split(".")[:2]) if isinstance(python, str) else None}


ByAxes = Mapping[tuple[Any, ...], Sequence[BaselineCell]]


def _axes(cell: BaselineCell) -> tuple[Any, ...]:
    return tuple(cell.cell.get(axis) for axis in AXIS_NAMES)


def _by_axes(cells: Iterable[BaselineCell]) -> ByAxes:
    found: dict[tuple[Any, ...], list[BaselineCell]] = {}
    for cell in cells:
        found.setdefault(_axes(cell), []).append(cell)
    return found


def _nothing_left(before: Sequence[BaselineCell], new: ByAxes) -> str:
    """That no cell could be compared, and of the first that is asked otherwise, how."""
    changed = next((f": {cell.name} {told}" for cell in before if (told := _asked_otherwise(cell, new))), "")
    return f"none of the baseline's cells is in this run{changed}"


def _asked_otherwise(before: BaselineCell, new: ByAxes) -> str | None:
    """What the run's only new cell with the same axis values has in the place of this one's settings."""
    alike = new.get(_axes(before), ())
    if len(alike) != 1:
        return None
    was, now = flat_settings(before.cell), flat_settings(alike[0].cell)
    changed = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return "now has " + ", ".join(f"{name} {now.get(name)} instead of {was.get(name)}" for name in changed)


def _new(cell: BaselineCell) -> CellCheck:
    if cell.status in FAILED:
        return CellCheck(id=cell.id, name=cell.name, outcome="failed", reason=f"new, and {_ended(cell)}")
    return CellCheck(id=cell.id, name=cell.name, outcome="new", reason=_ended(cell))


def _checked(
    before: BaselineCell,
    now: BaselineCell | None,
    absent: str | None,
    of_all: Mapping[str, str],
    told: Mapping[str, str],
    two_sided: bool,
    new: ByAxes,
) -> CellCheck:
    named = {"id": before.id, "name": before.name}
    if now is None:
        if absent:
            return CellCheck(**named, outcome="failed", reason=absent)
        return CellCheck(**named, outcome="vanished", reason=_asked_otherwise(before, new))
    if now.status in FAILED:
        return CellCheck(**named, outcome="failed", reason=_ended(now))
    if before.status in FAILED:
        return CellCheck(**named, outcome="new", reason=f"{_ended(now)}; the baseline's measurement had failed")
    if now.status in ("invalid", "pruned") and before.status not in ("invalid", "pruned"):
        return CellCheck(**named, outcome="vanished", reason=_ended(now))
    if before.status in ("invalid", "pruned"):
        same = before.status == now.status
        return CellCheck(**named, outcome="same" if same else "new", reason=None if same else _ended(now))
    limits = tolerances(now.source, of_all, before.tolerances, told)
    differences = _differences(before, now, limits)
    fits_no_more = before.status == "ok" and now.status == "oom"
    worse = [one for one in differences if one.worse or (two_sided and one.better)]
    better = (before.status == "oom" and now.status == "ok") or any(one.better for one in differences)
    phase, step, grown = _phase(before, now)
    return CellCheck(
        **named,
        outcome="regressed" if fits_no_more or worse else "improved" if better else "same",
        reason=f"it fitted, and does not any more: {_ended(now)}" if fits_no_more else None,
        differences=tuple(one for one in differences if one.worse or one.better),
        phase=phase,
        step=step,
        phase_bytes=grown,
        growth=_growth(before, now),
    )


def _ended(cell: BaselineCell) -> str:
    rule = f" by the rule {cell.rule}" if cell.rule else ""
    return f"{cell.status}{rule}" + (f": {cell.reason}" if cell.reason else "")


def _differences(before: BaselineCell, now: BaselineCell, limits: Mapping[str, Tolerance]) -> list[Difference]:
    found = []
    complete = before.status == now.status == "ok" or now.source == "predicted"
    for metric in MEMORY if complete else ():
        old, new = getattr(before.memory, metric), getattr(now.memory, metric)
        if old is not None and new is not None:
            found.append(_difference(metric, old, new, int(limits[metric].allowed(old))))
    old_steps, new_steps = ([step for sample in cell.step_seconds for step in sample] for cell in (before, now))
    enough = min(len(old_steps), len(new_steps)) >= FEWEST_STEPS
    if TIME in limits and enough and chance(old_steps, new_steps) < CERTAIN:
        old = median(old_steps)
        found.append(_difference(TIME, old, median(new_steps), limits[TIME].allowed(old)))
    return found


def _difference(metric: str, before: float, now: float, allowed: float) -> Difference:
    grown = now - before
    return Difference(
        metric=metric, before=before, now=now, allowed=allowed, worse=grown > allowed, better=-grown > allowed
    )


def chance(before: Sequence[float], now: Sequence[float]) -> float:
    """How often chance alone would set two series so far apart: the two-sided Mann-Whitney test, which needs no shape of the
    distribution, by its normal approximation with ties and continuity counted (Hollander and Wolfe, Nonparametric Statistical
    Methods, 4.1)."""
    ranks: dict[float, float] = {}
    counted = Counter([*before, *now])
    below = 0
    for value in sorted(counted):
        ranks[value] = below + (counted[value] + 1) / 2
        below += counted[value]
    first, second = len(before), len(now)
    both = first + second
    statistic = sum(ranks[value] for value in now) - second * (second + 1) / 2
    ties = sum(count**3 - count for count in counted.values())
    variance = first * second / 12 * (both + 1 - ties / (both * (both - 1)))
    if variance <= 0:
        return 1.0
    distance = (abs(statistic - first * second / 2) - 0.5) / math.sqrt(variance)
    return min(1.0, 2 * (1 - NormalDist().cdf(distance)))


def _phase(before: BaselineCell, now: BaselineCell) -> tuple[str | None, int | None, int]:
    """The phase whose peak of allocated memory grew most, and by how much."""
    old = {(phase.name, phase.step): phase.allocated_bytes for phase in before.phases}
    grown = {
        (phase.name, phase.step): phase.allocated_bytes - (old.get((phase.name, phase.step)) or 0)
        for phase in now.phases
        if phase.allocated_bytes is not None
    }
    if not grown or max(grown.values()) <= 0:
        return None, None, 0
    (name, step), most = max(grown.items(), key=lambda one: one[1])
    return name, step, most


def _growth(before: BaselineCell, now: BaselineCell) -> tuple[Growth, ...]:
    """What takes more than before, most first: who asked for it where that is stored, else the roles' shares."""
    stored = bool(before.held and now.held)
    keys = ("role", "kind", "phase", "module", "operator") if stored else ("role", "kind")
    old, new = (_held(cell, keys) if stored else _shares(cell) for cell in (before, now))
    grown = [
        Growth(**dict(zip(keys, key, strict=True)), before_bytes=old.get(key, 0), now_bytes=count)
        for key, count in new.items()
        if count > old.get(key, 0)
    ]
    return tuple(sorted(grown, key=lambda one: -one.grown_bytes)[:MOST_GROWN])


def _held(cell: BaselineCell, keys: Sequence[str]) -> dict[tuple[Any, ...], int]:
    return {tuple(getattr(one, key) for key in keys): one.nbytes for one in cell.held}


def _shares(cell: BaselineCell) -> dict[tuple[Any, ...], int]:
    kinds = ("weights", "gradients", "optimizer")
    return {(role, kind): getattr(held, f"{kind}_bytes") for role, held in cell.roles.items() for kind in kinds}


def _weight(cell: CellCheck) -> float:
    """By how much of its own size the cell changed."""
    return max((abs(one.now - one.before) / one.before for one in cell.differences if one.before), default=0.0)
