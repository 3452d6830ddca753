"""Several runs side by side, and a run beside a baseline."""

from __future__ import annotations

from pathlib import Path

from tests.reports import made
from vrambench.bench.gate.baseline import baseline_of
from vrambench.bench.gate.check import check
from vrambench.bench.results.records import Result
from vrambench.bench.results.store import RunFolder
from vrambench.reports.page.html import render
from vrambench.reports.page.views.changes import changes
from vrambench.reports.page.views.pairs import pairs
from vrambench.reports.pairs import pairs as paired
from vrambench.reports.read import read_run
from vrambench.reports.report import Report

GIB = made.GIB


def faster(result: Result, by: float) -> Result:
    steps = tuple(step / by for step in result.throughput.step_seconds)
    rate = (result.throughput.train_tokens_per_second or 0) * by
    throughput = result.throughput.model_copy(update={"step_seconds": steps, "train_tokens_per_second": rate})
    sample = result.samples[0].model_copy(update={"throughput": throughput})
    return result.model_copy(update={"throughput": throughput, "samples": (sample,)})


def test_cells_are_paired_by_id_and_what_differs_comes_first() -> None:
    before = [made.full("a1"), made.full("a2", precision="nf4"), made.full("a3", precision="int8")]
    now = [
        made.full("a1"),
        faster(made.full("a2", precision="nf4"), 2),
        made.full("a3", device=14 * GIB, precision="int8"),
    ]
    found = paired(Report([made.run_of(before, "old"), made.run_of(now, "new")]))
    assert found
    assert [(pair.label, pair.changed) for pair in found.pairs] == [("nf4", True), ("int8", True), ("bf16", False)]
    data = pairs(Report([made.run_of(before, "old"), made.run_of(now, "new")]))
    assert data
    assert (data.changed, data.total, data.alone) == (2, 3, ())
    _, second = data.lines[1].sides
    assert (second.peak, second.peak_by, second.peak_way) == ("14 GiB", "+2 GiB (+16.7 %)", "worse")
    assert data.lines[0].sides[1].rate_by == "+100.0 %"


def test_a_budget_of_another_card_does_not_part_cells() -> None:
    small, large = made.full("a1", budget=24 * GIB), made.full("b1", budget=80 * GIB, attention="math")
    found = paired(Report([made.run_of([small], "small"), made.run_of([large], "large")]))
    assert found
    assert len(found.pairs) == 1
    other = made.run_of([made.full("c1", batch_size=2)], "other")
    apart = paired(Report([made.run_of([small], "small"), other]))
    assert apart
    assert (apart.pairs, apart.alone) == ((), (1, 1))


def test_a_cell_that_fits_no_more_is_the_first() -> None:
    gone = made.result("a1", cell=made.cell(), status="oom")
    before = [made.full("a1"), made.full("a2", seed=1)]
    found = paired(Report([made.run_of(before, "old"), made.run_of([gone, faster(before[1], 5)], "new")]))
    assert found
    assert [row.status for row in found.pairs[0].rows if row] == ["ok", "oom"]


def test_what_steps_do_not_tell_apart_is_no_change() -> None:
    found = paired(Report([made.run_of([made.full("a1")], "old"), made.run_of([faster(made.full("a1"), 1.06)], "new")]))
    assert found
    assert not found.pairs[0].changed, "its steps took 1.2 to 1.3 s, and 6 % less is within that"


def test_one_run_has_no_pairs_and_no_changes() -> None:
    report = Report([made.run_of([made.full("a1")])])
    assert pairs(report) is None
    assert changes(report) is None


def folder_of(path: Path, results: list[Result]) -> RunFolder:
    run = made.run_of(results)
    folder = RunFolder(path)
    folder.acquire()
    folder.write_info({key: value for key, value in run.info.items() if key != "schema"})
    for one in results:
        folder.write_result(one)
    folder.release()
    return folder


def test_a_baseline_shows_what_changed(tmp_path: Path) -> None:
    before = folder_of(tmp_path / "before", [made.full("a1"), made.full("a2", seed=1)])
    after = folder_of(tmp_path / "after", [made.full("a1", device=14 * GIB), made.full("a2", seed=1)])
    found = check(baseline_of(before), after)
    data = changes(Report([read_run(after.path, "after")], found))
    assert data
    assert [(one.outcome, one.index) for one in data.changes] == [("regressed", 0), ("same", 1)]
    assert any(line.startswith("device 2 GiB more") for line in data.changes[0].told)
    page = render([read_run(after.path, "after")], found, draw=lambda charts: [""] * len(charts))
    assert page.index('id="changes"') < page.index('id="cells"')
    assert 'class="regressed"' in page
