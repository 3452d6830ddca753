"""What each view says, without rendering it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from altair import load_schema

from tests.reports import made
from vrambench.bench.claims.cells import cells_of
from vrambench.bench.claims.file import load_claims
from vrambench.bench.results.records import BlockMap, BlockName, Learning, Memory, Result, RoleBytes, Throughput
from vrambench.reports.filled import parts
from vrambench.reports.page import charts, views
from vrambench.reports.page.html import TEMPLATES, render
from vrambench.reports.page.view import ChartsData
from vrambench.reports.page.views import ORDER, VIEWS
from vrambench.reports.page.views.cells import cells
from vrambench.reports.page.views.claims import claims
from vrambench.reports.page.views.environment import environment
from vrambench.reports.page.views.equal_work import GROUPS, equal_work
from vrambench.reports.page.views.learning import CURVE_POINTS, group_names, learning
from vrambench.reports.page.views.ledger import LEDGER_CELLS, ledger
from vrambench.reports.page.views.tradeoff import tradeoff
from vrambench.reports.page.views.verdict import verdict
from vrambench.reports.report import Report
from vrambench.reports.rows import STATUSES, Run, rows_of
from vrambench.reports.sizes import SIZES

GIB = made.GIB
ONLY_WHERE_THERE_IS = ("claims", "equal_work", "changes", "pairs", "heatmap")


@pytest.fixture
def every() -> Report:
    """A run in which every status occurs."""
    more = [
        {"id": "bbbbbbbbbbb1", "name": "later", **made.cell(seed=1)},
        {"id": "bbbbbbbbbbb2", "name": "torn", **made.cell(seed=2)},
    ]
    return Report([made.run_of(made.one_of_each_status(), more_cells=more, corrupted=("cells/bbbbbbbbbbb2.json",))])


def test_every_chart_is_what_the_schema_of_vega_lite_allows(every: Report) -> None:
    """Altair, told to check nothing while a page is made, would not say. The look of all charts is left out: it says what Vega
    takes and the schema has not."""
    blocks = BlockMap(names=(BlockName(),), segments=(((0, 15 * GIB), (0, 5 * GIB)),))
    recorded = made.full("a1").model_copy(update={"blocks": blocks})
    schema = jsonschema.Draft7Validator(load_schema())
    seen = set()
    for report in (every, Report([made.run_of([recorded])]), Report([made.matrix(40)])):
        for view in VIEWS:
            data = view.data(report)
            for chart in data.charts if isinstance(data, ChartsData) else ():
                schema.validate({name: part for name, part in chart.spec.items() if name != "config"})
                seen.add(chart.id)
    assert seen == {"cards", "tradeoff", "ledger", "phases", "timeline", "blocks", "loss", "reward"}


def test_every_status_is_counted(every: Report) -> None:
    assert list(every.counts) == list(STATUSES)
    assert sum(every.counts.values()) == len(every.rows) == 10


def test_the_verdict_counts_and_names(every: Report) -> None:
    data = verdict(every)
    assert data.sentences[0].startswith("10 cells: 2 ok, 1 out of memory, ")
    assert data.sentences[1] == ("2 of the 4 whose device memory is known fit the budget of 24 GiB (2 measured).")
    line = data.lines[0]
    assert (line.algorithm, line.cells, line.ok, line.fits) == ("sft", 8, 2, 2)
    assert line.fastest
    assert line.smallest
    assert line.fastest.index == 1
    assert line.smallest.index == 0
    assert line.smallest.words == "1,000 tokens/s, 12 GiB"


def at_work(id: str, algorithm: str, *, peak: int, step: float, tokens: int = 512, **changes: Any) -> Result:
    """A result whose steps of `step` seconds train on `tokens`, of the role that the algorithm trains."""
    roles = {
        "reward" if algorithm == "reward" else "policy": RoleBytes(
            weights_bytes=GIB, gradients_bytes=0, optimizer_bytes=0
        )
    }
    throughput = Throughput(step_seconds=(step,) * 3, train_tokens_per_second=tokens / step)
    memory = Memory(device_bytes=peak)
    cell = made.cell(algorithm=algorithm, **changes)
    return made.result(id, cell=cell, throughput=throughput, memory=memory, roles=roles)


def test_algorithms_are_compared_where_they_do_the_same_work() -> None:
    ours = [
        at_work("aaaaaaaaaaa1", "ppo", peak=10 * GIB, step=2.0, ppo={"epochs": 1, "lam": 0.9}, steps=3),
        at_work("aaaaaaaaaaa2", "ppo", peak=16 * GIB, step=3.0, ppo={"epochs": 1, "lam": 0.9}, value="separate"),
        at_work("aaaaaaaaaaa3", "remax", peak=8 * GIB, step=1.0, value=None, learning_rate=1.0, remax={"gamma": 1}),
        at_work("aaaaaaaaaaa4", "remax", peak=8 * GIB, step=1.5, value=None, seed=1, remax={"gamma": 1}),
        at_work(
            "aaaaaaaaaaa5", "grpo", peak=4 * GIB, step=0.5, value=None, rollout_batch=2, group_size=4, reference="none"
        ),
        at_work("aaaaaaaaaaa6", "trl_grpo", peak=5 * GIB, step=1.0, value=None, rollout_batch=2, group_size=4),
    ]
    others = [
        at_work("bbbbbbbbbbb1", "ppo", peak=GIB, step=1.0, ppo={"epochs": 2, "lam": 0.9}),
        at_work("bbbbbbbbbbb2", "remax", peak=GIB, step=1.0, tokens=1024, value=None),
        at_work("bbbbbbbbbbb3", "grpo", peak=GIB, step=1.0, value=None, empty_cache_between_phases=True),
        at_work("bbbbbbbbbbb4", "rloo", peak=GIB, step=1.0, value=None, optimizer="adafactor"),
        made.result("bbbbbbbbbbb5", cell=made.cell(algorithm="rloo"), status="oom"),
    ]
    data = equal_work(Report([made.run_of([*ours, *others])]))
    assert data is not None
    (group,) = data.groups
    assert group.about == "llama-2-7b, bf16, lora, adamw_torch, none, 512 tokens trained on in a step"
    assert group.bases == ("ppo, value head", "remax", "grpo")
    assert [(line.label, line.cells, line.time, line.times, line.peaks) for line in group.lines] == [
        ("ppo, value head", 1, "2 s", (None, "1.60", "4.00"), (None, "1.25", "2.50")),
        ("ppo, value separate", 1, "3 s", ("1.50", "2.40", "6.00"), ("1.60", "2.00", "4.00")),
        ("remax", 2, "1.25 s", ("0.62", None, "2.50"), ("0.80", None, "2.00")),
        ("grpo", 1, "500 ms", ("0.25", "0.40", None), ("0.40", "0.50", None)),
        ("trl_grpo", 1, "1 s", ("0.50", "0.80", "2.00"), ("0.50", "0.62", "1.25")),
    ]


def test_of_many_groups_the_largest_are_shown() -> None:
    pairs = [
        at_work(f"{index:011x}{place}", algorithm, peak=GIB, step=1.0, value=None, batch_size=index)
        for index in range(1, GROUPS + 3)
        for place, algorithm in enumerate(("sft", "trl_sft", "reward"))
    ]
    more = at_work("c" * 12, "trl_dpo", peak=GIB, step=1.0, value=None, batch_size=GROUPS + 2)
    data = equal_work(Report([made.run_of([*pairs, more])]))
    assert data is not None
    assert (len(data.groups), data.more) == (GROUPS, 2)
    assert [line.label for line in data.groups[0].lines] == ["sft", "trl_sft", "trl_dpo"], (
        "a reward model trains something else"
    )


def test_nothing_is_compared_with_itself() -> None:
    alone = [
        at_work("aaaaaaaaaaa1", "sft", peak=GIB, step=1.0),
        at_work("aaaaaaaaaaa2", "sft", peak=GIB, step=1.0, seed=1),
    ]
    assert equal_work(Report([made.run_of(alone)])) is None


def test_without_device_memory_the_verdict_says_so() -> None:
    data = verdict(Report([made.run_of([made.result(memory=Memory(allocated_bytes=2**20))])]))
    assert not data.judged
    assert "does not say which cells fit the budget of 24 GiB" in data.sentences[1]
    assert data.lines[0].fits is None
    assert data.lines[0].fastest is None
    assert data.lines[0].smallest


def test_the_fastest_that_fits_is_not_the_fastest() -> None:
    results = [made.full("a1", device=10 * GIB, rate=100), made.full("a2", device=30 * GIB, rate=900)]
    line = verdict(Report([made.run_of(results)])).lines[0]
    assert line.fastest
    assert line.fastest.index == 0


def test_what_trains_no_tokens_is_not_the_fastest() -> None:
    """A merge of an adapter has a peak and no rate."""
    line = verdict(Report([made.run_of([made.full("a1", device=10 * GIB, rate=0)])])).lines[0]
    assert line.fastest is None
    assert line.smallest
    assert line.smallest.words == "10 GiB"


def test_the_table_has_a_line_for_every_cell(every: Report) -> None:
    data = cells(every)
    assert data
    assert [line.row.status for line in data.lines] == [row.status for row in every.rows]
    assert data.statuses == every.counts
    assert all(len(line.texts) == len(data.columns) for line in data.lines)
    kinds = list(dict.fromkeys(column.kind for column in data.columns))
    assert kinds == ["text", "fit", "sign", "number", "reason"], (
        "swept fields follow the numbers, and the reason is last"
    )


def test_what_is_not_known_is_a_dash_that_sorts_nowhere(every: Report) -> None:
    data = cells(every)
    assert data
    failed = [line for line in data.lines if line.row.status not in ("ok", "oom")]
    told = ("headroom", *(f"gb{size}" for size in SIZES))  # what is left out has its prediction
    for line in failed:
        for column, text in zip(data.columns, line.texts, strict=True):
            if column.kind in ("number", "sign") and not (line.row.status == "pruned" and column.key in told):
                assert (text, column.sort(line.row)) == ("–", None)
                assert column.missing


def test_a_cell_that_failed_says_why(every: Report) -> None:
    data = cells(every)
    assert data
    why = {line.row.status: line.why for line in data.lines}
    assert why["ok"] is None
    assert why["oom"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.; in phase learn"
    assert why["invalid"] == "int8-full: 8-bit weights cannot train"
    assert why["crashed"] == "ended by SIGSEGV; in phase load"
    assert why["timeout"] == "not done after 600 s; in phase rollout"
    assert why["not run"] == "the run ended before it"
    assert why["unreadable"] == "its result file cannot be read"


def test_details_lay_the_prediction_beside_the_measurement() -> None:
    data = cells(Report([made.run_of([made.full("a1")])]))
    assert data
    tables = {table.title: table for table in data.lines[0].tables}
    assert list(tables) == ["Memory", "Roles", "Phases"]
    assert tables["Memory"].head == ("peak of", "measured", "predicted", "error", "of it")
    assert ("device", "12 GiB", "12.1 GiB", "+128 MiB", "+1.0 %") in tables["Memory"].lines
    assert ("active", "10 GiB", "–", "–", "–") in tables["Memory"].lines
    assert ("reference (shares policy)", "0 B", "0 B", "0 B") in tables["Roles"].lines
    assert ("learn", "4", "1.33 s", "8 GiB", "11 GiB") in tables["Phases"].lines


def test_several_samples_are_all_shown() -> None:
    one = made.full("a1")
    sample = one.samples[0]
    twice = one.model_copy(update={"samples": (sample, sample.model_copy(update={"status": "timeout"}))})
    data = cells(Report([made.run_of([twice])]))
    assert data
    assert [line[1] for line in data.lines[0].tables[-1].lines] == ["ok", "timeout"]


def test_swept_fields_and_runs_become_columns() -> None:
    results = [made.full("a1", seed=0), made.full("a2", seed=1)]
    one = cells(Report([made.run_of(results)]))
    two = cells(Report([made.run_of(results, "first"), made.run_of(results, "second")]))
    assert one
    assert two
    assert "seed" in [column.key for column in one.columns]
    assert "run" not in [column.key for column in one.columns]
    assert [line.texts[0] for line in two.lines] == ["first", "first", "second", "second"]
    assert len({line.label for line in two.lines}) == 4


def test_a_command_is_as_short_as_the_run_allows() -> None:
    data = cells(Report([made.run_of([made.full("a1", name="bare"), made.full("a2", seed=1)])]))
    assert data
    first, second = (line.command for line in data.lines)
    assert "--set batch_size=1 " in first, "a name that no matrix gave says nothing"
    assert second == (
        "vrambench run --precision bf16 --adapter lora --optimizer adamw_torch --offload none --algorithm sft --profile 24gb"
    )


def test_the_scatter_holds_what_has_both_numbers(every: Report) -> None:
    data = tradeoff(every)
    assert data
    assert data.charts[0].rows == (0, 1)
    assert data.remarks == ("8 cells without a peak or a throughput: only in the table.",)
    points = data.charts[0].spec["datasets"]["points"]
    assert [(point["memory"], point["rate"]) for point in points] == [(12.0, 1000.0), (23.5, 3000.0)]
    assert data.text.startswith("2 cells of 2 lie")


def test_every_file_of_a_view_is_listed_once_and_has_its_template() -> None:
    assert sorted(ORDER) == sorted(path.stem for path in Path(views.__file__).parent.glob("[!_]*.py"))
    assert [view.id for view in VIEWS] == list(ORDER)
    assert all((TEMPLATES / view.template).is_file() for view in VIEWS)


def test_nothing_to_draw_is_no_view() -> None:
    report = Report([made.run_of([made.result(status="error")])])
    drawings = {"tradeoff", "ledger", "learning"}
    assert not drawings & {view.id for view in VIEWS if view.data(report) is not None}
    assert not (drawings | {"cells"}) & {view.id for view in VIEWS if view.data(Report([])) is not None}


def test_the_front_that_is_drawn_is_the_front() -> None:
    """The chart computes its front by itself; its rings are as many as `pareto` finds."""
    rates = [100, 300, 200, 300, 500, 50, 500]
    results = [made.full(f"a{place}", device=(10 + place) * GIB, rate=rate) for place, rate in enumerate(rates)]
    data = tradeoff(Report([made.run_of(results)]))
    assert data
    assert data.text.startswith("3 cells of 7 lie")
    drawn = charts.svgs(data.charts)[0]
    ring = f'stroke="{charts.NEUTRAL}"'
    assert drawn.count(ring) == 3


def test_the_ledgers_parts_add_up() -> None:
    (row,) = rows_of([made.run_of([made.full("a1")])])
    found = dict(parts(row))
    assert sum(found.values()) == 12 * GIB
    assert found["held by the allocator"] == GIB
    assert found["outside PyTorch"] == GIB
    assert "reference weights" not in found


def test_roles_beyond_the_peak_are_said_not_hidden() -> None:
    host = {"policy": RoleBytes(weights_bytes=GIB, gradients_bytes=GIB, optimizer_bytes=4 * GIB)}
    report = Report(
        [made.run_of([made.result(roles=host, memory=Memory(allocated_bytes=3 * GIB, reserved_bytes=4 * GIB))])]
    )
    assert [name for name, _ in parts(report.rows[0])] == [
        "policy weights",
        "policy gradients",
        "policy optimizer",
    ]
    data = ledger(report)
    assert data
    assert data.remarks[0].startswith("In 1 cell the roles hold more")


def test_the_ledger_follows_the_tables_first_cells() -> None:
    results = [made.full(f"a{place}") for place in range(LEDGER_CELLS + 5)]
    data = ledger(Report([made.run_of(results)]))
    assert data
    assert [len(chart.rows) for chart in data.charts] == [LEDGER_CELLS + 5] * 2
    assert all(chart.limit == LEDGER_CELLS for chart in data.charts)
    (remark,) = data.remarks
    assert remark.startswith(f"Drawn: {LEDGER_CELLS} of the cells that the filters leave")


def test_seeds_are_one_group() -> None:
    results = [made.full("a1", seed=0), made.full("a2", seed=1), made.full("a3", seed=1, learning_rate=1.0)]
    rows = rows_of([made.run_of(results)])
    groups = group_names(rows, {row.index: row.id for row in rows})
    assert groups == {0: "a1", 1: "a1", 2: "a3"}


def test_curves_are_those_that_are_long_enough() -> None:
    long = made.full("a1").model_copy(update={"learning": Learning(loss=(1.0,) * 100, reward=())})
    data = learning(Report([made.run_of([long, made.full("a2")])]))
    assert data
    loss, reward = data.charts
    assert (loss.id, loss.rows) == ("loss", (0,))
    assert (reward.id, reward.rows) == ("reward", (1,))
    assert data.remarks == ("loss: 1 cell of fewer than 25 steps not drawn.",)


def test_curves_leave_out_what_is_not_finite() -> None:
    broken = made.result(status="error", learning=Learning(loss=(1.0, None, 3.0)))
    data = learning(Report([made.run_of([broken])]))
    assert data
    (curve,) = data.charts[0].spec["datasets"]["curves"]
    assert (curve["step"], curve["value"]) == ([0, 2], [1.0, 3.0])
    nothing = made.result(status="error", learning=Learning(loss=(None, None)))
    assert learning(Report([made.run_of([nothing])])) is None


def test_pairs_have_curves_of_margin_and_accuracy() -> None:
    told = made.full("a1").model_copy(
        update={
            "learning": Learning(loss=(0.7, 0.6, 0.5), metrics={"margin": (0.0, 0.1, 0.2), "entropy": (5.0, 5.0, 5.0)})
        }
    )
    data = learning(Report([made.run_of([told, made.full("a2")])]))
    assert data is not None
    assert [chart.title for chart in data.charts] == ["Loss", "Reward", "Margin"]
    assert data.charts[2].rows == (0,)


def test_long_curves_are_thinned_to_means() -> None:
    steps = CURVE_POINTS * 2
    long = made.result(learning=Learning(loss=tuple(float(step % 2) for step in range(steps))))
    data = learning(Report([made.run_of([long])]))
    assert data
    (curve,) = data.charts[0].spec["datasets"]["curves"]
    assert len(curve["value"]) == CURVE_POINTS
    assert set(curve["value"]) == {0.5}
    assert data.remarks == ("loss: long curves are drawn as means over equal stretches of steps.",)


def test_the_environment_is_told_in_units_with_what_is_unknown() -> None:
    data = environment(Report([made.run_of([made.full("a1"), made.full("a2")], corrupted=("cells/x.json",))]))
    facts = dict(data.runs[0].facts)
    assert facts["gpu.usable"] == "23.6 GiB"
    assert facts["packages.deepspeed"] == "–"
    assert "cells" not in facts
    assert data.runs[0].corrupted == ("cells/x.json",)
    assert [note.cells for note in data.notes] == [2]


def test_an_info_without_anything_is_enough() -> None:
    report = Report([Run("bare", {}, (made.full("a1"),))])
    assert all(view.data(report) is not None for view in VIEWS if view.id not in ONLY_WHERE_THERE_IS)


def test_claims_that_the_runs_answer_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
common: {precision: bf16, adapter: none, optimizer: adamw_torch, offload: none, model: tiny}
claims:
  memory:
    claim: ReMax takes <half>
    source: a paper
    cells: {ppo: {algorithm: ppo}, remax: {algorithm: remax}}
    formula: 1 - remax.device_bytes / ppo.device_bytes
    claimed: 50 %
"""
    monkeypatch.chdir(tmp_path)
    Path("claims.yaml").write_text(text)
    claim = load_claims(Path("claims.yaml")).claims["memory"]
    of = {name: cell for name, (cell,) in cells_of(claim, claim.cells).items()}
    results = [
        made.result(cell.id, cell=cell.flat(), memory=Memory(device_bytes=size * GIB))
        for cell, size in ((of["ppo"], 8), (of["remax"], 6))
    ]
    run = made.run_of(results)
    data = claims(Report([run]))
    assert data
    (line,) = data.lines
    assert (line.claimed, line.measured, line.verdict) == ("50 %", ("25 % on NVIDIA GeForce RTX 4090",), "partly")
    page = render([run], draw=lambda charts: [""] * len(charts))
    assert "ReMax takes &lt;half&gt;; a paper" in page
    assert claims(Report([made.run_of(results[:1])])) is None
    Path("claims.yaml").write_text(text.replace("50 %", "half"))
    broken = claims(Report([run]))
    assert broken
    assert broken.error == (
        "claims.yaml:9: claims.memory.claimed: 'half' is no claim; write a number with its unit (50 %, 2.2 x, 13.6 GB, "
        "at least 80 GB), fits, or does not fit"
    )
