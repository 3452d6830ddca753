"""The allocator itself: malloc, free, empty_cache, streams, and a map of its blocks at any moment.

In: `AllocatorSettings`, and how much memory there is (`capacity_bytes`: what the driver can give; `allowed_bytes`: a cap as
torch.cuda.set_per_process_memory_fraction sets it). Out: handles (addresses), `stats`, `block_map()`. Nothing here knows time, so a
GPU's progress on other streams is told by `synchronize`.

    allocator = Allocator(AllocatorSettings())
    first = allocator.malloc(100)                  # a 512 B block at the front of a 2 MiB segment
    allocator.free(first)                          # cached: reserved stays 2 MiB
    allocator.empty_cache()                        # nothing left
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from vrambench.bench.allocator.blocks import (
    ALLOCATED,
    FREE,
    PENDING,
    UNMAPPED,
    Addresses,
    AllocatorStats,
    DeviceOutOfMemory,
    Pool,
    Segment,
    Stat,
    WorkingBlock,
    is_whole,
)
from vrambench.bench.allocator.driver import Driver, TraceEntry
from vrambench.bench.allocator.expandable import reach
from vrambench.bench.allocator.maps import map_of, working_blocks
from vrambench.bench.allocator.settings import (
    MIN_BLOCK_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    UNLIMITED,
    AllocatorSettings,
)
from vrambench.methods.errors import ConfigurationError


class Allocator:
    """One device's caching allocator (C++: DeviceCachingAllocator).

    `capacity_bytes` is what the driver can give this allocator in all, None for no limit. `allowed_bytes` is the cap of a memory
    fraction; with `per_process_memory_fraction` in the settings it is that share of `capacity_bytes`, taken for the card's memory.
    The cap is compared with the segment that a request would need from cudaMalloc: where expandable segments map less, or a granule
    more, it is refused too early, or goes over the cap by less than a granule, as in torch.
    `address_space_bytes` is what one expandable segment can grow to: 9/8 of the capacity unless given.
    `falling`: the order of addresses, see `Addresses`.
    `record=True` keeps `trace`, the entries that torch.cuda.memory._record_memory_history would.
    """

    def __init__(
        self,
        settings: AllocatorSettings | None = None,
        capacity_bytes: int | None = None,
        *,
        allowed_bytes: int | None = None,
        address_space_bytes: int | None = None,
        falling: bool = False,
        record: bool = False,
    ) -> None:
        self.settings = settings = settings or AllocatorSettings()
        if settings.memory_fraction < 1 and allowed_bytes is None:
            if capacity_bytes is None:
                raise ConfigurationError(
                    "PYTORCH_ALLOC_CONF.per_process_memory_fraction: needs the capacity it is a share of"
                )
            allowed_bytes = int(settings.memory_fraction * capacity_bytes)
        if settings.garbage_collection_threshold and allowed_bytes is not None:
            raise ConfigurationError(
                "PYTORCH_ALLOC_CONF.garbage_collection_threshold: under a memory fraction it frees segments by their age, "
                "which this model does not follow; leave one of the two out"
            )
        self.trace: list[TraceEntry] | None = [] if record else None
        self.addresses = Addresses(falling=falling)
        self._driver = Driver(settings, self.addresses, capacity_bytes, allowed_bytes, address_space_bytes, self.trace)
        self._plain_rounding = not settings.roundup_power2_divisions
        self._plain_fit = not settings.expandable_segments and settings.max_split_bytes == UNLIMITED
        self._small: dict[int, Pool] = {}
        self._large: dict[int, Pool] = {}
        self._live: dict[int, WorkingBlock] = {}
        self._pending: dict[int, WorkingBlock] = {}
        self._events: dict[int, deque[WorkingBlock]] = {}
        self._done: dict[int, int] = {}
        self._requested = self._allocated = self._active = 0
        self._peak_requested = self._peak_allocated = self._peak_active = 0
        self._num_alloc_retries = self._num_ooms = 0

    def restore(
        self, segments: Sequence[Segment], region_bases: Mapping[tuple[int, bool], int] = MappingProxyType({})
    ) -> None:
        """Makes a fresh allocator hold `segments` (a `block_map`): handles are the addresses of their active blocks.

        Peaks begin here. A block that waits for other streams has lost which: it ends with `end_free`. An expandable segment is
        taken to begin where its lowest mapped range does, or lower where `region_bases` (by stream and whether it is the small
        pool) says so. Raises ValueError for segments that overlap.
        """
        for segment in segments:
            if not segment.expandable and not self.addresses.claim(segment.address, segment.size):
                raise ValueError(f"the segment at {segment.address} overlaps another")
            self._driver.reserved += segment.size
        for block in working_blocks(segments, self._pool, self._driver.regions, region_bases):
            self._hold(block)
        self.reset_peaks()

    @property
    def stats(self) -> AllocatorStats:
        return AllocatorStats(
            Stat(self._requested, self._peak_requested),
            Stat(self._allocated, self._peak_allocated),
            Stat(self._active, self._peak_active),
            Stat(self._driver.reserved, self._driver.peak_reserved),
            self._num_alloc_retries,
            self._num_ooms,
        )

    @property
    def fragmentation_bytes(self) -> int:
        """Reserved and not active: cached, whether reusable or not."""
        return self._driver.reserved - self._active

    def reset_peaks(self) -> None:
        """Peaks count from now on (torch.cuda.reset_peak_memory_stats)."""
        self._peak_requested, self._peak_allocated = self._requested, self._allocated
        self._peak_active, self._driver.peak_reserved = self._active, self._driver.reserved

    def malloc(self, nbytes: int, stream: int = 0) -> int:
        """A block for `nbytes` on `stream`: its address; 0 for 0 bytes, which takes nothing (C++: malloc, alloc_found_block).

        Raises DeviceOutOfMemory, after which everything that was in use still is.
        """
        if nbytes <= 0:
            if nbytes < 0:
                raise ValueError(f"cannot allocate {nbytes} bytes")
            return 0
        if self._done:
            self._process_events()
        size = (nbytes + 511) & ~511 if self._plain_rounding else self.settings.rounded(nbytes)
        pool = (self._small if size <= SMALL_BYTES else self._large).get(stream)
        if pool is None:
            pool = self._pool(stream, small=size <= SMALL_BYTES)
        free = pool.free
        index = bisect_left(free, (size,))
        if not self._plain_fit:
            index = self._choose(free, index, size)
        block = free.pop(index)[2] if index < len(free) else self._grow(pool, size, nbytes)
        remainder = block.size - size
        if remainder >= pool.min_remainder and size < pool.max_split:
            rest = block
            address = rest.address
            block = WorkingBlock(address, size, pool, rest.region, ALLOCATED)
            before = rest.prev
            if before is not None:
                block.prev = before
                before.next = block
            block.next = rest
            rest.prev = block
            rest.address = address + size
            rest.size = remainder
            insort(free, (remainder, address + size, rest))
        else:
            size = block.size
            address = block.address
            block.state = ALLOCATED
        block.requested = nbytes
        self._live[address] = block
        self._requested = now = self._requested + nbytes
        if now > self._peak_requested:
            self._peak_requested = now
        self._allocated = now = self._allocated + size
        if now > self._peak_allocated:
            self._peak_allocated = now
        self._active = now = self._active + size
        if now > self._peak_active:
            self._peak_active = now
        if self.trace is not None:
            self.trace.append(("alloc", address, nbytes, stream))
        return address

    def free(self, handle: int) -> None:
        """Frees a block: cached at once, or, if other streams used it, once their events are seen done (C++: free)."""
        if not handle:
            return
        block = self._begin_free(handle)
        if block.uses:
            for stream in sorted(block.uses):
                block.events += 1
                self._events.setdefault(stream, deque()).append(block)
            block.uses = None
            block.state = PENDING
        else:
            self._cache(block)

    def record_stream(self, handle: int, stream: int) -> None:
        """The block is used on `stream` too; its own stream needs no record (C++: recordStream)."""
        if not handle:
            return
        block = self._live[handle]
        if stream != block.pool.stream:
            block.uses = (block.uses or set()) | {stream}

    def synchronize(self, stream: int | None = None) -> None:
        """All work so far on `stream` (None: on every stream) is done. The next malloc sees it (C++: process_events)."""
        for each in list(self._events) if stream is None else [stream]:
            if self._events.get(each):
                self._done[each] = len(self._events[each])

    def begin_free(self, handle: int) -> None:
        """The first half of a free whose end is known from elsewhere: a trace's `free_requested`. `end_free` is the other half."""
        block = self._begin_free(handle)
        block.state = PENDING
        block.uses = None
        self._pending[handle] = block

    def end_free(self, handle: int) -> None:
        """A trace's `free_completed`."""
        self._cache(self._pending.pop(handle))

    def empty_cache(self) -> None:
        """Every cached segment that is wholly free goes back to the driver (C++: emptyCache, release_cached_blocks)."""
        while self._events:
            self._done = {stream: len(blocks) for stream, blocks in self._events.items()}
            self._process_events()
        for pools in (self._large, self._small):
            for stream in sorted(pools):
                self._driver.release_cached(pools[stream])

    def release_segment(self, address: int) -> bool:
        """One cached segment goes back to the driver, as a trace's `segment_free` says; False if `address` is no such segment."""
        for pools in (self._large, self._small):
            for pool in pools.values():
                for _, at, block in pool.free:
                    if at == address and is_whole(block):
                        pool.remove(block)
                        self._driver.release(block)
                        return True
        return False

    def block_map(self) -> list[Segment]:
        """Every segment with its blocks, by address (C++: snapshot): of an expandable one, each contiguous mapped range."""
        return map_of(self._blocks())

    def _blocks(self) -> Iterator[WorkingBlock]:
        """Every block that memory lies behind."""
        yield from self._live.values()
        yield from self._pending.values()
        seen: set[int] = set()
        for blocks in self._events.values():
            for block in blocks:
                if block.address not in seen:
                    seen.add(block.address)
                    yield block
        for pools in (self._small, self._large):
            for pool in pools.values():
                yield from (entry[2] for entry in pool.free)

    def _hold(self, block: WorkingBlock) -> None:
        """Counts a restored block in."""
        if block.state in (FREE, UNMAPPED):
            block.pool.add(block)
            return
        self._requested += block.requested
        self._active += block.size
        if block.state == ALLOCATED:
            self._live[block.address] = block
            self._allocated += block.size
        else:
            self._pending[block.address] = block

    def _pool(self, stream: int, *, small: bool) -> Pool:
        """C++: should_split gives what may be split off: 512 B and more in the small pool and in expandable segments, else
        more than 1 MiB, and never from a request of max_split_size or more."""
        pools = self._small if small else self._large
        if stream in pools:
            return pools[stream]
        settings = self.settings
        fine = small or settings.expandable_segments
        pool = Pool(
            stream,
            small=small,
            min_remainder=MIN_BLOCK_BYTES if fine else SMALL_BYTES + 1,
            max_split=UNLIMITED if fine else settings.max_split_bytes,
            granule=SMALL_SEGMENT_BYTES if small else settings.large_segment_bytes,
        )
        pools[stream] = pool
        return pool

    def _choose(self, free: list[tuple[int, int, WorkingBlock]], index: int, size: int) -> int:
        """Best fit, past plain size (C++: get_free_block): an expandable block counts for what it can grow to, and a block of
        max_split_size or more only serves requests that are as large and not much smaller than it."""
        if index == len(free):
            return index
        following = free[index][2].next
        if following is not None and following.state == UNMAPPED:  # else the next larger block reaches further
            while index + 1 < len(free) and reach(free[index + 1][2]) < reach(free[index][2]):
                index += 1
        most = self.settings.max_split_bytes
        found = free[index][0]
        if size < most <= found:
            return len(free)
        if size >= most and found >= size + self.settings.max_non_split_rounding_bytes:
            return len(free)
        return index

    def _grow(self, pool: Pool, size: int, nbytes: int) -> WorkingBlock:
        """Memory from the driver; failing that, after large cached blocks went back to it, or at last after all of the cache did.

        C++: alloc_block, release_available_cached_blocks, release_cached_blocks; num_alloc_retries counts the last.
        """
        driver = self._driver
        block = driver.take(pool, size)
        if block is None and driver.release_oversize(pool, size):
            block = driver.take(pool, size)
        if block is None:
            self.empty_cache()
            self._num_alloc_retries += 1
            block = driver.take(pool, size)
        if block is None:
            self._num_ooms += 1
            driver.note("oom", driver.free_bytes, size, pool.stream)
            raise DeviceOutOfMemory(nbytes, self.settings.segment_bytes(size), driver.missing)
        return block

    def _begin_free(self, handle: int) -> WorkingBlock:
        block = self._live.pop(handle, None)
        if block is None:
            raise ValueError(f"{handle} is no block in use")
        self._allocated -= block.size
        if self.trace is not None:
            self.trace.append(("free_requested", handle, block.requested, block.pool.stream))
        return block

    def _cache(self, block: WorkingBlock) -> None:
        """C++: free_block: no longer active, merged with its free neighbours."""
        size = block.size
        address = block.address
        self._active -= size
        self._requested -= block.requested
        if self.trace is not None:
            self.trace.append(("free_completed", address, block.requested, block.pool.stream))
        block.state = FREE
        pool = block.pool
        free = pool.free
        neighbour = block.prev
        if neighbour is not None and neighbour.state == FREE:
            address = neighbour.address
            del free[bisect_left(free, (neighbour.size, address))]
            size += neighbour.size
            block.address = address
            before = neighbour.prev
            block.prev = before
            if before is not None:
                before.next = block
        neighbour = block.next
        if neighbour is not None and neighbour.state == FREE:
            del free[bisect_left(free, (neighbour.size, neighbour.address))]
            size += neighbour.size
            after = neighbour.next
            block.next = after
            if after is not None:
                after.prev = block
        block.size = size
        insort(free, (size, address, block))

    def _process_events(self) -> None:
        done, self._done = self._done, {}
        for stream, count in done.items():
            waiting = self._events[stream]
            for _ in range(count):
                block = waiting.popleft()
                block.events -= 1
                if not block.events:
                    self._cache(block)
            if not waiting:
                del self._events[stream]
