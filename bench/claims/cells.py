"""The cells that a claim is about, with nothing left open.

cells_of(claim, claim.cells)        by name, each as often as it has seeds
planned(claims, "cpu")              what `vrambench run --claims` runs, for both kinds of device
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vrambench.bench.claims.file import Claim, Claims, Layers
from vrambench.bench.plan.matrix import Setting, check_value
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.workload import AXIS_NAMES

if TYPE_CHECKING:  # a report of a run without a claim's cells needs no torch
    from vrambench.bench.plan.plan import PlannedCell
    from vrambench.methods.device import Kind

Cells = Mapping[str, tuple[Cell, ...]]
"""By the formula's names; several of one name differ in the seed."""


def cells_of(claim: Claim, layers: Mapping[str, Layers], seeds: int | None = None) -> Cells:
    """The cells of a claim. Raises ConfigurationError, with where it was written, for a setting that no cell can have or that
    has no effect on any."""
    from vrambench.bench.plan.used import check_used

    cells = {name: _seeded(claim, one, seeds) for name, one in layers.items()}
    for name, one in layers.items():
        check_used(_work(one.cell), cells=cells[name])
    shared = next(iter(layers.values())).claim
    check_used(_work(shared), cells=[cell for several in cells.values() for cell in several])
    return cells


def on_cpu(claim: Claim) -> Cells:
    """The cells by which the claim is measured on a CPU; none where it does not say."""
    return cells_of(claim, claim.on_cpu, claim.seeds) if claim.on_cpu else {}


def planned(claims: Claims, kind: Kind, *, bf16: bool | None = None) -> list[PlannedCell]:
    """Every cell of the claims on a device of that kind, once; `bf16` as for `check`. Raises ConfigurationError where there is
    none."""
    from vrambench.bench.plan.plan import PlannedCell
    from vrambench.bench.plan.validity import check

    found: dict[str, PlannedCell] = {}
    for claim in claims.claims.values():
        cells = on_cpu(claim) if kind == "cpu" else cells_of(claim, claim.cells) if claim.cells else {}
        for name, cell in _each(cells):
            seed = f" seed={cell.workload.seed}" if len(cells[name]) > 1 else ""
            findings = check(cell, kind, bf16=bf16)
            one = PlannedCell(cell, f"{cell.name} {claim.id}.{name}{seed}", findings)
            found.setdefault(one.id, one)
    if not found:
        where = "on a CPU (none has a part `cpu`)" if kind == "cpu" else "by cells"
        raise ConfigurationError(f"{claims.name}: none of these claims is measured {where}", field="claims")
    return list(found.values())


def _each(cells: Cells) -> Iterator[tuple[str, Cell]]:
    for name, several in cells.items():
        for cell in several:
            yield name, cell


def _seeded(claim: Claim, layers: Layers, seeds: int | None) -> tuple[Cell, ...]:
    if seeds is None:
        return (_resolved(claim, layers.all),)
    said = {number: {**layers.all, "seed": Setting(number, claim.where + ": ")} for number in range(seeds)}
    return tuple(_resolved(claim, settings) for settings in said.values())


def _resolved(claim: Claim, settings: Mapping[str, Setting]) -> Cell:
    """The cell; an error in it names where the field at fault was written."""
    from vrambench.bench.plan.plan import resolved

    axes: dict[str, str] = {}
    for axis in AXIS_NAMES:
        if axis not in settings:
            raise ConfigurationError(
                f"{claim.where}: its cells have no {axis}; name it in common, or of each cell", field=axis
            )
        axes[axis] = settings[axis].value
        check_value(axis, axes[axis], settings[axis].origin)
    work = _work(settings)
    try:
        return resolved(axes, work)
    except ConfigurationError as error:
        told = error.message.startswith(tuple(one.origin.partition(": ")[0] for one in work.values()))
        raise error if told else ConfigurationError(f"{claim.where}: {error.message}", field=error.field) from None


def _work(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """Those that are of the workload."""
    return {name: setting for name, setting in settings.items() if name not in AXIS_NAMES}
