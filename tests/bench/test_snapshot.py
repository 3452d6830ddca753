"""Reading recordings of CUDA's allocator: dumps made by hand in torch's form, and dumps that the model writes itself.

The form is that of `torch.cuda.memory._snapshot()` (its docstring, and torch/cuda/_memory_viz.py, whose own readers are run here
on what we write).
"""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.cuda import _memory_viz

from vrambench.bench.allocator import Allocator, AllocatorSettings, DeviceOutOfMemory
from vrambench.bench.allocator.recorded import RecordedPeaks
from vrambench.bench.allocator.snapshot import device_traces, read_snapshot, replay_snapshot, settings_of, snapshot_of
from vrambench.methods.errors import ConfigurationError

MIB = 2**20
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


def test_a_whole_recording_is_reproduced() -> None:
    (device,) = replay_snapshot(whole_recording())
    assert device.exact
    assert device.began_empty
    # at the end: 19 MiB + 1 + 100 B asked for, 20 MiB + 512 B handed out, 22 MiB reserved
    assert device.recorded == RecordedPeaks(19 * MIB + 101, 20 * MIB + 512, 22 * MIB)
    assert device.predicted.allocated.peak == 20 * MIB + 512


@pytest.mark.parametrize("begin", [2, 4, 6, 7, 8])
def test_a_recording_may_begin_late(begin: int) -> None:
    snapshot = whole_recording()
    del snapshot["device_traces"][0][:begin]
    (device,) = replay_snapshot(snapshot)
    assert device.exact
    assert not device.began_empty
    assert device.recorded.reserved_bytes == 22 * MIB


def test_what_was_there_is_worked_out_backwards() -> None:
    snapshot = whole_recording()
    del snapshot["device_traces"][0][:4]
    (trace,) = device_traces(snapshot)
    large, small = trace.start
    assert [(block.offset, block.size, block.requested, block.state) for block in large.blocks] == [
        (0, 3 * MIB, 3 * MIB, "active_allocated"),  # freed in the recording
        (3 * MIB, 17 * MIB, 0, "inactive"),
    ]
    assert [block.requested for block in small.blocks] == [100, 0]


def test_a_tail_that_was_never_split_off_belongs_to_its_block() -> None:
    snapshot = dump(
        [segment(BASE, [(20 * MIB, 0, "inactive")])],
        [entry("free_requested", BASE, 19 * MIB + 1), entry("free_completed", BASE, 19 * MIB + 1)],
    )
    (trace,) = device_traces(snapshot)
    assert [(block.size, block.requested) for block in trace.start[0].blocks] == [(20 * MIB, 19 * MIB + 1)]
    assert replay_snapshot(snapshot)[0].exact


def test_segments_that_were_freed_in_the_recording_were_there_before() -> None:
    snapshot = dump(
        [],
        [
            entry("free_requested", BASE, 12 * MIB),
            entry("free_completed", BASE, 12 * MIB),
            entry("segment_free", BASE, 12 * MIB),
            entry("segment_free", BASE + 64 * MIB, 2 * MIB, stream=5),
        ],
    )
    (device,) = replay_snapshot(snapshot)
    assert device.exact
    assert device.recorded == RecordedPeaks(12 * MIB, 12 * MIB, 14 * MIB)


def test_a_block_that_waits_for_another_stream_stays_active() -> None:
    snapshot = dump(
        [segment(BASE, [(4 * MIB, 4 * MIB, "active_awaiting_free"), (16 * MIB, 0, "inactive")])],
        [
            entry("segment_alloc", BASE, 20 * MIB),
            entry("alloc", BASE, 4 * MIB),
            entry("free_requested", BASE, 4 * MIB),
            entry("alloc", BASE + 4 * MIB, 2 * MIB),
            entry("free_requested", BASE + 4 * MIB, 2 * MIB),
            entry("free_completed", BASE + 4 * MIB, 2 * MIB),
        ],
    )
    (device,) = replay_snapshot(snapshot)
    assert device.exact
    assert device.predicted.active.peak == 6 * MIB
    assert device.predicted.allocated == (0, 4 * MIB)
    assert device.recorded.requested_bytes == 6 * MIB


def test_free_requests_may_have_been_left_out_of_the_recording() -> None:
    snapshot = whole_recording()
    trace = snapshot["device_traces"][0]
    trace[:] = [each for each in trace if each["action"] != "free_requested"]
    assert replay_snapshot(snapshot)[0].exact


def test_a_free_may_have_been_asked_for_before_the_recording() -> None:
    snapshot = dump(
        [segment(BASE, [(20 * MIB, 0, "inactive")])],
        [
            entry("free_completed", BASE, 4 * MIB),
            entry("alloc", BASE, MIB * 2),
            *[entry(action, BASE, MIB * 2) for action in ("free_requested", "free_completed")],
        ],
    )
    (device,) = replay_snapshot(snapshot)
    assert device.exact
    assert device.predicted.allocated.peak == 2 * MIB  # the 4 MiB were waiting, no longer allocated
    assert device.predicted.active.peak == 4 * MIB


def test_another_address_or_a_larger_segment_is_noticed() -> None:
    moved = whole_recording()
    moved["device_traces"][0][3]["addr"] += 512  # the small block, second in its segment instead of first
    moved["segments"][1]["blocks"][0]["state"] = "inactive"
    moved["segments"][1]["blocks"][0]["requested_size"] = 0
    moved["segments"][1]["blocks"].insert(1, {"size": 512, "requested_size": 100, "state": "active_allocated"})
    moved["segments"][1]["blocks"][2]["size"] -= 512
    (device,) = replay_snapshot(moved)
    assert (device.moved_entry, device.same_end, device.exact) == (3, False, False)

    larger = whole_recording()
    larger["device_traces"][0][0]["size"] = 24 * MIB
    larger["segments"][0] = segment(
        BASE, [(24 * MIB - 5 * MIB + 512, 19 * MIB + 1, "active_allocated"), (5 * MIB - 512, 0, "inactive")]
    )
    (device,) = replay_snapshot(larger)
    assert device.recorded.reserved_bytes == 26 * MIB
    assert device.predicted.reserved.peak == 22 * MIB
    assert not device.exact


def test_every_device_is_read_by_itself() -> None:
    snapshot = whole_recording()
    second = copy.deepcopy(snapshot)
    for each in second["segments"]:
        each["device"] = 2
    snapshot["segments"] += second["segments"]
    snapshot["device_traces"] += [[], second["device_traces"][0]]
    devices = replay_snapshot(snapshot)
    assert [device.device for device in devices] == [0, 2]
    assert all(device.exact for device in devices)


def test_settings_come_from_the_snapshot() -> None:
    snapshot = whole_recording()
    assert settings_of(snapshot) == AllocatorSettings()
    snapshot["allocator_settings"] |= {
        "PYTORCH_CUDA_ALLOC_CONF": "roundup_power2_divisions:4",
        "max_split_size": 64 * MIB,
        "expandable_segments": True,
    }
    assert settings_of(snapshot) == AllocatorSettings(
        roundup_power2_divisions=(4,) * 16, max_split_bytes=64 * MIB, expandable_segments=True
    )
    del snapshot["allocator_settings"]
    assert settings_of(snapshot) == AllocatorSettings()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "expandable_segments:True",
        "large_segment_size_mb:32,max_split_size_mb:64,max_non_split_rounding_mb:40",
        "roundup_power2_divisions:[64:8,256:4,>:1],garbage_collection_threshold:0.5,per_process_memory_fraction:0.5",
    ],
)
def test_settings_are_written_as_they_are_read(text: str) -> None:
    settings = AllocatorSettings.parse(text)
    assert AllocatorSettings.parse(settings.text()) == settings


# What is refused


def test_private_pools_are_refused() -> None:
    snapshot = whole_recording()
    snapshot["segments"][0]["segment_pool_id"] = (0, 1)
    with pytest.raises(ConfigurationError, match="private pools"):
        device_traces(snapshot)
    snapshot = whole_recording()
    snapshot["device_traces"][0][1]["pool_id"] = (0, 1)
    with pytest.raises(ConfigurationError, match="private pools"):
        device_traces(snapshot)


def test_a_trace_that_misses_events_is_refused() -> None:
    snapshot = whole_recording()
    del snapshot["device_traces"][0][5]  # the end of a free, but not its request
    with pytest.raises(ConfigurationError, match=r"entry 4 .* does not agree"):
        device_traces(snapshot)


def test_unknown_actions_and_states_are_named() -> None:
    snapshot = whole_recording()
    snapshot["device_traces"][0][0]["action"] = "segment_allocate"
    with pytest.raises(ConfigurationError, match="did you mean 'segment_alloc'"):
        device_traces(snapshot)
    snapshot = whole_recording()
    snapshot["segments"][0]["blocks"][0]["state"] = "active"
    with pytest.raises(ConfigurationError, match="'active' is not one of"):
        device_traces(snapshot)


def test_a_dump_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "job.pickle"
    path.write_bytes(pickle.dumps(whole_recording()))
    assert replay_snapshot(read_snapshot(path))[0].exact


class Evil:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (run_me, ())


def run_me() -> None:
    Evil.ran = True


def test_a_pickle_that_would_run_something_does_not() -> None:
    data = pickle.dumps(whole_recording() | {"external_annotations": [Evil()]})
    with pytest.raises(ConfigurationError, match="only plain containers"):
        read_snapshot(data)
    assert not Evil.ran
    pickle.loads(data)
    assert Evil.ran, "it would have"


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps([1, 2]), pickle.dumps({"segments": []})])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match="snapshot: "):
        read_snapshot(data)


# Dumps that the model writes


SIZES = st.one_of(st.integers(1, 2 * MIB), st.integers(MIB, 30 * MIB), st.sampled_from([512, MIB, 19 * MIB, 20 * MIB]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), SIZES, st.sampled_from([0, 0, 9])),
        st.tuples(st.just("alloc"), SIZES, st.sampled_from([0, 0, 9])),
        st.tuples(st.sampled_from(["free", "free", "record"]), st.integers(0, 1000), st.sampled_from([0, 9, 11])),
        st.tuples(st.sampled_from(["synchronize", "empty"]), st.just(0), st.just(9)),
    ),
    max_size=60,
)


def work(allocator: Allocator, steps: list[tuple[str, int, int]], handles: list[int] | None = None) -> bool:
    """False if memory ran out on the way. `handles` are those in use, before and after."""
    handles = [] if handles is None else handles
    complete = True
    for action, number, stream in steps:
        if action == "alloc":
            try:
                handles.append(allocator.malloc(number, stream))
            except DeviceOutOfMemory:
                complete = False
        elif action == "synchronize":
            allocator.synchronize(stream)
        elif action == "empty":
            allocator.empty_cache()
        elif handles and action == "free":
            allocator.free(handles.pop(number % len(handles)))
        elif handles:
            allocator.record_stream(handles[number % len(handles)], stream)
    return complete


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    steps=STEPS,
    text=st.sampled_from(
        [
            "",
            "",
            "expandable_segments:True",
            "max_split_size_mb:24",
            "roundup_power2_divisions:8,large_segment_size_mb:40",
        ]
    ),
    capacity=st.sampled_from([None, 120 * MIB, 60 * MIB]),
)
def test_what_the_model_did_is_read_back_exactly(
    steps: list[tuple[str, int, int]], text: str, capacity: int | None
) -> None:
    allocator = Allocator(AllocatorSettings.parse(text), capacity, record=True)
    complete = work(allocator, steps)
    if not complete and "expandable" in text:
        return  # what a failed growth had mapped already is no answer to a request
    (device,) = replay_snapshot(read_snapshot(pickle.dumps(snapshot_of(allocator)))) or [None]
    if device is None:
        assert not allocator.trace
        return
    stats = allocator.stats
    assert device.recorded == RecordedPeaks(stats.requested.peak, stats.allocated.peak, stats.reserved.peak)
    assert device.exact
    assert device.at_peak or not stats.reserved.peak


@hypothesis_settings(max_examples=200, deadline=None)
@given(before=STEPS, after=STEPS, capacity=st.sampled_from([None, 120 * MIB]))
def test_late_recordings_of_the_model_are_read_back(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]], capacity: int | None
) -> None:
    """Exact but for the one thing that a late recording does not show: a tail that had free memory behind it."""
    allocator = Allocator(None, capacity, record=True)
    handles: list[int] = []
    work(allocator, before, handles)
    held = allocator.block_map()
    assert allocator.trace is not None
    allocator.trace.clear()
    work(allocator, after, handles)
    rounded = allocator.settings.rounded
    unseen = any(
        block.size > rounded(block.requested) and following.state == "inactive"
        for each in held
        for block, following in pairwise(each.blocks)
        if block.state != "inactive"
    )
    for trace in device_traces(snapshot_of(allocator)):
        assert [(each.address, each.size, each.stream, each.pool) for each in trace.start] == [
            (each.address, each.size, each.stream, each.pool) for each in held
        ]
        if not unseen:
            assert list(trace.start) == held
    for device in replay_snapshot(snapshot_of(allocator)):
        assert device.predicted.requested.current == allocator.stats.requested.current
        assert device.exact or unseen


def test_torchs_own_readers_take_what_we_write() -> None:
    allocator = Allocator(record=True)
    kept = [allocator.malloc(size) for size in (100, 5 * MIB, 30 * MIB)]
    allocator.free(kept[1])
    snapshot = snapshot_of(allocator, device=1)
    assert "total_reserved: 52.0MiB" in _memory_viz.segsum(snapshot)
    assert "cudaMalloc" in _memory_viz.trace(snapshot)
    assert "raise OutOfMemoryError" not in _memory_viz.trace(snapshot)
    assert [device.device for device in replay_snapshot(snapshot)] == [1]
