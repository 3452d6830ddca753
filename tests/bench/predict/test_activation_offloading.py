"""Activation offloading: the simulated job beside the real one, what it saves, and in which stream's memory it comes back."""

from __future__ import annotations

import dataclasses
import gzip
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.bench.predict.conftest import OfLayers
from tests.bench.predict.test_equality import differences
from tests.bench.predict.traces import traced
from vrambench.bench.allocator import AllocatorSettings
from vrambench.bench.allocator.comparison import replay_snapshot
from vrambench.bench.predict.band import kind_of
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.replay import Replay
from vrambench.bench.predict.several import order_of
from vrambench.bench.predict.simulate import Simulation, Simulator
from vrambench.bench.predict.tracing.trace import ALLOC, EMPTY, FREE, HOST, SYNC, Event, Place, Trace
from vrambench.methods.cards import CARDS
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device

MIB = 2**20
# Attention in plain products: the fused kernels of a CPU and of a GPU save different tensors.
SIZES: dict[str, Any] = {
    "model": "tiny",
    "batch_size": 2,
    "prompt_tokens": 24,
    "response_tokens": 8,
    "attention": "math",
}
CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}
REENTRANT = CHECKPOINTED | {"use_reentrant": True}


def cell_of(**said: Any) -> Cell:
    axes = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    settings = (
        SIZES | {"activation_offloading": True} | {name: value for name, value in said.items() if name not in axes}
    )
    return resolve(axes | {name: value for name, value in said.items() if name in axes}, settings)


PPO: dict[str, Any] = {"algorithm": "ppo", "rollout_batch": 2, "response_tokens": 2, "ppo": {"epochs": 1}}
CELLS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, checkpointed": CHECKPOINTED,
    "full, reentrant": REENTRANT,
    "autocast": {"precision": "bf16_amp"},
    "autocast, checkpointed": {"precision": "bf16_amp"} | CHECKPOINTED,
    "autocast, reentrant": {"precision": "bf16_amp"} | REENTRANT,
    "lora": {"adapter": "lora", "lora_dropout": 0.1, "gradient_accumulation_steps": 2},
    "qlora": {"adapter": "lora", "precision": "nf4", "autocast": "bf16", "fp32_modules": "all"} | CHECKPOINTED,
    "chunked loss": {"adapter": "lora", "loss": "chunked_nll", "prompt_tokens": 700},
    "layerwise": {
        "optimizer": "galore_adamw_layerwise",
        "max_grad_norm": 0,
        "galore": {"rank": 4, "update_proj_gap": 2},
    },
    "ppo": {"adapter": "lora"} | PPO,
    "ppo with a value model": {"adapter": "lora", "value": "separate"} | PPO | CHECKPOINTED,
    "remax": {"adapter": "lora", "algorithm": "remax", "rollout_batch": 2, "response_tokens": 2},
}


@pytest.mark.parametrize("name", CELLS)
def test_the_simulated_job_offloads_what_the_real_one_does(name: str) -> None:
    cell = cell_of(**CELLS[name])
    real = traced(cell, get_device("cpu"))
    simulated = traced(cell, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    assert abs(simulated.peak_bytes() - real.peak_bytes()) <= 0.002 * real.peak_bytes()
    assert not differences(cell, real, simulated)
    assert simulated.copies


def simulation(**said: Any) -> Simulation:
    return Simulator().run(cell_of(**said))


# Four layers are built of gpt2's twelve, where they tell of all.
LARGE: dict[str, Any] = {
    "model": "gpt2",
    "adapter": "lora",
    "attention": "auto",
    "prompt_tokens": 500,
    "response_tokens": 12,
    "loss": "chunked_nll",
}


def test_the_peak_falls_by_what_is_offloaded() -> None:
    off, on = simulation(activation_offloading=False, **LARGE).trace, simulation(**LARGE).trace
    back = [event for event in on.events if event.kind == ALLOC and event.ident in on.copies and event.place.backward]
    offloaded = sum(event.nbytes for event in back if event.place.step == 0)
    assert off.peak_bytes() - on.peak_bytes() == pytest.approx(offloaded, rel=0.01)
    assert offloaded > 0.4 * off.peak_bytes()


def test_what_the_host_holds_is_page_locked_in_powers_of_two_and_used_again() -> None:
    """With checkpoints, the inputs of gpt2's layers, and what its last norm, its loss and its tokens save."""
    off, on = (simulation(activation_offloading=on, **CHECKPOINTED, **LARGE) for on in (False, True))
    inputs = 12 * 2 * MIB  # 2 x 512 x 768 in bf16 are 1.5 MiB
    assert off.host_pinned_bytes == 0
    assert inputs < on.host_pinned_bytes < 2 * inputs
    assert on.host_bytes == on.host_pinned_bytes
    several = simulation(gradient_accumulation_steps=4, **CHECKPOINTED, **LARGE)
    assert several.host_pinned_bytes == on.host_pinned_bytes


@pytest.mark.parametrize("said", [{}, CHECKPOINTED, REENTRANT], ids=["plain", "checkpointed", "reentrant"])
@pytest.mark.parametrize("precision", ["bf16", "bf16_amp"])
def test_few_layers_tell_of_all_or_all_are_traced(precision: str, said: dict[str, Any], of_layers: OfLayers) -> None:
    """The stash reaches over five checkpointed layers of seven."""
    model = of_layers("gpt2", 7)
    cell, simulator = cell_of(**LARGE | {"model": model, "precision": precision} | said), Simulator()
    found, whole = simulator.run(cell), simulator._simulated(cell, None, None, order_of(cell))
    assert found.layers == (None if said else 4)
    assert shape(found.trace) == shape(whole.trace)
    assert found.host_pinned_bytes == whole.host_pinned_bytes


def shape(trace: Trace) -> list[tuple[int, int, int, bool, bool]]:
    """Events, with idents by their order."""
    order: dict[int, int] = {}
    return [
        (
            event.kind,
            order.setdefault(event.ident, len(order)),
            event.nbytes,
            event.ident in trace.copies,
            event.ident in trace.lent,
        )
        for event in trace.events
        if event.kind in (ALLOC, FREE, HOST, SYNC)
    ]


def test_what_comes_back_is_in_memory_of_its_own_stream() -> None:
    replay = Replay(simulation(**LARGE).trace, AllocatorSettings())
    reserved: Counter[int] = Counter()
    for segment in replay.allocator.block_map():
        reserved[segment.stream] += segment.size
    assert set(reserved) == {0, 1}
    assert 2 * MIB < reserved[1] < 0.1 * reserved[0]


RECORDINGS = Path(__file__).resolve().parents[3] / "results" / "nvidia-h100" / "recordings"
TRLS: dict[str, Any] = {"model": "llama-3.2-1b", "prompt_tokens": 1, "response_tokens": 1023, "attention": "sdpa"}


@pytest.mark.skipif(not RECORDINGS.exists(), reason="there are no recordings of an H100")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("activations-offloaded", CHECKPOINTED | {"loss": "chunked_nll", "optimizer": "adamw_torch_fused"}),
        ("activations-offloaded-not-checkpointed", {"loss": "nll"}),
    ],
)
def test_the_second_stream_takes_what_it_took_in_trls_trainer(name: str, said: dict[str, Any]) -> None:
    """Three recorded steps of SFTTrainer on an H100, with torch 2.11: every block, in order, and what is reserved for them."""
    snapshot = pickle.loads(gzip.decompress((RECORDINGS / f"{name}.pickle.gz").read_bytes()))
    (recorded,) = filter(None, snapshot["device_traces"])
    copies = [entry["size"] for entry in recorded if entry["action"] == "alloc" and entry["stream"]]
    reserved = sum(segment["total_size"] for segment in snapshot["segments"] if segment["stream"])
    trace = Simulator().run(cell_of(**TRLS | said), CARDS["h100-80gb"]).trace
    last = [event for event in trace.events if event.ident in trace.copies and event.place.step == 1]
    assert copies == 3 * [event.nbytes for event in last if event.kind == ALLOC]
    segments = Replay(trace, AllocatorSettings()).allocator.block_map()
    assert reserved == sum(segment.size for segment in segments if segment.stream)
    (device,) = replay_snapshot(snapshot, total_bytes=CARDS["h100-80gb"].usable_bytes)
    assert device.exact


PLACE = Place("learn", 0, "policy", None, "")


def made(*events: tuple[int, int, int], copies: set[int], lent: set[int]) -> Trace:
    return Trace([Event(*event, "", PLACE) for event in events], copies=copies, lent=lent)


def test_each_stream_has_its_own_cache() -> None:
    events = ((ALLOC, 1, 20 * MIB), (FREE, 1, 0), (ALLOC, 2, 20 * MIB), (FREE, 2, 0), (ALLOC, 3, 20 * MIB))
    for copies, reserved in ((set[int](), 20), ({2}, 40), ({1, 2}, 40), ({1, 2, 3}, 20)):
        assert Replay(made(*events, copies=copies, lent=set()), AllocatorSettings()).reserved_bytes == reserved * MIB


def test_memory_that_the_work_may_still_use_waits_for_it_where_the_device_is_behind() -> None:
    events = ((ALLOC, 1, 20 * MIB), (FREE, 1, 0), (ALLOC, 2, 20 * MIB), (FREE, 2, 0))
    once, twice = events, (*events, (SYNC, -1, 0), (ALLOC, 3, 20 * MIB), (FREE, 3, 0))
    for given, lent, behind, reserved in (
        (once, {1, 2}, False, 20),
        (once, {1, 2}, True, 40),
        (once, {2}, True, 20),
        (twice, {1, 2}, True, 40),
        (twice, {1, 2}, False, 20),
    ):
        trace = made(*given, copies={1, 2, 3}, lent=lent)
        assert Replay(trace, AllocatorSettings(), behind=behind).reserved_bytes == reserved * MIB


def test_where_memory_is_short_the_allocator_waits_for_the_device() -> None:
    trace = made((ALLOC, 1, 20 * MIB), (FREE, 1, 0), (ALLOC, 2, 30 * MIB), copies={1, 2}, lent={1})
    assert Replay(trace, AllocatorSettings(), 40 * MIB, behind=True).oom is None


def test_the_band_holds_what_waits_and_says_that_no_such_job_was_compared() -> None:
    predictor = Predictor()
    plain, lent = (
        predictor.forecast(cell_of(**LARGE | CHECKPOINTED | {"precision": precision, "adapter": "none"}))
        for precision in ("bf16", "bf16_amp")
    )
    assert "behind the host" not in plain.band_basis
    assert "behind the host" in lent.band_basis
    assert "none of them was" in plain.band_basis
    assert "activation_offloading True" in str(kind_of(cell_of()))
    assert kind_of(cell_of(activation_offloading=False)).recipe == "fine-tuning, attention math"


def test_the_cache_is_emptied_before_forward_passes_that_are_trained_on() -> None:
    """Not before rollouts and scores."""
    trace = traced(
        cell_of(adapter="lora", gradient_accumulation_steps=2, **PPO | {"batch_size": 1, "rollout_batch": 4}),
        get_device("meta"),
    )
    phases = [event.place.phase for event in trace.events if event.kind == EMPTY and event.place.step == 1]
    assert phases == ["learn"] * 4


def test_without_it_nothing_is_told_apart() -> None:
    trace = simulation(activation_offloading=False).trace
    assert not trace.copies | trace.lent
    assert not {event.kind for event in trace.events} & {HOST, SYNC}
