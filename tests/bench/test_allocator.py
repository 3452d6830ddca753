"""The allocator model: cases worked by hand, properties, and a plain second implementation event by event.

The rules are those of torch's c10/cuda/CUDACachingAllocator.cpp; the arithmetic of each case stands in its comment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.bench.naive_allocator import NaiveAllocator, NoMemory
from vrambench.bench.allocator import Allocator, AllocatorSettings, DeviceOutOfMemory, replay
from vrambench.bench.allocator.blocks import Addresses
from vrambench.methods.errors import ConfigurationError, UnknownValue

KIB = 2**10
MIB = 2**20


def make(text: str = "", capacity: int | None = None, **options: Any) -> Allocator:
    return Allocator(AllocatorSettings.parse(text), capacity, **options)


def current(allocator: Allocator) -> tuple[int, int, int, int]:
    stats = allocator.stats
    return stats.requested.current, stats.allocated.current, stats.active.current, stats.reserved.current


def blocks(allocator: Allocator, index: int = 0) -> list[tuple[int, int, str]]:
    return [(block.offset, block.size, block.state) for block in allocator.block_map()[index].blocks]


# Sizes


@pytest.mark.parametrize(
    ("asked", "block"),
    [(1, 512), (512, 512), (513, 1024), (1000, 1024), (MIB, MIB), (MIB + 1, MIB + 512)],
)
def test_requests_are_rounded_up_to_512_bytes(asked: int, block: int) -> None:
    assert AllocatorSettings().rounded(asked) == block
    if asked <= MIB:  # a large block would take its tail of less than 1 MiB along
        allocator = make()
        allocator.malloc(asked)
        assert allocator.stats.allocated.current == block


@pytest.mark.parametrize(
    ("asked", "segment"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),  # the small pool, inclusive
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),  # the last below 10 MiB
        (10 * MIB - 511, 10 * MIB),  # rounds up to 10 MiB, and from there on a segment is its own
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (33 * MIB, 34 * MIB),
    ],
)
def test_segments(asked: int, segment: int) -> None:
    allocator = make()
    allocator.malloc(asked)
    assert allocator.stats.reserved.current == segment


def test_nothing_for_zero_bytes_and_no_sense_below() -> None:
    allocator = make()
    assert allocator.malloc(0) == 0
    allocator.free(0)
    allocator.record_stream(0, 1)
    assert current(allocator) == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="-1 bytes"):
        allocator.malloc(-1)


def test_a_large_segments_size_can_be_set() -> None:
    allocator = make("large_segment_size_mb:32")
    allocator.malloc(3 * MIB)
    assert blocks(allocator) == [(0, 3 * MIB, "active_allocated"), (3 * MIB, 29 * MIB, "inactive")]


# Splitting and fit


def test_the_front_is_handed_out_and_the_rest_cached() -> None:
    allocator = make()
    first, second = allocator.malloc(1), allocator.malloc(600)
    assert second == first + 512
    assert blocks(allocator) == [
        (0, 512, "active_allocated"),
        (512, 1024, "active_allocated"),
        (1536, 2 * MIB - 1536, "inactive"),
    ]
    # 601 asked for, 1536 handed out, of 2 MiB
    assert current(allocator) == (601, 1536, 1536, 2 * MIB)
    assert allocator.rounding_bytes == 935
    assert allocator.fragmentation_bytes == 2 * MIB - 1536


@pytest.mark.parametrize(
    ("asked", "block"),
    [
        (19 * MIB, 20 * MIB),  # asked of its own 20 MiB segment: 1 MiB left over is not more than 1 MiB
        (19 * MIB - 512, 19 * MIB - 512),  # 1 MiB + 512 B left over: split
        (19 * MIB + 512, 20 * MIB),  # less left over
    ],
)
def test_a_large_block_is_split_only_for_more_than_one_mebibyte(asked: int, block: int) -> None:
    allocator = make()
    allocator.malloc(asked)
    assert allocator.stats.allocated.current == block
    assert allocator.stats.reserved.current == 20 * MIB


def test_a_small_block_is_split_for_512_bytes() -> None:
    allocator = make()
    allocator.malloc(MIB)
    allocator.malloc(MIB - 512)
    # 2 MiB - (2 MiB - 512) = 512 left over: a block of its own
    assert blocks(allocator)[-1] == (2 * MIB - 512, 512, "inactive")
    allocator.malloc(512)
    assert allocator.stats.reserved.current == 2 * MIB


def test_best_fit_takes_the_smallest_that_is_large_enough() -> None:
    allocator = make()
    kept = [allocator.malloc(size * KIB) for size in (100, 1, 50, 1, 80, 1)]
    for index in (0, 2, 4):
        allocator.free(kept[index])
    # holes of 100, 50 and 80 KiB: 60 KiB goes to the one of 80
    assert allocator.malloc(60 * KIB) == kept[4]


def test_among_equals_the_lowest_address_is_taken() -> None:
    allocator = make()
    kept = [allocator.malloc(4 * KIB) for _ in range(6)]
    allocator.free(kept[3])
    allocator.free(kept[1])
    assert allocator.malloc(4 * KIB) == kept[1]
    assert allocator.malloc(4 * KIB) == kept[3]


def test_the_pools_are_apart() -> None:
    allocator = make()
    allocator.free(allocator.malloc(5 * MIB))
    allocator.malloc(MIB)
    # 20 MiB are cached, but a request of 1 MiB is small and gets a segment of the small pool
    assert allocator.stats.reserved.current == 22 * MIB


# Freeing


def test_free_neighbours_merge() -> None:
    allocator = make()
    first, second, third = (allocator.malloc(512) for _ in range(3))
    allocator.free(first)
    allocator.free(third)
    assert blocks(allocator) == [
        (0, 512, "inactive"),
        (512, 512, "active_allocated"),
        (1024, 2 * MIB - 1024, "inactive"),  # the third with what was never used
    ]
    allocator.free(second)
    assert blocks(allocator) == [(0, 2 * MIB, "inactive")]


def test_memory_stays_reserved_until_the_cache_is_emptied() -> None:
    allocator = make()
    whole, part = allocator.malloc(12 * MIB), allocator.malloc(3 * MIB)
    allocator.free(whole)
    assert allocator.stats.reserved.current == 32 * MIB
    allocator.empty_cache()
    # the segment of 12 MiB is wholly free, that of 20 MiB holds 3 MiB
    assert allocator.stats.reserved.current == 20 * MIB
    allocator.free(part)
    allocator.empty_cache()
    assert current(allocator) == (0, 0, 0, 0)
    assert allocator.block_map() == []


def test_freeing_twice_is_an_error() -> None:
    allocator = make()
    handle = allocator.malloc(10)
    allocator.free(handle)
    with pytest.raises(ValueError, match="no block in use"):
        allocator.free(handle)


def test_peaks_per_phase() -> None:
    allocator = make()
    handle = allocator.malloc(30 * MIB)
    allocator.free(handle)
    allocator.reset_peaks()
    assert allocator.stats.allocated == (0, 0)
    assert allocator.stats.reserved == (30 * MIB, 30 * MIB)
    allocator.malloc(8 * MIB)
    # taken from the cached 30 MiB
    assert allocator.stats.allocated == (8 * MIB, 8 * MIB)
    assert allocator.stats.reserved == (30 * MIB, 30 * MIB)


# Streams


def test_a_block_belongs_to_its_stream() -> None:
    allocator = make()
    allocator.free(allocator.malloc(512, stream=1))
    allocator.malloc(512, stream=2)
    assert [(segment.stream, segment.size) for segment in allocator.block_map()] == [(1, 2 * MIB), (2, 2 * MIB)]


def test_a_block_used_on_another_stream_waits_until_a_malloc_sees_its_event_done() -> None:
    allocator = make()
    handle = allocator.malloc(1000)
    allocator.record_stream(handle, 7)
    allocator.free(handle)
    # no longer allocated, but active, and requested is counted with active
    assert current(allocator) == (1000, 0, 1024, 2 * MIB)
    assert blocks(allocator)[0] == (0, 1024, "active_pending_free")
    assert allocator.malloc(512) == handle + 1024, "not reused while it waits"
    allocator.synchronize(7)
    assert current(allocator)[2] == 1024 + 512, "done, but nobody has looked"
    assert allocator.malloc(1024) == handle


def test_all_streams_must_be_done() -> None:
    allocator = make()
    handle = allocator.malloc(1000)
    for stream in (0, 3, 4):  # 0 is its own and needs no event
        allocator.record_stream(handle, stream)
    allocator.free(handle)
    allocator.synchronize(3)
    allocator.malloc(512)
    assert blocks(allocator)[0][2] == "active_pending_free"
    allocator.synchronize()
    allocator.malloc(512)
    assert blocks(allocator)[0] == (0, 512, "active_allocated")


def test_emptying_the_cache_waits_for_every_stream() -> None:
    allocator = make()
    handle = allocator.malloc(1000)
    allocator.record_stream(handle, 7)
    allocator.free(handle)
    allocator.empty_cache()
    assert current(allocator) == (0, 0, 0, 0)


# Out of memory


def test_cached_segments_go_back_to_the_driver_before_memory_is_out() -> None:
    allocator = make(capacity=30 * MIB)
    allocator.free(allocator.malloc(16 * MIB))
    allocator.malloc(20 * MIB)
    # 16 + 20 > 30, so the cached 16 MiB are freed and the driver asked again
    assert allocator.stats.num_alloc_retries == 1
    assert allocator.stats.reserved == (20 * MIB, 20 * MIB)


def test_out_of_memory_says_what_was_missing_and_leaves_everything_usable() -> None:
    allocator = make(capacity=30 * MIB)
    kept = allocator.malloc(3 * MIB)
    before = allocator.block_map()
    with pytest.raises(DeviceOutOfMemory) as caught:
        allocator.malloc(11 * MIB, stream=2)
    # 20 MiB are reserved and not wholly free; 11 MiB round up to a segment of 12: 32 MiB, 2 more than there are
    assert (caught.value.requested_bytes, caught.value.asked_bytes, caught.value.missing_bytes) == (
        11 * MIB,
        12 * MIB,
        2 * MIB,
    )
    assert allocator.block_map() == before
    assert (allocator.stats.num_alloc_retries, allocator.stats.num_ooms) == (1, 1)
    allocator.free(kept)
    allocator.malloc(11 * MIB)  # from the same segment


def test_the_segment_counts_against_the_capacity_not_the_request() -> None:
    allocator = make(capacity=19 * MIB)
    with pytest.raises(DeviceOutOfMemory) as caught:
        allocator.malloc(2 * MIB)
    assert (caught.value.asked_bytes, caught.value.missing_bytes) == (20 * MIB, MIB)


def test_a_memory_fraction_caps_as_the_capacity_does() -> None:
    assert make("per_process_memory_fraction:0.25", 80 * MIB).allowed_bytes == 20 * MIB
    allocator = make(capacity=80 * MIB, allowed_bytes=20 * MIB)
    allocator.malloc(3 * MIB)
    with pytest.raises(DeviceOutOfMemory):
        allocator.malloc(512)
    with pytest.raises(ConfigurationError, match="needs the capacity"):
        make("per_process_memory_fraction:0.25")


def test_the_fraction_is_compared_with_a_segment_even_where_segments_grow() -> None:
    allocator = make("expandable_segments:True", allowed_bytes=39 * MIB)
    allocator.malloc(19 * MIB)  # maps 20 MiB
    allocator.malloc(MIB)  # small pool: 2 MiB more
    with pytest.raises(DeviceOutOfMemory) as caught:
        allocator.malloc(2 * MIB)
    # 1 MiB is left of the granule and another of 20 MiB would be mapped; 22 + 20 > 39
    assert caught.value.missing_bytes == 3 * MIB


# Options


def test_divisions_of_powers_of_two() -> None:
    settings = AllocatorSettings.parse("roundup_power2_divisions:4")
    # 1200 B is not more than 512 * 4: plain rounding
    assert settings.rounded(1200) == 1536
    # 1200 KiB lies between 1024 and 2048 KiB, whose quarters are 1024, 1280, 1536, 1792
    assert settings.rounded(1200 * KIB) == 1280 * KIB
    assert settings.rounded(1280 * KIB) == 1280 * KIB
    assert settings.rounded(2048 * KIB) == 2048 * KIB


def test_divisions_per_interval() -> None:
    settings = AllocatorSettings.parse("roundup_power2_divisions: [64:8, 256:4, >:1]")
    # up to and including the interval of 64 MiB (64 to 128) 8, that of 128 was not named: 0, that of 256 4, above: 1
    assert settings.roundup_power2_divisions == (8,) * 7 + (0, 4) + (1,) * 7
    assert settings.rounded(65 * MIB) == 72 * MIB
    assert settings.rounded(129 * MIB) == 129 * MIB
    assert settings.rounded(257 * MIB) == 320 * MIB
    assert settings.rounded(513 * MIB) == 513 * MIB


def test_blocks_of_the_maximum_and_more_are_not_split() -> None:
    allocator = make("max_split_size_mb:32")
    allocator.free(allocator.malloc(60 * MIB))
    allocator.malloc(5 * MIB)
    # the cached 60 MiB do not serve 5 MiB: a new segment of 20
    assert allocator.stats.reserved.current == 80 * MIB
    allocator.malloc(40 * MIB)
    # 60 >= 40 + 20: too much larger
    assert allocator.stats.reserved.current == 120 * MIB
    allocator.malloc(42 * MIB)
    # 60 < 42 + 20: the whole block
    assert allocator.stats.reserved.current == 120 * MIB
    assert allocator.stats.allocated.current == (5 + 40 + 60) * MIB


def test_a_block_of_just_the_maximum_is_too_large_to_split() -> None:
    allocator = make("max_split_size_mb:32")
    allocator.free(allocator.malloc(32 * MIB))
    allocator.malloc(12 * MIB)
    # 12 < 32 <= 32: a segment of its own
    assert allocator.stats.reserved.current == 44 * MIB
    allocator.malloc(32 * MIB)
    # 32 is not less than the maximum: the cached block
    assert allocator.stats.reserved.current == 44 * MIB


def test_the_rounding_of_unsplit_blocks_can_be_set() -> None:
    allocator = make("max_split_size_mb:32,max_non_split_rounding_mb:30")
    allocator.free(allocator.malloc(60 * MIB))
    allocator.malloc(40 * MIB)
    assert allocator.stats.reserved.current == 60 * MIB  # 60 < 40 + 30


def test_with_a_maximum_one_large_cached_block_goes_first() -> None:
    allocator = make("max_split_size_mb:32", capacity=200 * MIB)
    handles = [allocator.malloc(size * MIB) for size in (90, 60, 12)]
    for handle in handles:
        allocator.free(handle)
    allocator.malloc(70 * MIB)
    # 162 + 70 > 200 (90 >= 70 + 20 serves nobody): 90 is the smallest cached block of 70 and more, and going without a retry
    assert allocator.stats.reserved.current == (60 + 12 + 70) * MIB
    assert allocator.stats.num_alloc_retries == 0


def test_with_a_maximum_the_largest_cached_blocks_go_until_they_suffice() -> None:
    allocator = make("max_split_size_mb:32", capacity=160 * MIB)
    for handle in [allocator.malloc(size * MIB) for size in (40, 60, 50)]:
        allocator.free(handle)
    allocator.malloc(100 * MIB)
    # no block of 100: 60 and then 50 go, 110 in all; 40 stays
    assert allocator.stats.reserved.current == 140 * MIB
    assert allocator.stats.num_alloc_retries == 0


def test_reading_options() -> None:
    read = AllocatorSettings.parse(
        "max_split_size_mb:64, expandable_segments:False,backend:native,pinned_use_background_threads:True,"
        "garbage_collection_threshold:0.8,large_segment_size_mb:24,max_non_split_rounding_mb:30"
    )
    assert read == AllocatorSettings(
        max_split_bytes=64 * MIB,
        garbage_collection_threshold=0.8,
        large_segment_bytes=24 * MIB,
        max_non_split_rounding_bytes=30 * MIB,
    )
    assert AllocatorSettings.parse("") == AllocatorSettings()
    assert AllocatorSettings.parse("expandable_segments:True,expandable_segments:False") == AllocatorSettings()


def test_the_older_variable_is_read_first() -> None:
    environment = {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert AllocatorSettings.from_environment(environment) == AllocatorSettings(expandable_segments=True)
    assert AllocatorSettings.from_environment({}) == AllocatorSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expandable_segment:True", "did you mean 'expandable_segments'"),
        ("expandable_segments:yes", "'yes' is not one of True, False"),
        ("max_split_size_mb:19", "the least is 20"),
        ("large_segment_size_mb:30,max_split_size_mb:29", "the least is 30"),
        ("large_segment_size_mb:10", "more than 10"),
        ("max_split_size_mb", "a value is missing"),
        ("max_split_size_mb:1.5", "'1.5' is not a whole number"),
        ("roundup_power2_divisions:3", "3 is not a power of two"),
        ("roundup_power2_divisions:[256:1", r"the closing bracket '\]' is missing"),
        ("roundup_power2_divisions:[256]", "'256' is not of the form"),
        ("garbage_collection_threshold:1.5", "not between 0 and 1"),
        ("backend:cudaMallocAsync", "'cudaMallocAsync' is not one of native"),
    ],
)
def test_mistakes_in_options_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        AllocatorSettings.parse(text)


def test_garbage_collection_by_age_is_refused_where_it_would_matter() -> None:
    make("garbage_collection_threshold:0.8", 100 * MIB)  # without a fraction torch does not collect
    with pytest.raises(ConfigurationError, match="does not follow"):
        make("garbage_collection_threshold:0.8", allowed_bytes=100 * MIB)


# Expandable segments


def test_one_segment_grows_by_granules() -> None:
    allocator = make("expandable_segments:True")
    first, second, third = allocator.malloc(15 * MIB), allocator.malloc(15 * MIB), allocator.malloc(700 * KIB)
    # 15 MiB map one granule of 20; 5 are left, 10 more need another: 40. Small: one granule of 2 MiB
    assert second == first + 15 * MIB
    assert [(segment.size, segment.pool, segment.expandable) for segment in allocator.block_map()] == [
        (40 * MIB, "large", True),
        (2 * MIB, "small", True),
    ]
    assert third not in (first, second)
    # 40 - 30 MiB are left over
    assert blocks(allocator)[-1] == (30 * MIB, 10 * MIB, "inactive")


def test_a_request_over_what_is_left_uses_what_is_left() -> None:
    allocator = make("expandable_segments:True")
    allocator.malloc(18 * MIB)
    allocator.malloc(45 * MIB)
    # 2 MiB left + 43 more = 3 granules: 80 MiB in all, where cudaMalloc would have taken 18 + 46
    assert allocator.stats.reserved.current == 80 * MIB
    assert allocator.stats.allocated.current == 63 * MIB


def test_only_whole_granules_are_unmapped() -> None:
    allocator = make("expandable_segments:True")
    handles = [allocator.malloc(15 * MIB) for _ in range(4)]  # 60 MiB: three granules, exactly
    assert allocator.stats.reserved.current == 60 * MIB
    allocator.free(handles[1])
    allocator.free(handles[2])
    allocator.empty_cache()
    # 15 to 45 MiB is free; of the granules 0-20, 20-40, 40-60 only the second lies inside
    ranges = [(segment.address - handles[0], segment.size) for segment in allocator.block_map()]
    assert ranges == [(0, 20 * MIB), (40 * MIB, 20 * MIB)]
    assert allocator.stats.reserved.current == 40 * MIB
    # the gap is filled first: 12 MiB begin at 15, in what is left of the first granule
    assert allocator.malloc(12 * MIB) == handles[1]
    assert allocator.stats.reserved.current == 60 * MIB


def test_best_fit_counts_what_a_block_can_grow_to() -> None:
    allocator = make("expandable_segments:True")
    first, _, _ = allocator.malloc(8 * MIB), allocator.malloc(2 * MIB), allocator.malloc(4 * MIB)
    # 14 of 20 MiB used; 6 at the end can grow. 8 MiB in front are free:
    allocator.free(first)
    # 5 MiB would fit the 6 at the end more closely, but those reach to the end of the addresses
    assert allocator.malloc(5 * MIB) == first


def test_of_two_that_reach_as_far_the_lower_address_is_taken() -> None:
    allocator = make("expandable_segments:True", address_space_bytes=60 * MIB)
    _, *rest = [allocator.malloc(size * MIB) for size in (2, 50, 8)]  # the first segment is full: 60
    other = allocator.malloc(2 * MIB)  # in a second one
    for handle in rest:
        allocator.free(handle)
    allocator.empty_cache()
    # each holds 2 MiB in front, 18 free and 40 unmapped
    assert [segment.size for segment in allocator.block_map()] == [20 * MIB, 20 * MIB]
    assert allocator.malloc(5 * MIB) == rest[0] < other


def test_everything_unmapped_is_given_up() -> None:
    allocator = make("expandable_segments:True")
    first = allocator.malloc(30 * MIB)
    allocator.free(first)
    allocator.empty_cache()
    assert allocator.stats.reserved.current == 0
    assert allocator.malloc(MIB * 2) != first, "a new segment, with addresses of its own"


def test_growing_runs_out_of_memory_by_granules() -> None:
    allocator = make("expandable_segments:True", capacity=50 * MIB)
    allocator.malloc(30 * MIB)  # 40 mapped
    with pytest.raises(DeviceOutOfMemory) as caught:
        allocator.malloc(12 * MIB)
    # 10 MiB are free, 2 more need a granule of 20: 60 of 50. Torch's message names what cudaMalloc would have taken
    assert (caught.value.asked_bytes, caught.value.missing_bytes) == (12 * MIB, 10 * MIB)
    allocator.malloc(10 * MIB)
    assert allocator.stats.reserved.current == 40 * MIB


# Replay


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


# Properties, and the plain implementation

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


class Driver:
    """Applies steps: the n-th handle that is in use, whatever it is."""

    def __init__(self, allocator: Any, failures: tuple[type[Exception], ...]) -> None:
        self.allocator, self.failures, self.handles = allocator, failures, []

    def apply(self, step: tuple[str, int, int]) -> int | None:
        action, number, stream = step
        if action == "alloc":
            try:
                handle: int = self.allocator.malloc(number, stream)
            except self.failures:
                return None
            self.handles.append(handle)
            return handle
        if action == "synchronize":
            self.allocator.synchronize(stream)
        elif action == "empty":
            self.allocator.empty_cache()
        elif self.handles:
            index = number % len(self.handles)
            if action == "free":
                self.allocator.free(self.handles.pop(index))
            else:
                self.allocator.record_stream(self.handles[index], stream)
        return 0


NAMES = {"used": "active_allocated", "pending": "active_pending_free", "cached": "inactive"}


@hypothesis_settings(max_examples=400, deadline=None)
@given(steps=STEPS, configuration=CONFIGURATIONS, limits=LIMITS)
def test_the_model_and_the_plain_implementation_agree_at_every_step(
    steps: list[tuple[str, int, int]], configuration: tuple[str, dict[str, Any]], limits: tuple[int | None, int | None]
) -> None:
    text, options = configuration
    capacity, allowed = limits
    space = 400 * MIB
    allocator = make(text, capacity, allowed_bytes=allowed, address_space_bytes=space)
    plain = NaiveAllocator(capacity=capacity, allowed=allowed, space=space, **options)
    model, reference = Driver(allocator, (DeviceOutOfMemory,)), Driver(plain, (NoMemory,))
    for step in steps:
        assert model.apply(step) == reference.apply(step)
        assert current(allocator) == plain.figures()
        layout = [
            (segment.address + block.offset, block.size, block.state, block.requested)
            for segment in allocator.block_map()
            for block in segment.blocks
        ]
        assert layout == [(at, size, NAMES[state], requested) for at, size, state, requested in plain.layout()]
    assert allocator.stats.num_alloc_retries == plain.retries


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    steps=STEPS,
    configuration=CONFIGURATIONS,
    limits=LIMITS,
    divisions=st.sampled_from([1, 4, 8]),
    falling=st.booleans(),
)
def test_invariants(
    steps: list[tuple[str, int, int]],
    configuration: tuple[str, dict[str, Any]],
    limits: tuple[int | None, int | None],
    divisions: int,
    falling: bool,
) -> None:
    text = f"{configuration[0]},roundup_power2_divisions:{divisions}".lstrip(",")
    allocator = make(text, limits[0], allowed_bytes=limits[1], falling=falling)
    driver = Driver(allocator, (DeviceOutOfMemory,))
    peaks = (0, 0, 0, 0)
    for step in steps:
        driver.apply(step)
        check_map(allocator)
        requested, allocated, active, reserved = current(allocator)
        assert allocated <= active <= reserved
        assert requested <= active
        if active == allocated:
            assert requested <= allocated
        assert requested + allocator.rounding_bytes + allocator.fragmentation_bytes == reserved
        capacity, allowed = limits
        assert capacity is None or reserved <= capacity
        # a growing segment maps whole granules, the last of which may reach past the cap: torch compares what was asked for
        over = allocator.settings.large_segment_bytes if allocator.settings.expandable_segments else 1
        assert allowed is None or reserved < allowed + over
        stats = allocator.stats
        now = (stats.requested.peak, stats.allocated.peak, stats.active.peak, stats.reserved.peak)
        assert all(new >= max(old, value) for new, old, value in zip(now, peaks, current(allocator), strict=True))
        peaks = now
    for handle in driver.handles:
        allocator.free(handle)
    allocator.empty_cache()
    assert current(allocator) == (0, 0, 0, 0)
    assert allocator.block_map() == []


def check_map(allocator: Allocator) -> None:
    """Blocks tile their segment, segments do not overlap, no two neighbours are both free, sums agree with the statistics, and
    the free lists hold the free blocks, in order."""
    segments = allocator.block_map()
    end = 0
    totals = {"active_allocated": 0, "active_pending_free": 0, "inactive": 0}
    free = []
    for segment in segments:
        assert segment.address >= end
        end = segment.address + segment.size
        at, previous = 0, ""
        for block in segment.blocks:
            assert block.offset == at
            assert block.size > 0
            assert block.size % 512 == 0
            assert block.requested <= block.size
            assert not block.state == previous == "inactive"
            at, previous = at + block.size, block.state
            totals[block.state] += block.size
            if block.state == "inactive":
                free.append((segment.stream, segment.pool, block.size, segment.address + block.offset))
        assert at == segment.size
    _, allocated, active, reserved = current(allocator)
    assert totals["active_allocated"] == allocated
    assert totals["active_allocated"] + totals["active_pending_free"] == active
    assert sum(totals.values()) == reserved
    listed = []
    for name, pools in (("large", allocator._large), ("small", allocator._small)):
        for stream, pool in pools.items():
            entries = [(stream, name, size, address) for size, address, _ in pool.free]
            assert entries == sorted(entries)
            assert all((block.size, block.address) == (size, address) for size, address, block in pool.free)
            listed += entries
    assert sorted(listed) == sorted(free)


@hypothesis_settings(max_examples=100, deadline=None)
@given(steps=STEPS, more=STEPS, configuration=CONFIGURATIONS, limits=LIMITS)
def test_an_allocator_restored_from_its_map_goes_on_alike(
    steps: list[tuple[str, int, int]],
    more: list[tuple[str, int, int]],
    configuration: tuple[str, dict[str, Any]],
    limits: tuple[int | None, int | None],
) -> None:
    def without_records(them: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
        # a map does not say for which streams a block waits; nor does it hold an expandable segment's unmapped front
        return [step for step in them if step[0] not in ("record", "empty")]

    text, _ = configuration
    allocator = make(text, limits[0], allowed_bytes=limits[1], address_space_bytes=2**40)
    driver = Driver(allocator, (DeviceOutOfMemory,))
    for step in without_records(steps):
        if driver.apply(step) is None:
            return  # growing that failed half-way may have unmapped a front
    again = Allocator.restore(
        allocator.block_map(),
        AllocatorSettings.parse(text),
        limits[0],
        allowed_bytes=limits[1],
        address_space_bytes=2**40,
    )
    assert again.block_map() == allocator.block_map()
    assert current(again) == current(allocator)
    second = Driver(again, (DeviceOutOfMemory,))
    second.handles = list(driver.handles)
    for step in without_records(more):
        assert (driver.apply(step) is None) == (second.apply(step) is None)
        assert current(again) == current(allocator)
        check_map(again)


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
