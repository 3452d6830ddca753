"""Block maps: the allocator's working blocks as records, and working blocks made from such records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from vrambench.bench.allocator.blocks import FREE, STATES, UNMAPPED, Block, Pool, Region, Segment, WorkingBlock, link
from vrambench.bench.allocator.expandable import Regions


class PoolOf(Protocol):
    def __call__(self, stream: int, *, small: bool) -> Pool: ...


def map_of(blocks: Iterable[WorkingBlock]) -> list[Segment]:
    """The segments that `blocks` (all that are not unmapped) make up, by address."""
    heads = [block for block in blocks if block.prev is None or block.prev.state == UNMAPPED]
    segments = []
    for head in sorted(heads, key=lambda block: block.address):
        records = []
        block: WorkingBlock | None = head
        while block is not None and block.state != UNMAPPED:
            requested = block.requested if block.state != FREE else 0
            records.append(Block(block.address - head.address, block.size, requested, STATES[block.state]))
            block = block.next
        segments.append(
            Segment(
                address=head.address,
                size=sum(record.size for record in records),
                stream=head.pool.stream,
                pool="small" if head.pool.small else "large",
                blocks=tuple(records),
                expandable=head.region is not None,
            )
        )
    return segments


def working_blocks(
    segments: Iterable[Segment], pool_of: PoolOf, regions: Regions, bases: Mapping[tuple[int, bool], int]
) -> Iterator[WorkingBlock]:
    """The blocks of `segments`, linked, with the unmapped ones before, between and after those of an expandable segment.

    It begins at the lowest of its mapped ranges, or at its address in `bases` (by stream and whether it is the small pool) if that
    is lower.
    """
    last: dict[Pool, WorkingBlock] = {}
    for segment in sorted(segments, key=lambda each: each.address):
        pool = pool_of(segment.stream, small=segment.pool == "small")
        region: Region | None = None
        before: WorkingBlock | None = None
        if segment.expandable:
            before = last.get(pool)
            lowest = (
                segment.address
                if before
                else min(segment.address, bases.get((pool.stream, pool.small), segment.address))
            )
            if before is not None:
                region = before.region
                assert region is not None
                inside = segment.address + segment.size <= region.base + region.size
                gap = _unmapped(pool, region, before, segment.address if inside else region.base + region.size)
                yield from gap
                region, before = (region, gap[-1] if gap else before) if inside else (None, None)
            if region is None:
                region = regions.restore(pool, lowest)
                gap = _unmapped(pool, region, None, segment.address)
                yield from gap
                before = gap[-1] if gap else None
        for record in segment.blocks:
            state = next(number for number, name in STATES.items() if name == record.state)
            block = WorkingBlock(segment.address + record.offset, record.size, pool, region, state)
            block.requested = record.requested
            link(before, block, None)
            yield block
            before = block
        if segment.expandable:
            assert before is not None, "a segment has blocks"
            last[pool] = before
    for pool, block in last.items():
        assert block.region is not None
        yield from _unmapped(pool, block.region, block, block.region.base + block.region.size)


def _unmapped(pool: Pool, region: Region, before: WorkingBlock | None, end: int) -> list[WorkingBlock]:
    """The addresses from `before` (None: from the region's beginning) to `end`, as a block; none where there are none."""
    start = region.base if before is None else before.address + before.size
    if start >= end:
        return []
    gap = WorkingBlock(start, end - start, pool, region, UNMAPPED)
    link(before, gap, None)
    return [gap]
