"""Streams of events through the allocator model, the order of addresses, and the trace that an allocator keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from tests.bench.allocator.made import CONFIGURATIONS, MIB, STEPS, make
from vrambench.bench.allocator import AllocatorSettings, replay
from vrambench.bench.allocator.blocks import Addresses
from vrambench.methods.errors import UnknownValue


def test_falling_addresses_fill_the_lowest_gap_before_they_go_below() -> None:
    allocator = make(falling=True)
    top = Addresses.FIRST

    def place(nbytes: int) -> tuple[int, int]:
        """The new segment's address, in MiB below where addresses begin, and the handle."""
        before = {segment.address for segment in allocator.block_map()}
        handle = allocator.malloc(nbytes)
        (new,) = {segment.address for segment in allocator.block_map()} - before
        return (top - new) // MIB, handle

    assert place(48 * MIB)[0] == 64  # a range of 64 MiB, of which 16 are left behind it
    assert place(1)[0] == 16  # into the gap
    depth, twenty = place(20 * MIB)
    assert depth == 96  # 14 MiB are too few; 12 MiB are left behind it
    assert place(12 * MIB)[0] == 76  # the lowest gap, and all of it
    assert place(32 * MIB)[0] == 128
    allocator.free(twenty)
    allocator.empty_cache()
    assert place(16 * MIB)[0] == 96  # where the 20 MiB were
    assert place(64 * MIB)[0] == 192
    assert place(14 * MIB)[0] == 14  # behind the small segment


def test_a_replay_gives_peaks_and_the_map_at_the_highest_moment() -> None:
    events = [
        ("alloc", 1, 12 * MIB, 0),
        ("alloc", 2, 3 * MIB, 0),
        ("free", 1, 0, 0),
        ("empty_cache", 0, 0, 0),
        ("alloc", 1, 2 * MIB, 0),
    ]
    result = replay(events)
    assert result.stats.reserved == (20 * MIB, 32 * MIB)
    assert result.stats.allocated == (5 * MIB, 15 * MIB)
    assert result.reserved_peak_event == 1
    assert [segment.size for segment in result.block_map] == [12 * MIB, 20 * MIB]
    assert [segment.size for segment in result.final_map] == [20 * MIB]
    assert result.oom is None


def test_a_replay_ends_where_memory_does() -> None:
    result = replay([("alloc", n, 15 * MIB, 0) for n in range(3)] + [("free", 0, 0, 0)], capacity_bytes=40 * MIB)
    assert result.oom is not None
    assert (result.oom.event, result.oom.asked_bytes, result.oom.missing_bytes) == (2, 16 * MIB, 8 * MIB)
    assert result.stats.reserved.peak == 32 * MIB


def test_events_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="event 0: 5 is not in use"):
        replay([("free", 5, 0, 0)])
    with pytest.raises(ValueError, match="event 1: 5 is in use already"):
        replay([("alloc", 5, 1, 0), ("alloc", 5, 1, 0)])
    with pytest.raises(UnknownValue, match="did you mean 'alloc'"):
        replay([("aloc", 5, 1, 0)])


@hypothesis_settings(max_examples=50, deadline=None)
@given(steps=STEPS, configuration=CONFIGURATIONS)
def test_replays_are_deterministic(
    steps: list[tuple[str, int, int]], configuration: tuple[str, dict[str, Any]]
) -> None:
    events = []
    for index, (action, number, stream) in enumerate(steps):
        if action == "alloc":
            events.append(("alloc", index, number, stream))
        elif action == "free" and (used := in_use(events)):
            events.append(("free", used[number % len(used)], 0, 0))
        elif action == "empty":
            events.append(("empty_cache", 0, 0, 0))
    results = [replay(events, AllocatorSettings.parse(configuration[0]), 150 * MIB) for _ in range(2)]
    assert results[0] == results[1]
    assert sum(segment.size for segment in results[0].block_map) == results[0].stats.reserved.peak


def in_use(events: list[tuple[str, int, int, int]]) -> list[int]:
    freed = {event[1] for event in events if event[0] == "free"}
    return [event[1] for event in events if event[0] == "alloc" and event[1] not in freed]


@pytest.fixture
def recorded() -> Callable[[str], list[str]]:
    def actions(text: str) -> list[str]:
        allocator = make(text, record=True)
        allocator.free(allocator.malloc(3 * MIB))
        allocator.empty_cache()
        assert allocator.trace is not None
        return [entry[0] for entry in allocator.trace]

    return actions


def test_a_recorded_trace_has_torchs_actions_in_torchs_order(recorded: Callable[[str], list[str]]) -> None:
    assert recorded("") == ["segment_alloc", "alloc", "free_requested", "free_completed", "segment_free"]
    assert recorded("expandable_segments:True") == [
        "segment_map",
        "alloc",
        "free_requested",
        "free_completed",
        "segment_unmap",
    ]
