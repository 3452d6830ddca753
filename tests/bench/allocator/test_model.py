"""The allocator model, cases worked by hand: sizes, splitting, freeing, streams, and memory that runs out.

The rules are those of torch's c10/cuda/CUDACachingAllocator.cpp; the arithmetic of each case stands in its comment.
"""

from __future__ import annotations

import pytest

from tests.bench.allocator.made import KIB, MIB, blocks, current, make
from vrambench.bench.allocator import AllocatorSettings, DeviceOutOfMemory
from vrambench.methods.errors import ConfigurationError

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
    for allocator in (
        make("per_process_memory_fraction:0.25", 80 * MIB),
        make(capacity=80 * MIB, allowed_bytes=20 * MIB),
    ):
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
