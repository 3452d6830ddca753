"""Which cells cannot run, silently train something else, or run but mislead.

    check(cell, "cpu")   ->   (Finding("quantized-full", "reject", "a plain loop ..."),)

Rules look at what axis values declare about themselves (`quantize`, `trains_base`, `layerwise`, `zero_stage`, ...; see
`traits.py`), never at names, so that a user's own value obeys them too. A cell with a `reject` is never started: its result
is `invalid`, with the rule's id and reason. A `warn` is shown beside the cell, which runs. The table has the rejections
first.
"""

from __future__ import annotations

from vrambench.bench.plan.rules import adapters, attention, offload, optimizers, precision, trainers, work
from vrambench.bench.plan.rules.rule import Finding, Rule, Target
from vrambench.methods.called import has_bf16
from vrambench.methods.cell import Cell
from vrambench.methods.device import Kind

_ALL = (
    *precision.RULES,
    *adapters.RULES,
    *optimizers.RULES,
    *offload.RULES,
    *attention.RULES,
    *work.RULES,
    *trainers.RULES,
)
RULES: tuple[Rule, ...] = tuple(sorted(_ALL, key=lambda rule: rule.kind != "reject"))


def check(cell: Cell, device_kind: Kind, *, bf16: bool | None = None) -> tuple[Finding, ...]:
    """Every rule that holds for `cell` on a device of that kind, rejections first, else in the table's order.

    `bf16`: whether the device has bf16 arithmetic. None, where it is not here: a CPU has, and of GPUs the card whose memory the
    cell's budget is says it.
    """
    target = Target(device_kind, (device_kind == "cpu" or has_bf16(cell.workload.budget)) if bf16 is None else bf16)
    found = [rule.finding(cell, target) for rule in RULES if rule.when(cell, target)]
    if target.kind == "cpu":
        found += cuda_only(cell)
    return tuple(sorted(found, key=lambda finding: finding.kind != "reject"))


def cuda_only(cell: Cell) -> list[Finding]:
    """One finding for each axis value that declares itself unable to run on the CPU."""
    return [
        Finding("cuda-only", "reject", f"{cell.axes[axis]} runs on CUDA alone: {value.cuda_only}")
        for axis, value in cell.values.items()
        if value.cuda_only
    ]
