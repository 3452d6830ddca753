"""The allocator model against a plain second implementation, step by step, and what holds after any steps."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.bench.allocator.made import CONFIGURATIONS, LIMITS, MIB, STEPS, current, make
from tests.bench.allocator.naive import NaiveAllocator, NoMemory
from vrambench.bench.allocator import Allocator, DeviceOutOfMemory


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
        assert active + allocator.fragmentation_bytes == reserved
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
    again = make(text, limits[0], allowed_bytes=limits[1], address_space_bytes=2**40)
    again.restore(allocator.block_map())
    assert again.block_map() == allocator.block_map()
    assert current(again) == current(allocator)
    second = Driver(again, (DeviceOutOfMemory,))
    second.handles = list(driver.handles)
    for step in without_records(more):
        assert (driver.apply(step) is None) == (second.apply(step) is None)
        assert current(again) == current(allocator)
        check_map(again)
