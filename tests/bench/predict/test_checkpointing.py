"""Reentrant checkpointing, and emptying the cache: real in both worlds, and what they change in bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.bench.predict.test_equality import differences, traced
from vrambench.bench.allocator import AllocatorSettings
from vrambench.bench.predict.replay import Replay
from vrambench.bench.predict.simulate import Simulator
from vrambench.bench.predict.tracing.trace import ALLOC, EMPTY, Trace
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.job import Job

SIZES: dict[str, Any] = {"model": "tiny", "batch_size": 2, "prompt_tokens": 8, "response_tokens": 8, "rollout_batch": 4}


def cell_of(**said: Any) -> Cell:
    axes = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    settings = SIZES | {"gradient_checkpointing": True, "use_reentrant": True}
    settings |= {name: value for name, value in said.items() if name not in axes}
    return resolve(axes | {name: value for name, value in said.items() if name in axes}, settings)


CELLS: dict[str, dict[str, Any]] = {
    "full": {},
    "autocast": {"precision": "bf16_amp"},
    "lora": {"adapter": "lora", "lora_dropout": 0.1, "gradient_accumulation_steps": 2},
    "qlora with autocast off": {"adapter": "lora", "precision": "nf4"},
    "layerwise": {
        "optimizer": "galore_adamw_layerwise",
        "max_grad_norm": 0,
        "galore": {"rank": 4, "update_proj_gap": 2},
    },
    "ppo": {"adapter": "lora", "algorithm": "ppo", "response_tokens": 2, "ppo": {"epochs": 1}},
}


@pytest.mark.parametrize("name", CELLS)
def test_the_simulated_reentrant_job_allocates_what_the_real_one_does(name: str) -> None:
    cell = cell_of(**CELLS[name])
    real = traced(cell, get_device("cpu"))
    simulated = traced(cell, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    assert abs(simulated.peak_bytes() - real.peak_bytes()) <= 0.002 * real.peak_bytes()
    assert not differences(cell, real, simulated)


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_both_kinds_give_the_same_gradients(adapter: str) -> None:
    losses = []
    for reentrant in (False, True):
        job = Job(
            cell_of(precision="fp32", adapter=adapter, use_reentrant=reentrant, learning_rate=0.01), get_device("cpu")
        )
        job.load()
        losses.append([float(job.step(index)["loss"]) for index in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] != losses[0][2]


def trace_of(**said: Any) -> Trace:
    return Simulator().run(cell_of(model="llama-1b", **said)).trace


def test_a_reentrant_layer_is_run_again_to_its_end() -> None:
    """Where the other kind stops with the last tensor that the backward pass needs."""
    ran = {
        kind: _ran_again(trace_of(use_reentrant=kind, prompt_tokens=256, response_tokens=256)) for kind in (False, True)
    }
    assert ran[True] > ran[False]


def _ran_again(trace: Trace) -> int:
    """Bytes that forward passes of layers allocate inside the first step's backward pass."""
    return sum(
        event.nbytes
        for event in trace.events
        if event.kind == ALLOC and event.place.backward and event.place.module and event.place.step == 0
    )


@pytest.mark.parametrize(("every", "emptied"), [(0, [0, 0]), (1, [2, 2]), (2, [2, 0])])
@pytest.mark.parametrize("offload", ["none", "zero2_optimizer"])
def test_the_cache_is_emptied_before_backward_passes_of_every_so_many_steps(
    every: int, emptied: list[int], offload: str
) -> None:
    settings: dict[str, Any] = {"torch_empty_cache_steps": every, "gradient_accumulation_steps": 2}
    trace = traced(cell_of(offload=offload, zero={"reduce_bucket_size": 100_000}, **settings), get_device("meta"))
    counts = [0, 0]
    for event in trace.events:
        if event.kind == EMPTY and event.place.step is not None:
            counts[event.place.step] += 1
    assert counts == emptied


def test_an_emptied_cache_gives_back_what_a_rollout_needed() -> None:
    job = {"adapter": "lora", "algorithm": "ppo", "prompt_tokens": 500, "response_tokens": 100, "rollout_batch": 16}
    replays = [Replay(trace_of(torch_empty_cache_steps=every, **job), AllocatorSettings()) for every in (0, 1)]
    assert replays[0].requested_bytes == replays[1].requested_bytes
    kept, emptied = (replay.phases["optimizer_step", 0][1] for replay in replays)
    assert emptied < 0.7 * kept
