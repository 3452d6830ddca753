#!/usr/bin/env python3
"""Is the model of CUDA's caching allocator exact? Real jobs are recorded, and what they asked for is replayed.

    tests/gpu/replay.py --device cuda --recordings folder    > replay.jsonl
    tests/gpu/replay.py --device cpu --tiny      the simulated jobs' requests instead, recorded by the model itself
    tests/gpu/replay.py --only sft,expandable    these cells alone
    tests/gpu/replay.py --done replay.jsonl      without those that this file has

Each cell has a process of its own and a time limit. Its job loads and takes two steps while the allocator's history is
recorded; `vrambench.bench.allocator.comparison` then replays the requests. One JSON object a line: `cell`, the `recorded` and the
`predicted` peaks (requested, allocated, reserved bytes), `exact`, `moved_entry` (the first entry of the trace that the
model served from another address), `same_end`, `events`, the `gpu` and the versions; `simulated` has the same peaks from
the simulated job, which knows nothing of the recording, and `apart` what was live at the one's peak of requested bytes and
not at the other's: bytes and how many of them, the most first. Null where nothing came out, with an `error`. `--recordings`:
where each cell's snapshot goes, as CELL.pickle.gz. Exit code: 0, or 1 if a cell failed or is not exact.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import os
import pickle
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_summary import done_before
from own_process import row_from

from vrambench.bench.allocator import Allocator, AllocatorSettings
from vrambench.bench.allocator.comparison import replay_snapshot
from vrambench.bench.allocator.settings import ENVIRONMENT
from vrambench.bench.allocator.snapshot import snapshot_of
from vrambench.bench.predict.replay import Replay
from vrambench.bench.predict.simulate import STEPS, Simulator
from vrambench.bench.predict.tracing.trace import ALLOC, EMPTY, FREE, Trace
from vrambench.bench.predict.unseen.hardware import card_here
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.job import Job

SECONDS = 150
"""A cell's limit, imports included."""
MAX_ENTRIES = 20_000_000
"""Of the history: it is a ring, and a recording that has lost its beginning proves nothing."""
TOLD = 12
"""Sizes that are told of where recorded and simulated job are apart."""

FULL = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
SIZES: dict[str, Any] = {
    "model": "gpt2",
    "batch_size": 2,
    "rollout_batch": 2,
    "prompt_tokens": 128,
    "response_tokens": 32,
    "reward": "tokens",
    "budget": "4TiB",
    "ppo": {"epochs": 2},
    "galore": {"rank": 64, "update_proj_gap": 2},
    "zero": {"reduce_bucket_size": 16_777_216},
}
LONG: dict[str, Any] = {"model": "llama-1b", "prompt_tokens": 1, "response_tokens": 511, "gradient_checkpointing": True}
LONG["lora_target_modules"] = "all-linear"
TWENTY: dict[str, Any] = {
    "model": "gpt-neox-20b",
    "batch_size": 16,
    "rollout_batch": 16,
    "prompt_tokens": 8,
    "response_tokens": 16,
    "gradient_checkpointing": True,
    "lora_target_modules": ["query_key_value"],
    "reference": "adapter_off",
    "reward": "tokens",
    "ppo": {"epochs": 1},
}
TINY: dict[str, Any] = {
    "model": "tiny",
    "lora_target_modules": "auto",
    "prompt_tokens": 8,
    "response_tokens": 8,
    "galore": {"rank": 4, "update_proj_gap": 2},
    "zero": {"reduce_bucket_size": 100_000},
}


@dataclass(frozen=True)
class Case:
    """A kind of cell: what it has other than FULL and SIZES, and the allocator's options."""

    name: str
    axes: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    conf: str = ""

    def cell(self, tiny: bool) -> Cell:
        return resolve(FULL | self.axes, SIZES | self.settings | (TINY if tiny else {}))


CASES = (
    Case("sft"),
    Case("ppo-lora-nf4", {"algorithm": "ppo", "adapter": "lora", "precision": "nf4"}),
    Case("remax-lora-int8", {"algorithm": "remax", "adapter": "lora", "precision": "int8"}),
    Case("galore-layerwise", {"optimizer": "galore_adamw_layerwise"}, {"max_grad_norm": 0}),
    Case("ppo-amp-value", {"algorithm": "ppo", "precision": "bf16_amp"}, {"value": "separate"}),
    Case("zero2", {"offload": "zero2_optimizer"}),
    Case("expandable", conf="expandable_segments:True"),
    Case("ppo-split", {"algorithm": "ppo"}, conf="max_split_size_mb:64"),
    Case("sft-fp32", {"precision": "fp32", "optimizer": "adamw_torch_fused"}),
    Case("sft-fp16-amp", {"precision": "fp16_amp"}, {"gradient_checkpointing": True}),
    Case("remax", {"algorithm": "remax"}),
    Case(
        "qlora-1b",
        {"precision": "nf4", "adapter": "lora", "optimizer": "paged_adamw_8bit"},
        LONG | {"nf4": {"double_quant": True}},
    ),
    Case("int8-3b", {"precision": "int8", "adapter": "lora"}, LONG | {"model": "llama-3.2-3b"}),
    Case("full-1b", {"optimizer": "adamw_bnb_8bit"}, LONG),
    Case(
        "galore-8bit-1b",
        {"optimizer": "galore_adamw_8bit_layerwise"},
        LONG | {"max_grad_norm": 0, "galore": {"rank": 64, "svd": "randomized"}},
    ),
    Case(
        "ppo-lora-3b",
        {"algorithm": "ppo", "adapter": "lora"},
        {"model": "llama-3.2-3b", "gradient_checkpointing": True, "lora_target_modules": "all-linear"},
    ),
    Case("fused-3b", {"optimizer": "adamw_torch_fused"}, LONG | {"model": "llama-3.2-3b", "batch_size": 4}),
    Case("int8-7b", {"precision": "int8", "adapter": "lora"}, LONG | {"model": "llama-2-7b", "batch_size": 3}),
    Case("ppo-20b", {"algorithm": "ppo", "adapter": "lora", "precision": "int8"}, TWENTY),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Recorded jobs against the model of the caching allocator.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models")
    parser.add_argument("--only", default="", metavar="CELL,CELL", help=", ".join(case.name for case in CASES))
    parser.add_argument("--done", type=Path, metavar="FILE", help="cells that have a row there are left out")
    parser.add_argument("--recordings", type=Path, metavar="FOLDER", help="where each cell's snapshot goes")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time: none of them is timed")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="each cell's time limit")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the cell's own process, which writes its row into --row
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.jobs < 1 or not chosen.seconds > 0:
        parser.error("--jobs must be at least 1, and --seconds more than 0")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    named = {case.name: case for case in CASES}
    if chosen.one:
        row = observed_row(named[chosen.one], chosen.device == "cuda", chosen.tiny, chosen.recordings)
        chosen.row.write_text(json.dumps(row))
        return 0
    wanted = [name for name in chosen.only.split(",") if name] or list(named)
    for name in wanted:
        if name not in named:
            parser.error(f"no cell {name!r}; there are {', '.join(named)}")
    try:
        done = done_before(chosen.done, "cell", wanted)
    except ValueError as error:
        parser.error(str(error))
    good = all(row.get("exact") for row in done.values())
    for name, row in done.items():
        print(f"{name}: has a row, exact: {row.get('exact')}", file=sys.stderr)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        asked = [pool.submit(row_of, named[name], chosen) for name in wanted if name not in done]
        for answer in as_completed(asked):
            row = answer.result()
            good &= row["exact"] is True
            print(json.dumps(row), flush=True)
    return 0 if good else 1


def row_of(case: Case, chosen: argparse.Namespace) -> dict[str, Any]:
    """A cell's row, from a process of its own; what that process prints goes to stderr."""
    command = [__file__, "--one", case.name, "--device", chosen.device]
    command += ["--tiny"] if chosen.tiny else []
    command += ["--recordings", str(chosen.recordings)] if chosen.recordings else []
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    # The name that every torch from 2.8 on reads.
    environment |= {"PYTORCH_CUDA_ALLOC_CONF": case.conf} if case.conf else {}
    row = row_from(command, chosen.seconds, environment)
    return empty_row(case) | {"error": row} if isinstance(row, str) else row


def empty_row(case: Case) -> dict[str, Any]:
    row: dict[str, Any] = {"cell": case.name, "settings": case.conf}
    row |= dict.fromkeys(("name", "recorded", "predicted", "exact", "moved_entry", "same_end", "began_empty", "events"))
    row |= dict.fromkeys(("simulated", "apart", "simulation_error", "gpu", "error"))
    return row | {"torch": torch.__version__}


def observed_row(case: Case, on_gpu: bool, tiny: bool, recordings: Path | None) -> dict[str, Any]:
    """Runs the cell here: records, replays, and simulates."""
    row = empty_row(case)
    try:
        cell = case.cell(tiny)
        row["name"] = cell.name
        if on_gpu:
            row["gpu"] = torch.cuda.get_device_name(0)
            snapshot, total_bytes = recorded(cell), torch.cuda.get_device_properties(0).total_memory
        else:
            trace = Simulator().run(cell).trace
            snapshot, total_bytes = snapshot_of(fed(trace, AllocatorSettings.parse(case.conf))), None
        if recordings is not None:
            keep_snapshot(snapshot, recordings / f"{case.name}.pickle.gz")
        row |= replayed(snapshot, total_bytes)
    except Exception as error:  # one cell's fault is a row, not the end
        return row | {"error": told(error)}
    try:
        trace = Simulator().run(cell, card_here() if on_gpu else None).trace
        replay = Replay(trace, AllocatorSettings.parse(case.conf))
        row["simulated"] = peaks(replay.requested_bytes, replay.allocated_bytes, replay.reserved_bytes)
        row["apart"] = apart(live_at_peak(requests_of(snapshot)), live_at_peak(requests_in(trace)))
    except Exception as error:
        row["simulation_error"] = told(error)
    return row


def recorded(cell: Cell) -> dict[str, Any]:
    """The snapshot after the job's loading and steps on the GPU, with every request since before it."""
    device = get_device("cuda")
    torch.cuda.init()
    # No stacks: millions of entries are to fit into the host's memory.
    torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=MAX_ENTRIES)
    job = Job(cell, device)
    job.load()
    for index in range(STEPS):  # as many as are simulated
        job.step(index)
    device.synchronize()
    snapshot = torch.cuda.memory._snapshot()
    torch.cuda.memory._record_memory_history(enabled=None)
    entries = max((len(trace) for trace in snapshot["device_traces"]), default=0)
    if not 0 < entries < MAX_ENTRIES:
        raise RuntimeError(f"the history has {entries} entries of at most {MAX_ENTRIES}: not the whole job")
    return snapshot


def fed(trace: Trace, settings: AllocatorSettings) -> Allocator:
    """A recording allocator after a simulated job's requests."""
    allocator, handles = Allocator(settings, record=True), dict[int, int]()
    for event in trace.events:
        if event.kind == ALLOC:
            handles[event.ident] = allocator.malloc(event.nbytes)
        elif event.kind == FREE:
            allocator.free(handles.pop(event.ident))
        elif event.kind == EMPTY:
            allocator.empty_cache()
    return allocator


def replayed(snapshot: dict[str, Any], total_bytes: int | None = None) -> dict[str, Any]:
    """The part of a row that a snapshot of one device gives."""
    (device,) = replay_snapshot(snapshot, total_bytes=total_bytes)
    stats, found = device.predicted, device.recorded
    return {
        "recorded": peaks(found.requested_bytes, found.allocated_bytes, found.reserved_bytes),
        "predicted": peaks(stats.requested.peak, stats.allocated.peak, stats.reserved.peak),
        "exact": device.exact,
        "moved_entry": device.moved_entry,
        "same_end": device.same_end,
        "began_empty": device.began_empty,
        "events": len(snapshot["device_traces"][device.device]),
    }


def requests_of(snapshot: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """What a recorded job asked for, in order: an address and bytes, 0 where it is freed."""
    for entry in next(trace for trace in snapshot["device_traces"] if trace):
        if entry["action"] in ("alloc", "free_completed"):
            yield entry["addr"], entry["size"] if entry["action"] == "alloc" else 0


def requests_in(trace: Trace) -> Iterator[tuple[int, int]]:
    """The same of a simulated job, by ident."""
    for event in trace.events:
        if event.kind in (ALLOC, FREE):
            yield event.ident, event.nbytes if event.kind == ALLOC else 0


def live_at_peak(requests: Iterable[tuple[int, int]]) -> Counter[int]:
    """How many requests of each size were live when the most bytes were."""
    live: dict[int, int] = {}
    total = highest = 0
    at_peak: list[int] = []
    rising = False
    for name, nbytes in requests:
        if nbytes:
            live[name] = nbytes
            total += nbytes
            rising |= total > highest
            highest = max(highest, total)
            continue
        if rising and total == highest:  # the peak is what was there before anything was freed
            at_peak, rising = list(live.values()), False
        total -= live.pop(name, 0)
    return Counter(live.values() if rising and total == highest else at_peak)


def apart(recorded: Counter[int], simulated: Counter[int]) -> dict[str, list[list[int]]]:
    def most(more: Counter[int]) -> list[list[int]]:
        return [[size, count] for size, count in sorted(more.items(), key=lambda one: -one[0] * one[1])[:TOLD]]

    return {"recorded_only": most(recorded - simulated), "simulated_only": most(simulated - recorded)}


def peaks(requested: int, allocated: int, reserved: int) -> dict[str, int]:
    return {"requested_bytes": requested, "allocated_bytes": allocated, "reserved_bytes": reserved}


def keep_snapshot(snapshot: dict[str, Any], file: Path) -> None:
    """Writes the snapshot without its stacks and annotations."""
    plain = snapshot | {"device_traces": [list(without_stacks(trace)) for trace in snapshot["device_traces"]]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(pickle.dumps(plain), compresslevel=6))


def without_stacks(trace: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for entry in trace:
        yield {key: value for key, value in entry.items() if key not in ("frames", "time_us", "compile_context")}


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"


if __name__ == "__main__":
    gc.disable()  # collections would end lives at other times than a simulated job does
    sys.exit(main())
