"""What several tests of the allocator model need: allocators, their figures, and torch's snapshots made by hand."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from vrambench.bench.allocator import Allocator, AllocatorSettings

KIB = 2**10
MIB = 2**20


def make(text: str = "", capacity: int | None = None, **options: Any) -> Allocator:
    return Allocator(AllocatorSettings.parse(text), capacity, **options)


def current(allocator: Allocator) -> tuple[int, int, int, int]:
    stats = allocator.stats
    return stats.requested.current, stats.allocated.current, stats.active.current, stats.reserved.current


def blocks(allocator: Allocator, index: int = 0) -> list[tuple[int, int, str]]:
    return [(block.offset, block.size, block.state) for block in allocator.block_map()[index].blocks]


# Torch's snapshots

BASE = 0x7F0000000000


def entry(action: str, address: int, size: int, stream: int = 0) -> dict[str, Any]:
    key = "device_free" if action == "oom" else "addr"
    return {"action": action, key: address, "size": size, "stream": stream, "time_us": 1, "frames": []}


def segment(
    address: int, blocks: list[tuple[int, int, str]], *, kind: str = "large", stream: int = 0
) -> dict[str, Any]:
    """`blocks`: size, requested size, state."""
    made = []
    at = address
    for size, requested, state in blocks:
        made.append({"address": at, "size": size, "requested_size": requested, "state": state, "frames": []})
        at += size
    return {
        "device": 0,
        "address": address,
        "total_size": at - address,
        "allocated_size": sum(size for size, _, state in blocks if state == "active_allocated"),
        "active_size": sum(size for size, _, state in blocks if state != "inactive"),
        "requested_size": sum(requested for _, requested, _ in blocks),
        "stream": stream,
        "segment_type": kind,
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": made,
    }


def dump(segments: list[dict[str, Any]], *traces: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "segments": segments,
        "device_traces": list(traces),
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": "",
            "max_split_size": -1,
            "garbage_collection_threshold": 0.0,
            "expandable_segments": False,
        },
        "external_annotations": [],
    }


def whole_recording() -> dict[str, Any]:
    """3 MiB at the front of a segment of 20, 100 B in one of 2; the 3 MiB freed, 19 MiB + 1 put in their place, whole."""
    return dump(
        [
            segment(BASE, [(20 * MIB, 19 * MIB + 1, "active_allocated")]),
            segment(BASE + 64 * MIB, [(512, 100, "active_allocated"), (2 * MIB - 512, 0, "inactive")], kind="small"),
        ],
        [
            entry("segment_alloc", BASE, 20 * MIB),
            entry("alloc", BASE, 3 * MIB),
            entry("segment_alloc", BASE + 64 * MIB, 2 * MIB),
            entry("alloc", BASE + 64 * MIB, 100),
            entry("free_requested", BASE, 3 * MIB),
            entry("free_completed", BASE, 3 * MIB),
            entry("snapshot", 0, 0),
            entry("alloc", BASE, 19 * MIB + 1),
        ],
    )


# Steps


SIZES = st.one_of(
    st.integers(1, 4 * KIB),
    st.integers(1, 2 * MIB),
    st.integers(MIB - 600, MIB + 600),
    st.integers(MIB, 25 * MIB),
    st.sampled_from([512, MIB, 2 * MIB, 5 * MIB, 10 * MIB, 19 * MIB, 20 * MIB]),
    st.integers(20 * MIB, 90 * MIB),
)
STEP = st.one_of(
    st.tuples(st.just("alloc"), SIZES, st.sampled_from([0, 0, 0, 1])),
    st.tuples(st.just("alloc"), SIZES, st.sampled_from([0, 0, 0, 1])),
    st.tuples(st.just("free"), st.integers(0, 1000), st.just(0)),
    st.tuples(st.just("record"), st.integers(0, 1000), st.integers(0, 2)),
    st.tuples(st.just("synchronize"), st.just(0), st.integers(0, 2)),
    st.tuples(st.just("empty"), st.just(0), st.just(0)),
)
STEPS = st.lists(STEP, max_size=60)
CONFIGURATIONS = st.sampled_from(
    [
        ("", {}),
        ("expandable_segments:True", {"expandable": True}),
        ("max_split_size_mb:24", {"max_split": 24 * MIB}),
        ("max_split_size_mb:24,expandable_segments:True", {"max_split": 24 * MIB, "expandable": True}),
        ("large_segment_size_mb:32", {"large_segment": 32 * MIB}),
        (
            "large_segment_size_mb:12,expandable_segments:True,max_non_split_rounding_mb:25,max_split_size_mb:40",
            {"large_segment": 12 * MIB, "expandable": True, "non_split_rounding": 25 * MIB, "max_split": 40 * MIB},
        ),
    ]
)
LIMITS = st.sampled_from([(None, None), (200 * MIB, None), (64 * MIB, None), (None, 150 * MIB), (103 * MIB, 90 * MIB)])
