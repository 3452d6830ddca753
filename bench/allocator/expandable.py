"""Expandable segments: one range of addresses per stream and pool that memory is mapped into and unmapped from, in granules.

Granules are 2 MiB in the small pool and one large segment (20 MiB) in the large one. A region is a list of blocks, neighbours
linked, of which the last is what was never mapped. C++: struct ExpandableSegment, find_expandable_block,
try_allocate_expandable_block, map_block, unmap_block, release_blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

from vrambench.bench.allocator.blocks import FREE, UNMAPPED, Addresses, Pool, Region, WorkingBlock, link

Change = tuple[int, int]
"""Address and bytes of what was mapped or unmapped."""


class Regions:
    """The expandable segments of one device. `size` is the address space of each: 9/8 of the card's memory in torch."""

    def __init__(self, addresses: Addresses, size: int) -> None:
        self._addresses = addresses
        self.size = size

    def find(self, pool: Pool, size: int) -> WorkingBlock:
        """The lowest cached or unmapped block from which `size` bytes can be had by mapping; a new region if there is none."""
        for _, unmapped in pool.unmapped:
            block = unmapped
            if block.prev is not None and block.prev.state == FREE:
                block = block.prev
            if _room(block, size):
                return block
        return self._new_region(pool)

    def restore(self, pool: Pool, base: int) -> Region:
        """A region known to begin at `base`; its blocks are the caller's to make. Raises ValueError where others are in its way."""
        region = Region(base, self._rounded(pool.granule), pool.granule)
        if not self._addresses.claim(base, region.size):
            raise ValueError(f"the expandable segment at {base} overlaps another")
        return region

    def forget(self, pool: Pool, block: WorkingBlock) -> None:
        """A region of which nothing is mapped any more is given up."""
        assert block.region is not None
        assert block.size == block.region.size, "the block is the whole region"
        pool.remove(block)
        self._addresses.give_back(block.region.base, block.region.size)

    def _new_region(self, pool: Pool) -> WorkingBlock:
        size = self._rounded(pool.granule)
        region = Region(self._addresses.take(size, growing=True), size, pool.granule)
        block = WorkingBlock(region.base, size, pool, region, UNMAPPED)
        pool.add(block)
        return block

    def _rounded(self, granule: int) -> int:
        return -(-self.size // granule) * granule


def map_bytes(block: WorkingBlock, nbytes: int) -> int:
    """What mapping `nbytes` at the front of an unmapped block takes: whole granules."""
    assert block.region is not None
    return -(-nbytes // block.region.granule) * block.region.granule


def map_front(block: WorkingBlock, nbytes: int) -> Change:
    """Maps `nbytes` (whole granules) at the front of an unmapped block, which becomes a cached one, merged with its neighbours."""
    pool = block.pool
    change = block.address, nbytes
    pool.remove(block)
    block.state = FREE
    if nbytes < block.size:
        rest = WorkingBlock(block.address + nbytes, block.size - nbytes, pool, block.region, UNMAPPED)
        link(block, rest, block.next)
        pool.add(rest)
        block.size = nbytes
    pool.merge(block, block.prev)
    pool.merge(block, block.next)
    pool.add(block)
    return change


def unmap_whole_granules(block: WorkingBlock) -> Change | None:
    """Unmaps the granules that lie wholly inside a cached block; what is before and after them stays cached."""
    region, pool = block.region, block.pool
    assert region is not None
    begin = region.base + -(-(block.address - region.base) // region.granule) * region.granule
    end = region.base + (block.address + block.size - region.base) // region.granule * region.granule
    if begin >= end:
        return None
    pool.remove(block)
    for address, size, after in _ends(block, begin, end):
        part = WorkingBlock(address, size, pool, region, FREE)
        link(*((block, part, block.next) if after else (block.prev, part, block)))
        pool.add(part)
    block.address, block.size, block.state = begin, end - begin, UNMAPPED
    pool.merge(block, block.prev)
    pool.merge(block, block.next)
    pool.add(block)
    return begin, end - begin


def _ends(block: WorkingBlock, begin: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """What of `block` lies before `begin`, and what after `end`."""
    last = block.address + block.size
    if block.address < begin:
        yield block.address, begin - block.address, False
    if end < last:
        yield end, last - end, True


def _room(block: WorkingBlock, size: int) -> bool:
    found = 0
    following: WorkingBlock | None = block
    while found < size and following is not None and following.state in (FREE, UNMAPPED):
        found += following.size
        following = following.next
    return found >= size


def reach(block: WorkingBlock) -> int:
    """What a cached block can grow to: for best fit, a block that addresses follow counts as that large (C++: get_free_block)."""
    following = block.next
    return block.size + (following.size if following is not None and following.state == UNMAPPED else 0)
