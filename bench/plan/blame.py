"""Which settings of a trainer's file bring a cell under the rule that forbids it.

    for line in to_blame(planned, matrix, selection): ...      "sft.yaml:3: load_in_8bit: precision is int8, ..."

Rules do not say what they look at. So each setting is tried otherwise, alone: those count without which the rule would not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vrambench.bench.plan.matrix import Matrix, Setting, Settings
from vrambench.bench.plan.plan import PlannedCell, by_preset, resolved
from vrambench.bench.plan.selection import Selection
from vrambench.bench.plan.validity import check
from vrambench.methods.axes import AXES
from vrambench.methods.errors import ConfigurationError, shown


def to_blame(planned: PlannedCell, matrix: Matrix, selection: Selection) -> Iterator[str]:
    """A sentence, with file, line and key, for each setting of `matrix` without which the first rule that forbids the cell on CUDA
    would not. What the command line says is left out: whoever typed it knows."""
    rule = planned.rejection
    assert rule is not None
    axes, layer = planned.cell.axes, by_preset(matrix.layer(None))
    settings = {**layer.workload, **selection.settings()}

    def allowed(axes: Mapping[str, str], settings: Settings) -> bool:
        try:
            cell = resolved(axes, settings)
        except ConfigurationError:
            return False
        return all(found.rule != rule.rule for found in check(cell, "cuda"))

    for axis, (setting, *_) in layer.axes.items():
        if axis == "algorithm" and ": without " in setting.origin:  # the trainer has no other
            continue
        if any(allowed({**axes, axis: other}, settings) for other in AXES[axis] if other != setting.value):
            yield _told(axis, setting, rule.rule)
    for name, setting in layer.workload.items():
        rest = {other: value for other, value in settings.items() if other != name}
        if settings[name] is setting and allowed(axes, rest):
            yield _told(name, setting, rule.rule)


def _told(name: str, setting: Setting, rule: str) -> str:
    value = setting.value if isinstance(setting.value, str) else shown(setting.value)
    return f"{setting.origin}{name} is {value}, without which {rule} would not hold"
