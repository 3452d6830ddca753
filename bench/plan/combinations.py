"""From a layer to its combinations of axis values: the product, less exclude, with include, as GitHub Actions has it.

combinations(matrix.layer("smoke"))        Combination records in the axes' order
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from vrambench.bench.plan.file import Coverage
from vrambench.bench.plan.matrix import Entry, Layer, Matrix, Settings, check_value
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.workload import AXIS_NAMES

MOST_CELLS = {"full": 20_000, "pairwise": 200_000}
"""By coverage, combinations times swept values: of a plan in full, and those that a pairwise one is chosen from, which are checked
within two minutes."""


@dataclass(frozen=True)
class Combination:
    """One value for each axis, by axis, and what `include` adds to it. `included`: made by include, not by the axes'
    product."""

    axes: Mapping[str, str]
    added: Settings
    included: bool = False


def combinations(layer: Layer, named: Collection[str] = (), coverage: Coverage = "full") -> list[Combination]:
    """The axes' product, less what `exclude` names, with `include`'s settings and further combinations.

    An exclude entry removes every combination that has all of its values. An include entry is added to every
    combination of the product whose axis values it does not contradict: the axes are never overwritten, settings that
    an earlier entry added are. An entry that fits nowhere makes a combination of its own, to which no later entry is
    added. `named`: axes whose values the command line named; an entry about other values of them is left out. Where it
    named all five, it said which combinations there are: exclude removes none, and entries of include that name all five
    as well, each a combination of its own, are left out. `coverage`: which bounds their number.
    """
    check_axes(layer)
    complete = all_named(named)
    values = _values(layer, coverage)
    kept = _product(values, () if complete else layer.exclude or ())
    places: dict[tuple[str, ...], list[int]] = {}
    for place, one in enumerate(kept):
        places.setdefault(tuple(one.axes.values()), []).append(place)
    wanted = {axis: {value.value for value in layer.axes[axis]} for axis in named}
    further: list[Combination] = []
    for entry in layer.include or ():
        if any(name not in wanted.get(axis, {name}) for axis, name in entry.axes.items()):
            continue
        if complete and all_named(entry.axes):
            continue
        fitting = [place for names in _matching(entry, values) for place in places.get(names, ())]
        for place in fitting:
            kept[place] = replace(kept[place], added={**kept[place].added, **entry.settings})
        if not fitting:
            further.append(_of_its_own(entry))
    return kept + further


def _values(layer: Layer, coverage: Coverage) -> list[list[str]]:
    """The names of each axis' values."""
    values = [[value.value for value in layer.axes.get(axis, ())] for axis in AXIS_NAMES]
    check_number(math.prod(map(len, values)), "the axes' values", coverage)
    return values


def _product(values: Sequence[Sequence[str]], exclude: Collection[Entry]) -> list[Combination]:
    """Every combination of the axes' values that no entry of `exclude` removes."""
    removed = {names for entry in exclude for names in _matching(entry, values)}
    return [
        Combination(dict(zip(AXIS_NAMES, names, strict=True)), {}) for names in product(*values) if names not in removed
    ]


def _matching(entry: Entry, values: Sequence[Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """The combinations that have all of the entry's values, and of `values` for other axes."""
    return product(
        *((entry.axes[axis],) if axis in entry.axes else names for axis, names in zip(AXIS_NAMES, values, strict=True))
    )


def _of_its_own(entry: Entry) -> Combination:
    """The combination that an entry of include makes where it fits none."""
    missing = ", ".join(axis for axis in AXIS_NAMES if axis not in entry.axes)
    if missing:
        raise ConfigurationError(
            f"{entry.origin}: fits no combination of the matrix, and cannot make one of its own without {missing}",
            field="include",
        )
    return Combination({axis: entry.axes[axis] for axis in AXIS_NAMES}, entry.settings, included=True)


def check_number(cells: int, what: str, coverage: Coverage) -> None:
    """That a plan can be made of so many cells; `what` multiplies to them."""
    most = MOST_CELLS[coverage]
    if cells > most:
        others = MOST_CELLS["pairwise"]
        hint = f", and --coverage pairwise chooses from at most {others:,}" if most < cells <= others else ""
        raise ConfigurationError(f"{what} make {cells:,} cells; a plan has at most {most:,}{hint}")


def all_named(axes: Collection[str]) -> bool:
    """Whether `axes` are all five."""
    return set(axes) == set(AXIS_NAMES)


def removing(layer: Layer, only: Mapping[str, Collection[str]]) -> list[Entry]:
    """The exclude entries that remove combinations whose values are among those of `only`."""
    return [
        entry
        for entry in layer.exclude or ()
        if all(name in only.get(axis, [name]) for axis, name in entry.axes.items())
        and all(any(value.value == name for value in layer.axes.get(axis, ())) for axis, name in entry.axes.items())
    ]


def check_axes(layer: Layer) -> None:
    """Every axis has values, all of which exist; or there are no axes, and include names all. Raises
    ConfigurationError."""
    for axis, values in layer.axes.items():
        for value in values:
            check_value(axis, value.value, value.origin)
    for entry in layer.include or ():
        for axis, name in entry.axes.items():
            check_value(axis, name, entry.origin + ".")
    check_complete(layer)


def check_complete(layer: Layer) -> None:
    """The part of `check_axes` that needs no values: every axis has some, or include names all. Raises ConfigurationError."""
    missing = [axis for axis in AXIS_NAMES if not layer.axes.get(axis)]
    if missing and (layer.axes or not layer.include):
        raise ConfigurationError(f"{layer.origin}axes: no values for {', '.join(missing)}", field=f"axes.{missing[0]}")


def idle_excludes(matrix: Matrix, profile: str | None) -> tuple[str, ...]:
    """A sentence about each exclude entry in use with `profile` that removes nothing: neither here nor in any other
    profile that it holds for does a combination have all of its values."""
    layers = [matrix.top, *(matrix.layer(name) for name in matrix.profiles)]

    def fits(entry: Entry, layer: Layer) -> bool:
        return all(any(value.value == name for value in layer.axes.get(axis, ())) for axis, name in entry.axes.items())

    return tuple(
        f"{entry.origin}: matches no combination of the axes, and removes nothing"
        for entry in matrix.layer(profile).exclude or ()
        if not any(fits(entry, layer) for layer in layers if any(entry is one for one in layer.exclude or ()))
    )
