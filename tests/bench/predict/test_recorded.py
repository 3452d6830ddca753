"""Recordings of a real GPU against the model of its allocator, and against the simulated jobs, which know nothing of them.

The recordings are results/nvidia-h200/recordings: what `tests/gpu/replay.py` recorded with torch 2.11 and CUDA 13.
"""

from __future__ import annotations

import gzip
import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vrambench.bench.allocator import AllocatorSettings
from vrambench.bench.allocator.blocks import Addresses
from vrambench.bench.allocator.comparison import replay_snapshot
from vrambench.bench.predict import simulate
from vrambench.bench.predict.replay import Replay
from vrambench.bench.predict.unseen.matmuls import cublaslt_workspace
from vrambench.methods.cards import CARDS

RESULTS = Path(__file__).resolve().parents[3] / "results" / "nvidia-h200"
RECORDINGS = sorted((RESULTS / "recordings").glob("*.pickle.gz"))
ROWS = {row["cell"]: row for row in map(json.loads, (RESULTS / "replay.jsonl").read_text().splitlines())}

EXACT = (
    "expandable",
    "full-1b",
    "fused-3b",
    "galore-8bit-1b",
    "galore-layerwise",
    "remax",
    "sft",
    "sft-fp16-amp",
    "sft-fp32",
    "zero2",
)
"""Recorded jobs whose simulation asks for as many bytes at the peak, to the byte. The others differ in named ways: outliers of int8
inputs, whose number depends on values, and cuBLASLt's workspace inside bitsandbytes' kernels."""
MOST_REQUESTED = 0.003
MOST_RESERVED = 0.002


@pytest.fixture(scope="module")
def gpu_replay(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("tests/gpu/replay.py")


def test_there_are_recordings_of_many_kinds_of_jobs() -> None:
    assert len(RECORDINGS) == 18
    assert {file.name.removesuffix(".pickle.gz") for file in RECORDINGS} <= set(ROWS)


@pytest.mark.parametrize("file", RECORDINGS, ids=lambda file: file.name.removesuffix(".pickle.gz"))
def test_the_model_serves_every_request_from_the_recorded_address(file: Path) -> None:
    snapshot: dict[str, Any] = pickle.loads(gzip.decompress(file.read_bytes()))
    (device,) = replay_snapshot(snapshot, total_bytes=CARDS["h200"].usable_bytes)
    assert device.moved_entry is None
    assert device.exact
    assert device.same_end


@pytest.mark.parametrize("name", ["fused-3b", "full-1b", "ppo-amp-value", "ppo-lora-3b", "sft-fp16-amp", "sft-fp32"])
def test_segments_lie_in_the_order_of_falling_addresses(name: str) -> None:
    """CUDA fills what a large job takes in the order that `Addresses` says; the first few segments may lie in older gaps."""
    snapshot = pickle.loads(gzip.decompress((RESULTS / "recordings" / f"{name}.pickle.gz").read_bytes()))
    (trace,) = filter(None, snapshot["device_traces"])
    segments = [(entry["addr"], entry["size"]) for entry in trace if entry["action"] == "segment_alloc"]

    def other_way(falling: bool) -> float:
        """The share of pairs of segments that lie the other way round."""
        addresses = Addresses(falling=falling)
        placed = [(recorded, addresses.take(nbytes)) for recorded, nbytes in segments]
        pairs = [(one, two) for one, two in itertools.combinations(placed, 2)]
        return sum((one[0] < two[0]) != (one[1] < two[1]) for one, two in pairs) / len(pairs)

    assert other_way(falling=True) < 0.03
    assert other_way(falling=False) > 0.5


@pytest.mark.parametrize("name", [*EXACT, "ppo-lora-nf4", "qlora-1b"])
def test_a_simulated_job_takes_what_the_recorded_one_took(
    gpu_replay: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(simulate, "cublaslt_workspace", lambda version: cublaslt_workspace("2.11.0"))
    case = next(one for one in gpu_replay.CASES if one.name == name)
    trace = simulate.Simulator().run(case.cell(tiny=False), CARDS["h200"]).trace
    replay, recorded = Replay(trace, AllocatorSettings.parse(case.conf)), ROWS[name]["recorded"]
    if name in EXACT:
        assert replay.requested_bytes == recorded["requested_bytes"]
        assert abs(replay.reserved_bytes / recorded["reserved_bytes"] - 1) <= MOST_RESERVED
    assert abs(replay.requested_bytes / recorded["requested_bytes"] - 1) <= MOST_REQUESTED
