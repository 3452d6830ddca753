"""A cell over its phases: by role and kind where they are told."""

from __future__ import annotations

from tests.reports import made
from vrambench.bench.results.records import Phase, RoleBytes, Share
from vrambench.reports.page.views.timeline import timeline
from vrambench.reports.report import Report

GIB = made.GIB


def test_bars_are_by_role_and_kind_where_phases_tell_it_else_whole() -> None:
    shares = (
        Share(role="policy", kind="activations", nbytes=3 * GIB),
        Share(role="policy", kind="weights", nbytes=2 * GIB),
        Share(role="value", kind="weights", nbytes=GIB),
        Share(role="value", kind="activations", nbytes=GIB),
    )
    role = RoleBytes(weights_bytes=2 * GIB, gradients_bytes=0, optimizer_bytes=0)
    told = made.result(
        "a1",
        source="predicted",
        roles={"policy": role, "value": role},
        phases=(
            Phase(name="load", step=None, seconds=None, allocated_bytes=2 * GIB),
            Phase(name="learn", step=0, seconds=None, allocated_bytes=8 * GIB, at_peak=shares),
        ),
    )
    data = timeline(Report([made.run_of([told])]))
    assert data
    (chart,) = data.charts
    names = list(chart.legends["legend_timeline"].names)
    (bars,) = chart.spec["datasets"]["parts"]
    found = [
        (bars["names"][at], names[place], held)
        for at, place, held in zip(bars["at"], bars["place"], bars["held"], strict=True)
    ]
    assert found == [
        ("load", "allocated", 2.0),
        ("0 learn", "policy weights", 2.0),
        ("0 learn", "value weights", 1.0),
        ("0 learn", "activations", 4.0),
        ("0 learn", "little parts", 1.0),
    ]
