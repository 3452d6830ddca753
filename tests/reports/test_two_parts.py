"""A report of two runs that share no cell: what was trained on a CPU, beside what was predicted for a card; and what several
runs share."""

from __future__ import annotations

from tests.reports import made
from vrambench.bench.results.records import Memory, Throughput
from vrambench.reports.columns import columns as columns_of
from vrambench.reports.page.views.environment import environment
from vrambench.reports.page.views.heatmap import heatmap
from vrambench.reports.page.views.pairs import pairs
from vrambench.reports.page.views.verdict import verdict
from vrambench.reports.report import Report
from vrambench.reports.rows import Run

GIB = made.GIB


def two_parts() -> list[Run]:
    """Tiny cells that were trained on a CPU, and a large model's that were predicted for a card."""
    tiny = [
        made.result(
            f"a{place}",
            cell=made.cell(model="tiny", budget=None, optimizer=optimizer),
            memory=Memory(allocated_bytes=2**20 * (place + 1)),
            throughput=Throughput(step_seconds=(1.0,), train_tokens_per_second=100.0 * (place + 1)),
        )
        for place, optimizer in enumerate(("adamw_torch", "adafactor"))
    ]
    large = [
        made.result(
            f"b{place}",
            source="predicted",
            cell=made.cell(optimizer=optimizer, adapter=adapter),
            memory=Memory(allocated_bytes=9 * GIB, device_bytes=(10 + place) * GIB),
        )
        for place, (optimizer, adapter) in enumerate((("adamw_torch", "lora"), ("adafactor", "none")))
    ]
    return [made.run_of(tiny, "trained"), made.run_of(large, "predicted")]


def test_what_fits_is_told_first_and_of_other_cells_the_smallest_that_is_ok() -> None:
    known, unknown = verdict(Report(two_parts())).lines
    assert (known.about, known.fits, known.fastest) == ("llama-2-7b", 2, None)
    assert known.smallest
    assert known.smallest.words == "10 GiB"
    assert (unknown.about, unknown.fits) == ("tiny", None)
    assert unknown.smallest
    assert unknown.fastest
    assert (unknown.smallest.words, unknown.fastest.words) == ("100 tokens/s, 1 MiB", "200 tokens/s, 2 MiB")


def test_a_map_is_of_one_part_where_runs_share_no_cell() -> None:
    data = heatmap(Report(two_parts()))
    assert data
    assert (data.run, data.runs, data.measure) == ("predicted", ("trained", "predicted"), "device")
    assert [[square.text for square in squares] for _, squares in data.lines] == [["10 GiB", ""], ["", "11 GiB"]]
    same = made.matrix(40)
    both = heatmap(Report([Run("first", same.info, same.results), Run("second", same.info, same.results)]))
    assert both
    assert both.run == "", "runs of the same cells are one map"


def test_a_map_of_cells_that_share_no_line_of_the_ledger_says_how_they_ended() -> None:
    results = [
        made.result("a1", memory=Memory(allocated_bytes=GIB), cell=made.cell(optimizer="adafactor", precision="fp32")),
        made.result("b1", memory=Memory(device_bytes=2 * GIB)),
    ]
    data = heatmap(Report([made.run_of(results)]))
    assert data
    assert {square.text for _, squares in data.lines for square in squares} == {"ok", ""}


def test_what_all_runs_share_of_their_environment_is_said_once() -> None:
    data = environment(Report(two_parts()))
    assert ("profile", "24gb") in data.shared
    assert [run.facts for run in data.runs] == [(), ()]
    assert environment(Report(two_parts()[:1])).shared == ()


def test_columns_leave_a_laptop_room_for_them() -> None:
    wide = [
        made.full(f"a{place}", learning_rate=place, batch_size=place, seed=place, lora_r=place, model="m" * 60)
        for place in range(3)
    ]
    failed = made.result("b1", cell=made.cell(model="other"), status="error", reason="a long reason " * 20)
    shown = [column for column in columns_of(Report([made.run_of([*wide, failed])])) if not column.secondary]
    assert {"device", "reason", "tokens"} <= {column.key for column in shown}
    assert "seed" not in {column.key for column in shown}
    few = columns_of(Report([made.run_of([made.full("a1"), made.full("a2", seed=1)])]))
    assert "seed" in {column.key for column in few if not column.secondary}


def test_runs_that_share_no_cell_are_not_laid_side_by_side() -> None:
    assert pairs(Report(two_parts())) is None
