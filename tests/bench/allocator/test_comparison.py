"""Recordings replayed in the model: dumps made by hand in torch's form, and dumps that the model writes itself."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.bench.allocator.made import BASE, MIB, dump, entry, segment, whole_recording
from vrambench.bench.allocator import Allocator, AllocatorSettings, DeviceOutOfMemory
from vrambench.bench.allocator.comparison import device_traces, replay_snapshot
from vrambench.bench.allocator.recorded import RecordedPeaks
from vrambench.bench.allocator.snapshot import read_snapshot, snapshot_of
from vrambench.methods.errors import ConfigurationError


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
    large, small = trace.start.segments
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
    assert [(block.size, block.requested) for block in trace.start.segments[0].blocks] == [(20 * MIB, 19 * MIB + 1)]
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


@pytest.mark.parametrize("shown", [True, False])
def test_an_unsplit_tail_is_seen_by_what_is_allocated_behind_it(shown: bool) -> None:
    """Of 20 MiB, 5 took a gap of 5.5 whole; then what followed them was freed, and the recording began."""
    allocator = Allocator(record=True)
    first, second = allocator.malloc(5 * MIB + MIB // 2), allocator.malloc(4 * MIB)
    allocator.free(first)
    kept = allocator.malloc(5 * MIB)
    allocator.free(second)
    held = allocator.block_map()
    assert allocator.trace is not None
    allocator.trace.clear()
    if shown:
        assert allocator.malloc(3 * MIB) == kept + 5 * MIB + MIB // 2
    allocator.free(kept)
    (trace,) = device_traces(snapshot_of(allocator))
    assert trace.start.segments[0].blocks[0].size == 5 * MIB + (MIB // 2 if shown else 0)
    assert (list(trace.start.segments) == held) is shown


def test_an_expandable_segment_may_have_lost_its_front_before_the_recording() -> None:
    """40 MiB of 60 unmapped, then mapped again: the segment begins below all that was mapped when the recording began."""
    allocator = Allocator(AllocatorSettings(expandable_segments=True), record=True)
    handles = [allocator.malloc(20 * MIB) for _ in range(3)]
    allocator.free(handles[0])
    allocator.free(handles[1])
    allocator.empty_cache()
    held = allocator.block_map()
    assert allocator.trace is not None
    allocator.trace.clear()
    assert allocator.malloc(30 * MIB) == handles[0]
    snapshot = snapshot_of(allocator)
    (trace,) = device_traces(snapshot)
    assert list(trace.start.segments) == held
    assert trace.start.region_bases == {(0, False): handles[0]}
    assert replay_snapshot(snapshot)[0].exact


def test_a_trace_that_misses_events_is_refused() -> None:
    snapshot = whole_recording()
    del snapshot["device_traces"][0][5]  # the end of a free, but not its request
    with pytest.raises(ConfigurationError, match=r"entry 4 .* does not agree"):
        device_traces(snapshot)


@pytest.mark.parametrize("says_pools", [True, False])
def test_private_pools_are_left_out_and_told(says_pools: bool) -> None:
    """With and without entries that say which pool they are of. Before the private segment, one of the default pool lay there."""
    private = segment(BASE + 128 * MIB, [(20 * MIB, 3 * MIB, "active_allocated")])
    private["segment_pool_id"] = (0, 1)
    snapshot = whole_recording()
    snapshot["segments"].append(private)
    entries = [
        entry("segment_alloc", BASE + 128 * MIB, 20 * MIB),
        entry("alloc", BASE + 128 * MIB, 3 * MIB),
    ]
    for each in entries if says_pools else ():
        each["pool_id"] = (0, 1)
    earlier = [
        entry("segment_alloc", BASE + 128 * MIB, 2 * MIB),
        entry("segment_free", BASE + 128 * MIB, 2 * MIB),
    ]
    snapshot["device_traces"][0][4:4] = earlier + entries
    (device,) = replay_snapshot(snapshot)
    assert device.left_out == (1, 20 * MIB, 2)
    assert str(device.left_out) == (
        "private pools (CUDA graphs or torch.cuda.MemPool) are left out: 1 segments of 20971520 bytes at the end, "
        "2 entries of the trace"
    )
    assert device.recorded == RecordedPeaks(19 * MIB + 101, 20 * MIB + 512, 24 * MIB)
    (without,) = replay_snapshot(whole_recording())
    assert without.exact
    assert without.left_out is None


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
@given(
    before=STEPS,
    after=STEPS,
    text=st.sampled_from(["", "expandable_segments:True", "max_split_size_mb:24"]),
    capacity=st.sampled_from([None, 120 * MIB]),
)
def test_late_recordings_of_the_model_are_read_back(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]], text: str, capacity: int | None
) -> None:
    """Exact but for what a late recording need not show: a tail that had free memory behind it."""
    allocator = Allocator(AllocatorSettings.parse(text), capacity, record=True)
    handles: list[int] = []
    work(allocator, before, handles)
    held = allocator.block_map()
    assert allocator.trace is not None
    allocator.trace.clear()
    complete = work(allocator, after, handles)
    if not complete and "expandable" in text:
        return
    rounded = allocator.settings.rounded
    unseen = any(
        block.size > rounded(block.requested) and following.state == "inactive"
        for each in held
        for block, following in pairwise(each.blocks)
        if block.state != "inactive"
    )
    for trace in device_traces(snapshot_of(allocator)):
        assert [(each.address, each.size, each.stream, each.pool) for each in trace.start.segments] == [
            (each.address, each.size, each.stream, each.pool) for each in held
        ]
        if not unseen:
            assert list(trace.start.segments) == held
    for device in replay_snapshot(snapshot_of(allocator)):
        assert device.predicted.requested.current == allocator.stats.requested.current
        assert device.exact or unseen
