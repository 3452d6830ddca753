"""What lies between the allocator and the card: memory taken from the driver and given back to it, whole segments or granules.

`model` decides when, this what: how much may be taken, what goes back, and the trace of it all.
"""

from __future__ import annotations

from bisect import bisect_left

from vrambench.bench.allocator.blocks import (
    FREE,
    UNKNOWN_CARD_ADDRESSES,
    UNMAPPED,
    Addresses,
    Pool,
    WorkingBlock,
    is_whole,
)
from vrambench.bench.allocator.expandable import Regions, map_bytes, map_front, unmap_whole_granules
from vrambench.bench.allocator.settings import UNLIMITED, AllocatorSettings

TraceEntry = tuple[str, int, int, int]
"""Action (torch's names), address (for `oom`: bytes the driver has left, 0 if unknown), bytes, stream."""


class Driver:
    """`reserved` bytes are taken now; limits as in `Allocator`. `trace` is the caller's list, None where nothing is recorded."""

    def __init__(
        self,
        settings: AllocatorSettings,
        addresses: Addresses,
        capacity_bytes: int | None,
        allowed_bytes: int | None,
        address_space_bytes: int | None,
        trace: list[TraceEntry] | None,
    ) -> None:
        self._settings = settings
        self._addresses = addresses
        self._capacity = capacity_bytes
        self.allowed_bytes = allowed_bytes
        self._trace = trace
        space = address_space_bytes or (capacity_bytes * 9 // 8 if capacity_bytes else UNKNOWN_CARD_ADDRESSES)
        self.regions = Regions(addresses, space)
        self.reserved = self.peak_reserved = self.missing = 0

    @property
    def free_bytes(self) -> int:
        """What is left of the capacity; 0 if that is unknown."""
        return max((self._capacity or 0) - self.reserved, 0)

    def take(self, pool: Pool, size: int) -> WorkingBlock | None:
        """A free block of at least `size` bytes, in no list; None where there is no memory for it: `missing` then says how much."""
        asked = self._settings.segment_bytes(size)
        if self.allowed_bytes is not None and self.reserved + asked > self.allowed_bytes:
            self.missing = self.reserved + asked - self.allowed_bytes
            return None
        if self._settings.expandable_segments:
            return self._expand(pool, size)
        if not self._has(asked):
            return None
        block = WorkingBlock(self._addresses.take(asked), asked, pool, None, FREE)
        self._reserve(asked)
        self.note("segment_alloc", block.address, asked, pool.stream)
        return block

    def _expand(self, pool: Pool, size: int) -> WorkingBlock | None:
        """C++: try_allocate_expandable_block. What was mapped before the driver ran out stays cached."""
        if size > self.regions.size:
            self.missing = size - self.regions.size
            return None
        block = self.regions.find(pool, size)
        if block.state == UNMAPPED and not self._map(block, min(size, block.size)):
            return None
        while block.size < size:
            following = block.next
            assert following is not None, "a block that was found to have room is followed by it"
            if not self._map(following, min(size - block.size, following.size)):
                return None
            block = following
        pool.remove(block)
        return block

    def _map(self, block: WorkingBlock, nbytes: int) -> bool:
        granules = map_bytes(block, nbytes)
        if not self._has(granules):
            return False
        address, size = map_front(block, granules)
        self._reserve(size)
        self.note("segment_map", address, size, block.pool.stream)
        return True

    def _has(self, nbytes: int) -> bool:
        if self._capacity is None or self.reserved + nbytes <= self._capacity:
            return True
        self.missing = self.reserved + nbytes - self._capacity
        return False

    def _reserve(self, nbytes: int) -> None:
        self.reserved += nbytes
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def release_oversize(self, pool: Pool, size: int) -> bool:
        """With max_split_size set: the smallest cached block of the stream that would do goes back to the driver, or the largest
        ones until they add up to it; False if they do not (those released stay so)."""
        most = self._settings.max_split_bytes
        if most == UNLIMITED:
            return False
        wanted = max(size, most)
        free = pool.free
        index = bisect_left(free, (wanted,))
        if index < len(free) and free[index][2].region is None:
            self.release(free.pop(index)[2])
            return True
        released = 0
        index -= 1
        while index >= 0 and released < wanted and free[index][0] >= most:
            block = free[index][2]
            if block.region is None:
                del free[index]
                released += block.size
                self.release(block)
            index -= 1
        return released >= wanted

    def release_cached(self, pool: Pool) -> None:
        expandable = [block for _, _, block in pool.free if block.region is not None]
        whole = [block for _, _, block in pool.free if block.region is None and is_whole(block)]
        if whole:
            pool.free[:] = [entry for entry in pool.free if entry[2].region is not None or not is_whole(entry[2])]
            for block in whole:
                self.release(block)
        for block in expandable:
            change = unmap_whole_granules(block)
            if change is not None:
                self.reserved -= change[1]
                self.note("segment_unmap", *change, pool.stream)
                if is_whole(block):
                    self.regions.forget(pool, block)

    def release(self, block: WorkingBlock) -> None:
        self.reserved -= block.size
        self._addresses.give_back(block.address, block.size)
        self.note("segment_free", block.address, block.size, block.pool.stream)

    def note(self, action: str, address: int, nbytes: int, stream: int) -> None:
        if self._trace is not None:
            self._trace.append((action, address, nbytes, stream))
