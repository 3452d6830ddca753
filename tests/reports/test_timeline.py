"""A cell over its phases: by role and kind where they are told; and where its blocks lay, where it was recorded."""

from __future__ import annotations

from itertools import groupby

from tests.reports import made
from vrambench.bench.results.records import BlockMap, BlockName, Phase, Result, RoleBytes, Share
from vrambench.reports.page.blocks import CELLS, LINES, blocks_chart, laid_out
from vrambench.reports.page.views.timeline import timeline
from vrambench.reports.report import Report
from vrambench.reports.rows import rows_of

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


BLOCKS = BlockMap(
    names=(
        BlockName(),
        BlockName(used=True, role="policy", kind="weights", called="load: policy/layers.*", where="model.py:3 build"),
        BlockName(used=True, called="learn: policy/layers.*.mlp"),
        BlockName(used=True, called="learn: "),
        BlockName(used=True, called="my own"),
    ),
    segments=(((1, 4 * GIB), (0, 10), (3, 2**20)), ((2, 3 * GIB), (0, GIB)), ((4, 2 * GIB),)),
)


def recorded(id: str = "a1") -> Result:
    return made.full(id).model_copy(update={"blocks": BLOCKS})


def test_a_recorded_cell_tells_by_role_kind_and_module_what_was_in_use() -> None:
    data = timeline(Report([made.run_of([made.full("a2"), recorded()])]))
    assert data
    assert data.live
    (first, _), _ = data.choices
    assert first == 1, "a cell that was recorded comes first"
    found = [(one.what, one.module, one.operator, one.phase, one.nbytes) for one in data.live[first]]
    assert found == [
        ("policy weights", "layers.*", "model.py:3 build", "load", 4 * GIB),
        ("policy in learn", "layers.*.mlp", "", "learn", 3 * GIB),
        ("my own", "", "", "", 2 * GIB),
        ("asked for in learn", "", "", "learn", 2**20),
    ]


def test_the_map_of_blocks_is_laid_out_whole() -> None:
    pieces = list(laid_out(BLOCKS, dict.fromkeys(("policy weights", "policy in learn", "unused"), "#fff")))
    assert [name for name, _ in groupby(piece.name for piece in pieces)] == [
        *("policy weights", "little blocks", "policy in learn", "unused", "others")
    ]
    assert sum(piece.end - piece.begin for piece in pieces) == 10 * GIB + 2**20 + 10
    assert {piece.line for piece in pieces} == set(range(LINES))
    lines = [[piece for piece in pieces if piece.line == line] for line in range(LINES)]
    for line in lines:
        assert [piece.begin for piece in line] == [0, *(piece.end for piece in line[:-1])], "no gap and no overlap"


def test_only_recorded_cells_have_a_map_and_a_page_only_so_many() -> None:
    assert blocks_chart(rows_of([made.run_of([made.full("a1")])])) is None
    rows = rows_of([made.run_of([recorded(f"a{place}") for place in range(CELLS + 3)])])
    chart = blocks_chart(rows)
    assert chart
    assert len(chart.rows) == len(chart.spec["datasets"]["pieces"]) == CELLS
