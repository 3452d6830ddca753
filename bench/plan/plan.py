"""What a matrix comes to: every cell with its name and what the rules say of it.

    plan = select(load_matrix(path), Selection(only=("algorithm=ppo",)), "cpu")
    plan.cells                     PlannedCell records in the matrix's order, valid and invalid ones
    plan.document()                the same, as `vrambench plan --json` prints it

Full coverage plans every combination. Pairwise coverage plans valid cells that hold every pair of axis values that can
be valid, and one invalid cell for each value or pair that never is, so that the reason is on record.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vrambench.bench.plan.built import as_built
from vrambench.bench.plan.combinations import (
    Combination,
    all_named,
    check_number,
    combinations,
    idle_excludes,
    removing,
)
from vrambench.bench.plan.coverage import pairwise, witnesses
from vrambench.bench.plan.file import Coverage
from vrambench.bench.plan.matrix import (
    Entry,
    Layer,
    Matrix,
    Setting,
    Settings,
    located,
    overruled,
    unflatten,
)
from vrambench.bench.plan.names import check_names
from vrambench.bench.plan.selection import Selection
from vrambench.bench.plan.told import Counts, FindingTold, PlannedTold, PlanTold
from vrambench.bench.plan.used import check_saved, check_used, fields_of, idle_additions, idle_settings
from vrambench.bench.plan.validity import Finding, check
from vrambench.methods.algorithms import ALGORITHMS
from vrambench.methods.called import budget_called
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import Kind
from vrambench.methods.errors import ConfigurationError, UnknownValue, shown
from vrambench.methods.models.config import model_config
from vrambench.methods.models.presets import PRESETS
from vrambench.methods.registry import load_attribute
from vrambench.methods.texts import check_data

if TYPE_CHECKING:
    from vrambench.bench.plan.config import Config
    from vrambench.bench.results.forecast import Outcome, Unmodelled


@dataclass(frozen=True)
class PlannedCell:
    """`name`: unique in its plan. `findings`: what the rules say of the cell on the plan's device, rejections first.
    `outcome`: its prediction for CUDA, where one was made. `said`: all that was said of its workload, also what it does not use.
    `on`: the kind of GPU that it is measured on, where a run measures each cell on several."""

    cell: Cell
    name: str
    findings: tuple[Finding, ...] = ()
    outcome: Outcome | None = None
    said: Mapping[str, Any] = field(default_factory=dict, compare=False)
    on: str | None = None

    @property
    def id(self) -> str:
        return self.cell.id if self.on is None else f"{self.cell.id}-{self.on.lower()}"

    @property
    def rejection(self) -> Finding | None:
        """The first rule that forbids the cell."""
        return next((finding for finding in self.findings if finding.kind == "reject"), None)

    @property
    def verdict(self) -> Literal["valid", "invalid"]:
        return "invalid" if self.rejection else "valid"

    def told(self) -> PlannedTold:
        """As `plan --json` prints it; what was not predicted is None."""
        forecast = self.outcome.forecast if self.outcome else None
        return PlannedTold(
            id=self.id,
            name=self.name,
            verdict=self.verdict,
            findings=tuple(FindingTold(rule=one.rule, kind=one.kind, reason=one.reason) for one in self.findings),
            predicted=forecast.memory if forecast else None,
            fit=forecast.verdict if forecast else None,
            margin_bytes=forecast.margin_bytes if forecast else None,
            not_predicted=self.outcome.reason if self.outcome else None,
            cell=self.cell.flat(),
        )


def _peak(one: PlannedCell) -> int | None:
    forecast = one.outcome.forecast if one.outcome else None
    return forecast.memory.device_bytes if forecast else None


def _room(one: PlannedCell) -> int | None:
    forecast = one.outcome.forecast if one.outcome else None
    return -forecast.margin_bytes if forecast else None


ORDERS: Mapping[str, Callable[[PlannedCell], int | None]] = {"peak": _peak, "room": _room}
"""By what cells are sorted: the least memory first, or the most room under the cell's own budget."""


@dataclass(frozen=True)
class Plan:
    """`matrix`: the file. `profile`: the one in use, if any. `device`: what the cells were checked for. `warnings`:
    sentences about the matrix, which is valid all the same. `config`: the trainer's configuration that was read as one."""

    matrix: str
    profile: str | None
    device: Kind
    coverage: Coverage
    repeat: int
    cells: tuple[PlannedCell, ...]
    warnings: tuple[str, ...] = ()
    config: Config | None = None

    @property
    def left_out(self) -> tuple[Unmodelled, ...]:
        """What the trainer's configuration that was read as a matrix says, and no prediction holds."""
        return self.config.left_out if self.config else ()

    @property
    def counts(self) -> dict[str, int]:
        """Cells by verdict, and how many of the valid ones carry a warning."""
        verdicts = Counter(planned.verdict for planned in self.cells)
        warned = sum(planned.verdict == "valid" and bool(planned.findings) for planned in self.cells)
        return {"cells": len(self.cells), "valid": verdicts["valid"], "invalid": verdicts["invalid"], "warned": warned}

    @property
    def valid(self) -> list[Cell]:
        """The cells that no rule forbids."""
        return [planned.cell for planned in self.cells if planned.verdict == "valid"]

    def predicted(self, outcomes: Mapping[str, Outcome]) -> Plan:
        """The plan with each cell's prediction, by the cell's id."""
        return replace(self, cells=tuple(replace(one, outcome=outcomes.get(one.id)) for one in self.cells))

    def sorted_by(self, order: str) -> Plan:
        """The plan in another order, one of ORDERS; cells without a prediction come last."""
        key = ORDERS[order]
        return replace(self, cells=tuple(sorted(self.cells, key=lambda one: (key(one) is None, key(one) or 0))))

    def document(self, read_as: Sequence[str] = ()) -> dict[str, Any]:
        """As `plan --json` prints it. `read_as`: the selection's."""
        told = PlanTold(
            matrix=self.matrix,
            profile=self.profile,
            device=self.device,
            coverage=self.coverage,
            repeat=self.repeat,
            counts=Counts(**self.counts),
            cells=tuple(planned.told() for planned in self.cells),
            read_as=tuple(read_as),
            config=self.config.told() if self.config else None,
        )
        return told.document()


def select(matrix: Matrix, selection: Selection, device_kind: Kind, *, bf16: bool | None = None) -> Plan:
    """The plan of `matrix` under `selection`, checked for a device of that kind. `bf16`: whether it has that arithmetic;
    None, where it is not here: a CPU has, and a GPU is the card whose memory a cell's budget is.

    Where no profile is selected it is the matrix' `default_profile` for the device. A data file, a user's own reward and
    own axis values must be there already: the modules that they name are imported. Raises ConfigurationError, with
    where it was written, for whatever is wrong in the parts of the matrix that are in use, and where no cell is left.
    """
    bf16 = True if device_kind == "cpu" else bf16
    profile = selection.profile or matrix.default_profile.get("cuda" if device_kind == "meta" else device_kind)
    named = selection.layer()
    check_names(matrix, named)
    layer = named.over(matrix.layer(profile))
    if matrix.config:
        layer = by_preset(layer)
    said = _Said.of(layer, selection)
    only = selection.kept()
    # Whoever names every value means every combination.
    coverage: Coverage = (named if all_named(selection.axes) else layer).coverage or "full"

    combined = combinations(layer, selection.axes, coverage)
    _check_values(only, combined)
    said.check_number(len(combined), coverage)
    saved: set[str | None] = set()
    added: list[tuple[Settings, Cell]] = []
    cells: dict[str, PlannedCell] = {}

    def planned_at(point: _Point, one: Combination) -> PlannedCell:
        planned = _planned(one, point, device_kind, bf16)
        saved.add(planned.cell.workload.save_as)
        added.append((one.added, planned.cell))
        return planned

    for point in said.points():
        make = partial(planned_at, point)
        for planned in _covering(combined, make) if coverage == "pairwise" else map(make, combined):
            cells.setdefault(planned.id, planned)

    kept = [planned for planned in cells.values() if _kept(planned.cell.axes, only)]
    if not kept:
        left_out = any(_kept(one.axes, only) for one in combined)
        raise _nothing_left(matrix, selection, [] if all_named(selection.axes) else removing(layer, only), left_out)
    narrowed = bool(selection.axes or only)
    left = [planned.cell for planned in kept]
    check_saved(left, None if narrowed else saved)
    check_used(said.fixed, said.swept, {} if narrowed else said.sweep, cells=left)
    assert len({planned.name for planned in kept}) == len(kept), "two cells of one name"
    config = as_built(matrix.config, left) if matrix.config else None
    warnings = () if config else idle_settings(matrix, profile, named, left)
    if not narrowed:
        warnings = (*idle_excludes(matrix, profile), *idle_additions(added), *warnings)
    return Plan(matrix.name, profile, device_kind, coverage, layer.repeat or 1, tuple(kept), warnings, config)


@dataclass(frozen=True)
class _Point:
    """One value of each swept field, with all other settings. Settings that include adds are laid over `lower`, and `upper` over
    those. `swept`: the swept fields, which a cell's name shows."""

    lower: Settings
    upper: Settings
    swept: tuple[str, ...]


@dataclass(frozen=True)
class _Said:
    """What is said of the workload: `workload` and `sweep` by the file, `fixed` (`--set`) and `swept` (`--sweep`) by the command
    line, which takes fields out of the file's sweep."""

    workload: Settings
    sweep: Mapping[str, Sequence[Setting]]
    fixed: Settings
    swept: Mapping[str, Sequence[Setting]]

    @classmethod
    def of(cls, layer: Layer, selection: Selection) -> _Said:
        fixed, swept = selection.settings(), selection.sweeps()
        sweep = {name: held for name, held in (layer.sweep or {}).items() if name not in fixed and name not in swept}
        return cls(layer.workload, sweep, fixed, swept)

    def check_number(self, combined: int, coverage: Coverage) -> None:
        """That so many combinations with each point are no more cells than a plan can have."""
        sizes = [len(values) for values in (*self.sweep.values(), *self.swept.values())]
        factors = " x ".join(f"{size:,}" for size in (combined, *sizes))
        check_number(math.prod(sizes) * combined, f"combinations and swept values ({factors})", coverage)

    def points(self) -> Iterator[_Point]:
        names = (*self.sweep, *self.swept)
        for values in product(*self.sweep.values(), *self.swept.values()):
            point = dict(zip(names, values, strict=True))
            lower = {name: value for name, value in point.items() if name in self.sweep}
            upper = {name: value for name, value in point.items() if name in self.swept}
            yield _Point({**self.workload, **lower}, {**self.fixed, **upper}, names)


def _nothing_left(
    matrix: Matrix, selection: Selection, removing: Sequence[Entry], left_out: bool
) -> ConfigurationError:
    """That no cell is left, and why: `removing` are entries of exclude that took some, `left_out` says that coverage did."""
    words = selection.words()
    message = f"{matrix.name}: no cell is left" + (f" by {words}" if words else "")
    if left_out:
        message += "; pairwise coverage left it out, --coverage full has it"
    if removing:
        message += f"; removed by {', '.join(entry.origin for entry in removing)}"
    return ConfigurationError(message)


def _planned(one: Combination, point: _Point, device_kind: Kind, bf16: bool | None) -> PlannedCell:
    """The cell of one combination at one point of the sweeps."""
    settings = {**point.lower, **one.added, **point.upper}
    cell = resolved(one.axes, settings, flash=bf16)
    shown = dict.fromkeys(point.swept)
    flat = fields_of(cell) if shown or one.included else {}
    if one.included:
        plain = fields_of(resolved(one.axes, {**point.lower, **point.upper}, flash=bf16))
        shown |= {name: None for name in one.added if flat.get(name) != plain.get(name)}
    parts = [f"{name}={_text(name, flat[name])}" for name in shown if flat.get(name) is not None]
    findings = check(cell, device_kind, bf16=bf16)
    return PlannedCell(cell, " ".join([cell.name, *parts]), findings, said=unflatten(settings))


def resolved(axes: Mapping[str, str], settings: Settings, *, flash: bool | None = None) -> Cell:
    """The cell; an error in it names where the field at fault was written. `flash` as in `resolve`."""
    try:
        whole = "max_length" in ALGORITHMS.get(axes["algorithm"]).fields
        cell = resolve(axes, unflatten(overruled(settings) if whole else settings), flash=flash)
        for name in ("model", "reward_model"):
            _check_model(getattr(cell.workload, name), name)
        check_data(cell.workload.data)
        _check_reward(cell.workload.reward)
    except ConfigurationError as error:
        raise located(error, settings) from None
    return cell


def by_preset(layer: Layer) -> Layer:
    """`layer`, with a model's preset in place of the hub id whose shape it has: it needs no network."""
    setting = layer.workload.get("model")
    preset = next((name for name, one in PRESETS.items() if setting and one.hub_id == setting.value), None)
    if preset is None or setting is None:
        return layer
    return replace(layer, workload={**layer.workload, "model": replace(setting, value=preset)})


def _check_model(model: str | None, field: str) -> None:
    """That a folder holds a model that can be trained here. What may be a hub id (`owner/name`) is left to the network."""
    if model is None or model in PRESETS:
        return
    if model.count("/") != 1 or model.startswith((".", "/", "~")) or Path(model).exists():
        model_config(model, field=field)


def _check_reward(reward: str | None) -> None:
    """That a user's own function is there."""
    if reward is None or ":" not in reward:
        return
    found = load_attribute(reward, field="reward")
    if not callable(found):
        raise ConfigurationError(
            f"reward: {shown(reward)} is of type {type(found).__name__}, not a function of (prompts, responses)",
            field="reward",
        )


def _covering(combined: Sequence[Combination], make: Callable[[Combination], PlannedCell]) -> list[PlannedCell]:
    """Those cells of `combined` that pairwise coverage plans: include's own combinations always. Of the others no cell is kept
    before it is chosen: there may be too many for the memory."""
    rejections = {
        tuple(one.axes.values()): sum(finding.kind == "reject" for finding in make(one).findings)
        for one in combined
        if not one.included
    }
    valid = [row for row, count in rejections.items() if not count]
    plainest = sorted((row for row, count in rejections.items() if count), key=rejections.__getitem__)
    rows = {*pairwise(valid), *witnesses(valid, plainest)}
    return [make(one) for one in combined if one.included or tuple(one.axes.values()) in rows]


def _kept(axes: Mapping[str, str], only: Mapping[str, tuple[str, ...]]) -> bool:
    return all(axes[axis] in names for axis, names in only.items())


def _check_values(only: Mapping[str, tuple[str, ...]], combined: Iterable[Combination]) -> None:
    """That every value which is to be kept occurs."""
    combined = list(combined)
    for axis, names in only.items():
        there = tuple(dict.fromkeys(one.axes[axis] for one in combined))
        for name in names:
            if name not in there:
                raise UnknownValue(f"--only {axis}", name, there)


def _text(field: str, value: Any) -> str:
    """As a name shows it: without blanks."""
    if field == "budget":
        return budget_called(value)
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":")).replace('"', "")
