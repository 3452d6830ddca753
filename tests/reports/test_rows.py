"""What is derived from results: rows, verdicts, commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.reports import made
from vrambench.bench.commands.app import main
from vrambench.bench.plan.document import parse_value
from vrambench.bench.predict.band import error_band
from vrambench.bench.results.records import Memory, OutOfMemory, PredictedVerdict, Verdict
from vrambench.bench.results.settings import flat_settings
from vrambench.methods.cell import from_flat, resolve
from vrambench.reports.rows import (
    Row,
    Run,
    axis_options,
    judge,
    pareto,
    peak_basis,
    rows_of,
    setting_options,
    varying_fields,
)

GIB = made.GIB


def row_of(*, capacity: int | None = None, **more: object) -> Row:
    result = made.result(**more)  # type: ignore[arg-type]
    return Row(0, "run", result.id, result.name, result.status, result.cell, result, capacity)


def test_every_cell_of_a_run_is_a_row() -> None:
    run = made.run_of(
        [made.full("a1"), made.result("a2", status="oom")],
        more_cells=[{"id": "a3", "name": "third", **made.cell()}, {"id": "a4", "name": "fourth", **made.cell()}],
        corrupted=("cells/a4.json", "cells/a9.json.corrupted-1"),
    )
    assert [(row.id, row.status) for row in rows_of([run])] == [
        ("a1", "ok"),
        ("a2", "oom"),
        ("a3", "not run"),
        ("a4", "unreadable"),
    ]
    assert [row.index for row in rows_of([run, run])] == list(range(8))


def test_a_result_that_run_json_does_not_name_is_a_row_too() -> None:
    assert [row.status for row in rows_of([Run("x", {}, (made.full("a1"),))])] == ["ok"]


@pytest.mark.parametrize(
    ("device", "fit"),
    [(12 * GIB, "fits"), (24 * GIB, "fits"), (24 * GIB + 1, "does not fit")],
)
def test_measured_device_memory_is_judged_by_the_budget(device: int, fit: str) -> None:
    verdict = judge(row_of(memory=Memory(device_bytes=device)))
    assert (verdict.fit, verdict.source, verdict.margin_bytes) == (fit, "measured", 24 * GIB - device)


def test_without_device_memory_nothing_is_said() -> None:
    verdict = judge(row_of(memory=Memory(allocated_bytes=1, reserved_bytes=2)))
    assert (verdict.fit, verdict.why) == ("unknown", "no device memory was measured")


def test_a_prediction_judges_where_nothing_was_measured() -> None:
    verdict = judge(row_of(status="pruned", predicted=Memory(device_bytes=90 * GIB)))
    assert (verdict.fit, verdict.source) == ("does not fit", "predicted")
    measured = judge(row_of(memory=Memory(device_bytes=1 * GIB), predicted=Memory(device_bytes=90 * GIB)))
    assert (measured.fit, measured.source) == ("fits", "measured")


def test_what_fits_once_cached_memory_is_given_back_fits_tightly() -> None:
    verdict = judge(row_of(memory=Memory(device_bytes=23 * GIB, num_alloc_retries=3)))
    assert (verdict.fit, "given back 3 times" in verdict.why) == ("tight", True)


@pytest.mark.parametrize(
    ("told", "budget_gib"), [("fits", 17.85), ("tight", 17.85), ("tight", 16.5), ("does not fit", 16.5)]
)
def test_a_predicted_cell_has_the_verdict_that_its_forecast_gave(told: Verdict, budget_gib: float) -> None:
    budget = int(budget_gib * GIB)
    stored = PredictedVerdict(verdict=told, budget_bytes=budget, band_bytes=GIB // 4, band_basis="measured")
    row = row_of(
        status="pruned",
        cell=made.cell(budget=budget),
        predicted=Memory(device_bytes=17 * GIB),
        predicted_verdict=stored,
    )
    assert (judge(row).fit, judge(row).margin_bytes) == (told, budget - 17 * GIB)


def test_a_file_without_a_stored_verdict_is_judged_by_the_published_band() -> None:
    band = round(error_band().share * 17 * GIB)
    for budget, fit in ((17 * GIB + band, "fits"), (17 * GIB + band - 1, "tight"), (17 * GIB - 1, "does not fit")):
        row = row_of(status="timeout", cell=made.cell(budget=budget), predicted=Memory(device_bytes=17 * GIB))
        assert judge(row).fit == fit


def test_the_peak_of_a_cell_that_failed_does_not_make_it_fit() -> None:
    assert judge(row_of(status="crashed", memory=Memory(device_bytes=GIB))).fit == "unknown"


def test_running_out_of_the_device_is_not_fitting_unless_the_device_was_smaller() -> None:
    oom = OutOfMemory(where="device")
    assert judge(row_of(status="oom", oom=oom)).fit == "does not fit"
    assert judge(row_of(status="oom", oom=oom, capacity=int(23.64 * GIB))).fit == "does not fit"
    assert judge(row_of(status="oom", oom=oom, capacity=16 * GIB)).fit == "unknown"
    assert judge(row_of(status="oom", oom=oom, capacity=80 * GIB, source="verified")).fit == "does not fit"
    assert judge(row_of(status="oom", oom=OutOfMemory(where="host"))).fit == "unknown"


def test_the_card_is_the_runs() -> None:
    run = made.run_of([made.full("a1")])
    assert rows_of([run])[0].device_capacity_bytes == int(23.64 * GIB)
    assert rows_of([Run("x", {"environment": {"gpu": None}}, run.results)])[0].device_capacity_bytes is None


def test_swept_fields_are_those_in_which_equal_axes_differ() -> None:
    cells = [
        made.cell(seed=0, learning_rate=1e-5),
        made.cell(seed=1, learning_rate=1e-5),
        made.cell(algorithm="ppo", learning_rate=1e-6, ppo={"epochs": 1}),
        made.cell(algorithm="ppo", learning_rate=1e-6, ppo={"epochs": 4}),
    ]
    found = rows_of([made.run_of([made.result(f"a{place}", cell=cell) for place, cell in enumerate(cells)])])
    assert varying_fields(found) == ("seed", "ppo.epochs")


def options_of(cell: Mapping[str, Any]) -> list[str]:
    """What the report tells to type after `vrambench run`, as the shell splits it."""
    return shlex.split(" ".join((axis_options(cell), *setting_options(cell).values())))


def test_the_options_make_the_same_cell() -> None:
    axes = {"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "ppo"}
    settings = {"model": "a folder/x'y", "lora_target_modules": ["q_proj", "v_proj"], "learning_rate": 3e-6, "seed": 7}
    cell = resolve(axes, {**settings, "ppo": {"epochs": 2}})
    words = options_of(cell.flat())
    said: dict[str, object] = {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option != "--set":
            said[option.removeprefix("--")] = value
            continue
        name, _, text = value.partition("=")
        namespace, _, key = name.partition(".")
        read = parse_value(text)
        if key:
            said.setdefault(namespace, {})[key] = read  # type: ignore[index]
        else:
            said[name] = read
    assert from_flat(said).id == cell.id


def test_the_command_line_reads_the_options_as_that_one_cell(capsys: pytest.CaptureFixture[str]) -> None:
    axes = {"precision": "fp32", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "ppo"}
    cell = resolve(axes, {"model": "tiny-opt", "value": "separate", "seed": 2, "steps": 4, "ppo": {"epochs": 2}})
    options = options_of(cell.flat())
    assert main(["plan", "--json", "--profile", "smoke", "--device", "cpu", *options]) == 0
    assert [one["id"] for one in json.loads(capsys.readouterr().out)["cells"]] == [cell.id]


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine
@example({"a": "1e5"})
@example({"a": "\x85"})
@given(st.dictionaries(st.text("abc.", min_size=1), st.none() | st.booleans() | st.text() | st.floats(allow_nan=False)))
def test_settings_survive_the_shell_and_yaml(given_settings: dict[str, object]) -> None:
    given_ = {key: value for key, value in given_settings.items() if value is not None}
    words = options_of(given_settings)
    said = {word.partition("=")[0]: parse_value(word.partition("=")[2]) for word in words[1::2]}
    assert said == flat_settings(given_)


points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(points)
def test_the_front_is_what_no_other_point_beats(found: list[tuple[int, int]]) -> None:
    front = pareto((key, float(cost), float(gain)) for key, (cost, gain) in enumerate(found))
    for key, (cost, gain) in enumerate(found):
        better = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in found)
        first = found.index((cost, gain)) == key
        assert (key in front) == (not better and first)


def test_cells_are_compared_by_the_outermost_line_that_all_have() -> None:
    cpu = row_of(memory=Memory(allocated_bytes=1))
    gpu = row_of(memory=Memory(allocated_bytes=1, reserved_bytes=2, device_bytes=3))
    failed = row_of(status="error")
    assert peak_basis([gpu, failed]) == "device_bytes"
    assert peak_basis([gpu, cpu]) == "allocated_bytes"
    assert peak_basis([failed]) is None
    assert peak_basis([row_of()]) is None
    full = row_of(status="oom", memory=Memory(allocated_bytes=1, reserved_bytes=2, device_bytes=3))
    assert peak_basis([full]) == "device_bytes", "where none is ok, those that ran out of memory"
    assert peak_basis([full, cpu]) == "allocated_bytes"
