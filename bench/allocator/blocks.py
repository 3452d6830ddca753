"""What the allocator model holds and what it tells: its working blocks and pools, and the frozen records handed out.

Addresses are in bytes. A block is known by its address while it is in use, so that address is the handle that users hold.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vrambench.bench.allocator.settings import MIB, SMALL_SEGMENT_BYTES

FREE, ALLOCATED, PENDING, UNMAPPED = range(4)
"""States of a working block: cached; handed out; freed but still used by another stream; addresses without memory."""

State = Literal["active_allocated", "active_pending_free", "inactive"]
"""Torch's names of the first three (`torch.cuda.memory._snapshot`)."""
STATES: dict[int, State] = {ALLOCATED: "active_allocated", PENDING: "active_pending_free", FREE: "inactive"}


class Stat(NamedTuple):
    """Bytes now, and the most since the last `reset_peaks()`."""

    current: int
    peak: int


class AllocatorStats(NamedTuple):
    """torch.cuda.memory_stats: requested_bytes, allocated_bytes, active_bytes, reserved_bytes (all pools), and two counts.

    allocated <= active <= reserved and requested <= active always. A block that waits for another stream is requested and
    active but no longer allocated, so requested <= allocated holds only while none waits.
    """

    requested: Stat
    allocated: Stat
    active: Stat
    reserved: Stat
    num_alloc_retries: int
    num_ooms: int


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a segment: where it begins in it, its size, and what was asked for (0 where inactive)."""

    offset: int
    size: int
    requested: int
    state: State


@dataclass(frozen=True, slots=True)
class Segment:
    """Memory taken from the driver: one cudaMalloc, or one contiguous mapped range of an expandable segment. Its blocks tile it."""

    address: int
    size: int
    stream: int
    pool: Literal["small", "large"]
    blocks: tuple[Block, ...]
    expandable: bool = False


class DeviceOutOfMemory(Exception):
    """No memory for a request, even after every cached segment went back to the driver; the allocator stays usable.

    `requested_bytes` is what the caller wanted, `asked_bytes` the segment asked of the driver for it (what torch's message calls
    "tried to allocate"), `missing_bytes` how much larger the capacity would have to be for it.
    """

    def __init__(self, requested_bytes: int, asked_bytes: int, missing_bytes: int) -> None:
        super().__init__(f"out of memory: tried to allocate {asked_bytes} bytes, {missing_bytes} bytes too many")
        self.requested_bytes = requested_bytes
        self.asked_bytes = asked_bytes
        self.missing_bytes = missing_bytes


class Region:
    """The addresses of one expandable segment: memory comes and goes in whole granules, counted from `base`."""

    __slots__ = ("base", "granule", "size")

    def __init__(self, base: int, size: int, granule: int) -> None:
        self.base = base
        self.size = size
        self.granule = granule


class WorkingBlock:
    """A block in the making; `prev` and `next` are its neighbours in the segment, None at the segment's ends."""

    __slots__ = ("address", "events", "next", "pool", "prev", "region", "requested", "size", "state", "uses")

    def __init__(self, address: int, size: int, pool: Pool, region: Region | None, state: int) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.region = region
        self.state = state
        self.requested = 0
        self.prev: WorkingBlock | None = None
        self.next: WorkingBlock | None = None
        self.uses: set[int] | None = None
        self.events = 0


FreeEntry = tuple[int, int, WorkingBlock]
"""Size, address, block: addresses are unique, so that comparing two entries never reaches the blocks."""


class Pool:
    """The cached blocks of one stream and one pool (C++: BlockPool, whose set orders them by stream, size and address)."""

    __slots__ = ("free", "granule", "max_split", "min_remainder", "small", "stream", "unmapped")

    def __init__(self, stream: int, *, small: bool, min_remainder: int, max_split: int, granule: int) -> None:
        self.stream = stream
        self.small = small
        self.min_remainder = min_remainder
        self.max_split = max_split
        self.granule = granule
        self.free: list[FreeEntry] = []
        self.unmapped: list[tuple[int, WorkingBlock]] = []

    def add(self, block: WorkingBlock) -> None:
        if block.state == UNMAPPED:
            insort(self.unmapped, (block.address, block))
        else:
            insort(self.free, (block.size, block.address, block))

    def remove(self, block: WorkingBlock) -> None:
        if block.state == UNMAPPED:
            del self.unmapped[bisect_left(self.unmapped, (block.address,))]
        else:
            del self.free[bisect_left(self.free, (block.size, block.address))]

    def merge(self, block: WorkingBlock, neighbour: WorkingBlock | None) -> None:
        """Takes `neighbour` into `block` if both are cached, or both unmapped (C++: try_merge_blocks). `block` is in no list."""
        if neighbour is None or neighbour.state != block.state:
            return
        self.remove(neighbour)
        block.size += neighbour.size
        if neighbour is block.prev:
            block.address = neighbour.address
            block.prev = neighbour.prev
            if block.prev is not None:
                block.prev.next = block
        else:
            block.next = neighbour.next
            if block.next is not None:
                block.next.prev = block


def is_whole(block: WorkingBlock) -> bool:
    """The block is its whole segment: nothing of it is in use."""
    return block.prev is None and block.next is None


def link(before: WorkingBlock | None, block: WorkingBlock, after: WorkingBlock | None) -> None:
    """Puts `block` between two neighbours (C++: splice)."""
    block.prev, block.next = before, after
    if before is not None:
        before.next = block
    if after is not None:
        after.prev = block


class Addresses:
    """Where segments lie. CUDA's choice is not documented, and only the order of addresses matters to the allocator (the lowest
    of equal blocks is taken). Two orders are known:

    rising      each new segment lies above every earlier one (Windows and WSL2, mostly);
    falling     a segment that fits goes to the lowest gap, else to a new range below every earlier one, which begins and ends at a
                multiple of 32 MiB and may leave a gap behind the segment (native Linux: of the pairs of segments in recordings
                of large jobs on an H200 at most 4 % lie otherwise, against 60 to 99 % with rising addresses).

    Where the driver's choice is known (a recorded trace), `place` says it before the segment is asked for.
    """

    FIRST = 2**52  # above all addresses of a real process, below what a JSON reader's float can hold exactly
    RANGE_BYTES = 32 * MIB

    def __init__(self, *, falling: bool = False) -> None:
        self._falling = falling
        self._next = self._lowest = self.FIRST
        self._ranges: list[tuple[int, int]] = []
        self._gaps: list[tuple[int, int]] = []
        self._placed: list[tuple[int, int]] = []

    def place(self, address: int, nbytes: int) -> None:
        self._placed.append((address, nbytes))

    def forget_places(self) -> None:
        self._placed.clear()

    def take(self, nbytes: int, *, growing: bool = False) -> int:
        """The address of a new range of `nbytes`. A known place is used if it was for as much (for a `growing` range: of any
        size, it is where memory comes first) and nothing else lies there."""
        for index, (address, size) in enumerate(self._placed):
            if (growing or size == nbytes) and self.claim(address, nbytes):
                del self._placed[index]
                return address
        address = self._below(nbytes) if self._falling else self._next
        claimed = self.claim(address, nbytes)
        assert claimed, "addresses above and below every range are free, and so are gaps"
        return address

    def _below(self, nbytes: int) -> int:
        """The lowest gap that is large enough, else a new range. What fills a range begins where ranges do."""
        end = -(-nbytes // SMALL_SEGMENT_BYTES) * SMALL_SEGMENT_BYTES
        step = self.RANGE_BYTES if end >= self.RANGE_BYTES else SMALL_SEGMENT_BYTES
        for index, (first, last) in enumerate(self._gaps):
            if last - first >= end and first % step == 0:
                del self._gaps[index]
                break
        else:
            last = self._lowest
            first = self._lowest = last - -(-nbytes // self.RANGE_BYTES) * self.RANGE_BYTES
        if first + end < last:
            insort(self._gaps, (first + end, last))
        return first

    def claim(self, address: int, nbytes: int) -> bool:
        """Marks a range as taken; False if part of it is taken already."""
        end = address + nbytes
        index = bisect_left(self._ranges, (address, end))
        if index and self._ranges[index - 1][1] > address:
            return False
        if index < len(self._ranges) and self._ranges[index][0] < end:
            return False
        self._ranges.insert(index, (address, end))
        self._next = max(self._next, -(-end // SMALL_SEGMENT_BYTES) * SMALL_SEGMENT_BYTES)
        self._lowest = min(self._lowest, address // self.RANGE_BYTES * self.RANGE_BYTES)
        return True

    def give_back(self, address: int, nbytes: int) -> None:
        self._ranges.remove((address, address + nbytes))
        if self._falling:
            self._fill(address, address + -(-nbytes // SMALL_SEGMENT_BYTES) * SMALL_SEGMENT_BYTES)

    def _fill(self, first: int, last: int) -> None:
        """A gap more, one with those that it touches."""
        index = bisect_left(self._gaps, (first, last))
        if index < len(self._gaps) and self._gaps[index][0] == last:
            last = self._gaps.pop(index)[1]
        if index and self._gaps[index - 1][1] == first:
            index -= 1
            first = self._gaps.pop(index)[0]
        self._gaps.insert(index, (first, last))


UNKNOWN_CARD_ADDRESSES = 4 * 2**20 * MIB
"""4 TiB: the address space of one expandable segment where the card's memory is not known."""
