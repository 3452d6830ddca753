"""What the allocator's options do, cases worked by hand; expandable segments are one of them.

The rules are those of torch's c10/cuda/CUDACachingAllocator.cpp; the arithmetic of each case stands in its comment.
"""

from __future__ import annotations

import pytest

from tests.bench.allocator.made import KIB, MIB, blocks, make
from vrambench.bench.allocator import AllocatorSettings, DeviceOutOfMemory
from vrambench.methods.errors import ConfigurationError

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
        (
            "expandable_segments:True,max_split_size_mb=128",
            "max_split_size_mb: write max_split_size_mb:128, with a colon",
        ),
        (f"max_split_size_mb:{2**64}", f"max_split_size_mb: {2**64} is more than torch reads, {2**64 - 1}"),
        (f"max_split_size_mb:{'9' * 5000}", r"max_split_size_mb: 9+\.\.\.9+ .* is more than torch reads"),
        ("max_split_size_mb:1.5", "'1.5' is not a whole number"),
        ("roundup_power2_divisions:3", "3 is not a power of two"),
        ("roundup_power2_divisions:[256:1", r"the closing bracket '\]' is missing"),
        ("roundup_power2_divisions:[256]", "'256' is not of the form"),
        ("garbage_collection_threshold:1.5", "not between 0 and 1"),
        ("backend:cudaMallocAsync", "'cudaMallocAsync' is not modelled; only PyTorch's own allocator is, native"),
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
