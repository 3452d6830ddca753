"""A predicted job as a recording: PyTorch's own readers take it, and what `explain` finds in it is what was predicted."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
from torch.cuda import _memory_viz

from vrambench.bench.allocator.comparison import replay_snapshot
from vrambench.bench.allocator.explained import explain
from vrambench.bench.allocator.snapshot import Snapshot
from vrambench.bench.predict.exported import recorded
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.replay import whose
from vrambench.bench.predict.tracing.trace import ALLOC
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.called import card_of
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.workload import AXIS_NAMES

MIB = 2**20


def cell(*axes: str, **settings: Any) -> Cell:
    work = {"model": "gpt2", "prompt_tokens": 24, "response_tokens": 8, "rollout_batch": 4, "budget": "24GiB"}
    return resolve(dict(zip(AXIS_NAMES, axes, strict=True)), work | settings)


CELLS = (
    cell("bf16", "none", "adamw_torch", "none", "sft", batch_size=4),
    cell("nf4", "lora", "paged_adamw_8bit", "none", "ppo", model="tiny"),
    cell("bf16", "lora", "adamw_torch", "none", "grpo", group_size=4),
    cell("bf16", "none", "sgd", "none", "sft", activation_offloading=True),
    cell("bf16", "none", "adamw_torch", "none", "sft", gradient_checkpointing=True, torch_empty_cache_steps=1),
)


@cache
def predicted(number: int, conf: str) -> tuple[Forecast, dict[str, Any]]:
    """Of one of CELLS, its prediction and its recording, made once; tests read them."""
    return recorded(CELLS[number], alloc_conf=conf)


each = pytest.mark.parametrize("number", range(len(CELLS)), ids=lambda number: CELLS[number].name)


@each
@pytest.mark.parametrize("conf", ["", "expandable_segments:True"])
def test_what_was_predicted_is_found_in_it(number: int, conf: str) -> None:
    forecast, recording = predicted(number, conf)
    snapshot = Snapshot.of(recording)
    assert snapshot.settings().text() == forecast.alloc_conf == conf
    (compared,) = replay_snapshot(snapshot)
    assert compared.exact
    (told,) = explain(snapshot)
    assert told.exact
    assert told.recorded.requested_bytes == forecast.memory.requested_bytes
    assert told.recorded.allocated_bytes == forecast.memory.allocated_bytes
    assert told.recorded.reserved_bytes == forecast.memory.reserved_bytes
    assert sum(live.nbytes for live in told.called) == told.requested_bytes == told.recorded.requested_bytes
    assert all(live.where for live in told.live)


def test_memory_has_its_name_and_the_moment_its_phase() -> None:
    forecast, recording = predicted(0, "")
    (told,) = explain(Snapshot.of(recording))
    called = {live.where: live.nbytes for live in told.called}
    assert called["policy weights"] == forecast.roles["policy"].weights_bytes
    assert "policy optimizer" in called
    assert told.part in {f"step {phase.step} {phase.name}" for phase in forecast.phases}
    assert "policy/model.transformer.h.*.mlp.c_fc" in {live.where.split()[0] for live in told.live if live.where}
    spans = {one["name"] for one in recording["external_annotations"]}
    assert spans == {"load", *(f"step {step} {phase}" for step in (0, 1) for phase in ("learn", "optimizer_step"))}


@each
def test_every_request_has_the_name_of_its_own(number: int) -> None:
    one = CELLS[number]
    _, recording = predicted(number, "")
    trace = Predictor().simulation(one, card_of(one.workload.budget)).trace
    wanted = [
        (event.nbytes, event.operator, " ".join(filter(None, whose(event, trace))))
        for event in trace.events
        if event.kind == ALLOC and event.nbytes > 0
    ]
    told = [
        (entry["size"], entry["frames"][0]["name"], entry["user_metadata"])
        for entry in recording["device_traces"][0]
        if entry["action"] == "alloc"
    ]
    assert told == wanted


def test_a_job_that_runs_out_ends_there() -> None:
    one = cell("bf16", "none", "adamw_torch", "none", "sft", batch_size=4, budget="1536MiB")
    forecast, recording = recorded(one)
    assert forecast.verdict == "does not fit"
    (told,) = explain(Snapshot.of(recording))
    assert told.ran_out is not None
    assert forecast.oom is not None
    assert told.ran_out.left_bytes is not None
    allowed = forecast.budget_bytes - (forecast.memory.context_bytes or 0)
    assert told.reserved_bytes + told.ran_out.left_bytes == allowed
    assert told.part is not None
    assert told.part.endswith(forecast.oom_phase or "?")
    assert told.ran_out.where is not None
    assert told.ran_out.called is not None
    assert "raise OutOfMemoryError" in _memory_viz.trace(recording)


def test_the_viewers_own_readers_take_it() -> None:
    """pytorch.org/memory_viz draws the same dictionary; its readers in Python are torch's."""
    forecast, recording = predicted(0, "")
    summary = _memory_viz.segsum(recording)
    assert f"segments: {len(recording['segments'])}" in summary
    lines: list[str] = _memory_viz.memory(recording, format_flamegraph=str.splitlines)
    weights = [line for line in lines if "h.0.mlp.c_fc:0:" in line]
    assert weights
    listing = _memory_viz.trace(recording)
    entries = recording["device_traces"][0]
    assert listing.count("cudaMalloc") == sum(entry["action"] == "segment_alloc" for entry in entries)
    kept = sum(block["requested_size"] for each in recording["segments"] for block in each["blocks"])
    roles = forecast.roles["policy"]
    assert kept >= roles.weights_bytes + roles.optimizer_bytes


def test_a_block_names_who_asked_for_it() -> None:
    _, recording = predicted(0, "")
    for entry in recording["device_traces"][0]:
        assert {"action", "size", "stream", "time_us", "frames", "user_metadata"} <= set(entry), entry
        assert bool(entry["frames"]) == (entry["action"] not in ("segment_free", "segment_unmap")), entry
    named = itertools.chain.from_iterable(each["blocks"] for each in recording["segments"])
    assert all(bool(block["user_metadata"]) == (block["state"] != "inactive") for block in named)
