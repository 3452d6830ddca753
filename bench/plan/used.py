"""Which of the things that were said of the workload have an effect.

check_used(fixed, swept, cells=cells)               an error about the first setting of the command line that no cell uses
idle_settings(matrix, "smoke", named, cells)        a sentence about each of the file's
idle_additions(added)                               a sentence about each of its include's
check_saved(cells, names)                           that what a cell starts from, another one saves
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from vrambench.bench.plan.matrix import Layer, Matrix, Setting, Settings
from vrambench.methods.algorithms import EVALUATION_FIELDS
from vrambench.methods.axes import AXES
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError, did_you_mean
from vrambench.methods.registry import AxisValue
from vrambench.methods.workload import FIELDS, SAVED


def check_used(fixed: Settings, *sweeps: Mapping[str, Sequence[Setting]], cells: Iterable[Cell]) -> None:
    """That every field which was set or swept is one that some cell has: settings without effect are mistakes."""
    cells = list(cells)
    said = {name: (setting,) for name, setting in fixed.items()}
    for name, settings in [pair for one in (said, *sweeps) for pair in one.items()]:
        null = all(setting.value is None for setting in settings)
        if not null and not any(has(cell, name) for cell in cells):
            raise ConfigurationError(_unused(name, settings[0]), field=name)


def check_saved(kept: Iterable[Cell], names: Collection[str | None] | None) -> None:
    """That no two cells of the plan save under one name, and that what they start from is among the `names` that cells save under.
    None: it may have been saved before, by cells that are left out."""
    kept = list(kept)
    for name, count in Counter(cell.workload.save_as for cell in kept).items():
        if name and count > 1:
            raise ConfigurationError(f"save_as: {count} cells would be saved as {name!r}", field="save_as")
    if names is None:
        return
    for work in (cell.workload for cell in kept):
        for name in work.starts_from:
            if name not in names:
                field = "weights" if work.weights == SAVED + name else "adapter_weights"
                hint = did_you_mean(name, filter(None, names))
                raise ConfigurationError(
                    f"{field}: no cell is saved as {name!r}{hint} (save_as: {name} saves it)", field=field
                )


def idle_settings(matrix: Matrix, profile: str | None, named: Layer, cells: Iterable[Cell]) -> tuple[str, ...]:
    """A sentence about each setting in use with `profile` that no cell has, and none of the matrix could have: no value of its
    axes, in any profile, uses it. Where a value uses it under a condition (`reward_model`), what the profile itself says counts.
    `named`: the command line's axes."""
    cells = list(cells)
    names = {pair for cell in cells for pair in cell.axes.items()}
    at_hand = [AXES[axis].get(name) for axis, name in names]
    everywhere = _values((matrix.top, *matrix.profiles.values(), named))
    own = matrix.profiles[profile] if profile else matrix.top
    found = []
    for name, setting in matrix.layer(profile).workload.items():
        if setting.value is None or any(has(cell, name) for cell in cells):
            continue
        conditional = name in own.workload and any(_uses(value, name) for value in at_hand)
        if conditional or not any(_uses(value, name) for value in everywhere):
            found.append(_unused(name, setting))
    return tuple(found)


def idle_additions(added: Iterable[tuple[Settings, Cell]]) -> tuple[str, ...]:
    """A sentence about each setting of `include` that none of its cells has; `added`: each cell, and what include added to it. An
    entry that YAML merges into others has the lines of its settings, and it is enough that one of them uses each."""
    used: dict[tuple[str, str], bool] = {}
    said: dict[tuple[str, str], Setting] = {}
    for settings, cell in added:
        for name, setting in settings.items():
            if setting.value is not None:
                line = (setting.origin.partition(": ")[0], name)
                used[line] = used.get(line, False) or has(cell, name)
                said.setdefault(line, setting)
    return tuple(_unused(line[1], said[line]) for line, has in used.items() if not has)


def _values(layers: Iterable[Layer]) -> list[AxisValue]:
    """The built-in values that `layers` name. A user's own have been imported where they are in use, and are at hand then."""
    pairs = [
        (axis, name)
        for layer in layers
        for axes in (
            *({axis: value.value} for axis, values in layer.axes.items() for value in values),
            *(entry.axes for entry in layer.include or ()),
        )
        for axis, name in axes.items()
    ]
    return [AXES[axis].get(name) for axis, name in dict.fromkeys(pairs) if name in AXES[axis]]


def _uses(value: AxisValue, name: str) -> bool:
    """Whether an axis value has the field or option called `name`."""
    namespace = name.partition(".")[0]
    options = value.options is not None and value.options.namespace == namespace and namespace not in FIELDS
    return name in value.fields or options


def _unused(name: str, setting: Setting) -> str:
    return f"{setting.origin}{name}: no cell here uses it{_users(name)}"


def _users(name: str) -> str:
    """` (adapter lora, adapter dora do)`: which built-in values have the field or option."""
    users = [
        f"{axis} {value_name}"
        for axis, registry in AXES.items()
        for value_name, value in registry.values().items()
        if _uses(value, name)
    ]
    if name == "reward_model":
        return " (it is used where reward is 'model')"
    if name in EVALUATION_FIELDS[1:]:
        return f" (it is used where {EVALUATION_FIELDS[0]} is set)"
    return f" ({', '.join(users)} {'does' if len(users) == 1 else 'do'})" if users else ""


def has(cell: Cell, name: str) -> bool:
    """Whether the cell has the field or option called `name`."""
    namespace, _, option = name.partition(".")
    if option:
        return cell.workload.options.get(namespace, {}).get(option) is not None
    return getattr(cell.workload, name, None) is not None


def fields_of(cell: Cell) -> dict[str, Any]:
    """A cell's fields and options by dotted name."""
    fields = cell.workload.model_dump(mode="json", exclude={"options"})
    options = {
        f"{space}.{name}": value for space, held in cell.workload.options.items() for name, value in held.items()
    }
    return fields | options
