"""What a rule is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vrambench.methods.cell import Cell
    from vrambench.methods.device import Kind

Severity = Literal["reject", "warn"]


@dataclass(frozen=True)
class Target:
    """What a cell is checked for. `bf16`: the device has bf16 arithmetic and flash attention, as GPUs of compute capability 8.0
    have, and CPUs."""

    kind: Kind
    bf16: bool = True

    @property
    def capability(self) -> tuple[int, int] | None:
        """A compute capability that has no more than this device; None for one that has everything."""
        return None if self.bf16 else (7, 5)


@dataclass(frozen=True)
class Rule:
    """`reason`: one sentence for people. `when`: whether the rule holds for a cell on a target. `numbers`: the cell's own, which
    the reason is about, and the nearest that would do."""

    id: str
    kind: Severity
    reason: str
    when: Callable[[Cell, Target], bool]
    numbers: Callable[[Cell, Target], str] | None = None

    def finding(self, cell: Cell, target: Target) -> Finding:
        """What is told of `cell` on `target`, for which the rule holds."""
        numbers = f": {self.numbers(cell, target)}" if self.numbers else ""
        return Finding(self.id, self.kind, self.reason + numbers)


@dataclass(frozen=True)
class Finding:
    """A rule that holds for a cell."""

    rule: str
    kind: Severity
    reason: str
