"""What `plan --json` prints, as records; docs/schema/plan.json is their JSON Schema."""

from __future__ import annotations

from typing import Any, Literal

from vrambench.bench.plan.config import ConfigTold
from vrambench.bench.plan.file import Coverage
from vrambench.bench.plan.rules.rule import Severity
from vrambench.bench.results.records import Memory, Record, Verdict


class FindingTold(Record):
    """A rule that holds for a cell."""

    rule: str
    kind: Severity
    reason: str


class PlannedTold(Record):
    """A cell. `predicted`: its peaks on CUDA in bytes, `fit` and `margin_bytes` under its own budget; None where it was not
    predicted, `not_predicted` then says why, if that was tried. `cell`: its axes and its workload, flat."""

    id: str
    name: str
    verdict: Literal["valid", "invalid"]
    findings: tuple[FindingTold, ...]
    predicted: Memory | None
    fit: Verdict | None
    margin_bytes: int | None
    not_predicted: str | None
    cell: dict[str, Any]


class Counts(Record):
    """Cells in all; by verdict; and the valid ones that carry a warning."""

    cells: int
    valid: int
    invalid: int
    warned: int


class PlanTold(Record):
    """All of it. `read_as`: other names that the command line used, and what each was taken for; `config` is there where a
    trainer's file was planned."""

    matrix: str
    profile: str | None
    device: Literal["cpu", "cuda", "meta"]
    coverage: Coverage
    repeat: int
    counts: Counts
    cells: tuple[PlannedTold, ...]
    read_as: tuple[str, ...]
    config: ConfigTold | None = None

    def document(self) -> dict[str, Any]:
        """As plain data, without a `config` that is not there."""
        return self.model_dump(mode="json", exclude=None if self.config else {"config"})
