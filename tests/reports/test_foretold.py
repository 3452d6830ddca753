"""A measured cell beside its prediction, in parts: what roles hold, and, where it was recorded, what was in use at the peak."""

from __future__ import annotations

import pytest

from tests.reports import made
from vrambench.bench.results.records import Held, Memory, Phase, PredictedParts, Result, RoleBytes
from vrambench.reports import units
from vrambench.reports.filled import compared, foretold, parts
from vrambench.reports.page.details import tables
from vrambench.reports.page.views.ledger import ledger
from vrambench.reports.page.views.timeline import timeline
from vrambench.reports.report import Report

GIB = made.GIB


def held(role: str, kind: str, gib: float, operator: str = "") -> Held:
    return Held(role=role, kind=kind, phase="learn", module="mlp", operator=operator, nbytes=int(gib * GIB))


def measured(*, recorded: bool) -> Result:
    """12 GiB of weights and 4 GiB of activations, which were predicted as 12 and 3."""
    peaks = {"allocated_bytes": 16 * GIB, "reserved_bytes": 17 * GIB, "device_bytes": 18 * GIB}
    of = (held("policy", "weights", 12), held("policy", "activations", 4, "me/train.py:7 step"))
    told = (held("policy", "weights", 12), held("policy", "activations", 3, "aten.mm.default"))
    roles = {"policy": RoleBytes(weights_bytes=12 * GIB, gradients_bytes=0, optimizer_bytes=GIB)}
    return made.result(
        "a",
        memory=Memory(**peaks),
        phases=(Phase(name="learn", step=7, seconds=1.0, **peaks),),
        roles=roles,
        held=of if recorded else (),
        predicted=Memory(**{name: nbytes - GIB for name, nbytes in peaks.items()}),
        predicted_parts=PredictedParts(
            phases=(Phase(name="learn", step=1, seconds=None, allocated_bytes=15 * GIB),), roles=roles, held=told
        ),
    )


def report(*, recorded: bool) -> Report:
    return Report([made.run_of([measured(recorded=recorded)], "run")])


def test_a_recorded_cell_is_compared_kind_by_kind() -> None:
    told = report(recorded=True)
    (row,) = told.rows
    assert compared(row) == [("policy weights", 12 * GIB, 12 * GIB), ("activations", 4 * GIB, 3 * GIB)]
    table = next(table for table in tables(row) if table.title == "In use at the peak")
    assert table.lines[1] == ("activations", "4 GiB", "3 GiB", "−1 GiB", units.percent(-0.25))
    assert dict(foretold(row)) == {
        "policy weights": 12 * GIB,
        "activations": 3 * GIB,
        "held by the allocator": GIB,
        "outside PyTorch": GIB,
    }
    assert dict(parts(row))["activations"] == 4 * GIB
    data = ledger(told)
    assert data
    (thin,) = data.charts[0].spec["datasets"]["foretold"]
    assert sum(thin["held"]) == pytest.approx(17)


def test_of_one_that_was_not_recorded_what_roles_hold_is_compared() -> None:
    (row,) = report(recorded=False).rows
    assert compared(row)[0] == ("policy weights", 12 * GIB, 12 * GIB)
    assert ("policy optimizer", GIB, GIB) in compared(row)
    title = next(table.title for table in tables(row) if table.head[0] == "whose")
    assert title.startswith("Roles (")
    assert "--record" in title


def test_each_phase_has_its_predicted_peak() -> None:
    """Of a step that was not simulated, the last one's that was."""
    told = report(recorded=True)
    table = next(table for table in tables(told.rows[0]) if table.title == "Phases")
    assert table.lines[0][-3:] == ("15 GiB", "−1 GiB", units.percent(-0.0625))
    data = timeline(told)
    assert data
    (phases,) = data.charts[0].spec["datasets"]["phases"]
    assert phases["predicted"] == [15]


def test_without_a_prediction_nothing_stands_beside() -> None:
    (row,) = Report([made.run_of([made.result("a")], "run")]).rows
    assert compared(row) == foretold(row) == []
