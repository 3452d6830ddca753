"""What a device held when its recording began: the end, with every entry undone from the last to the first.

In: a trace's entries, and the segments at its end. Out: the segments before the first entry. Three things take more than that:

block sizes       a trace says what was asked for, not how large the block was that served it (`_sizes`)
mapped ranges     expandable segments are known by what was mapped and unmapped (`Mapped`)
their beginnings  the recording may have begun when nothing was mapped at the front of one (`Start.region_bases`)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

from vrambench.bench.allocator.blocks import Block, Segment, State
from vrambench.bench.allocator.recorded import Entry, Start
from vrambench.bench.allocator.settings import SMALL_BYTES, SMALL_SEGMENT_BYTES, AllocatorSettings
from vrambench.methods.errors import ConfigurationError


class Held(NamedTuple):
    """A block in use: what was asked for, its size where the end shows it, and its state."""

    requested: int
    size: int | None
    state: State


def start_of(entries: Sequence[Entry], end: Sequence[Segment], settings: AllocatorSettings) -> Start:
    """Raises ConfigurationError where the entries do not agree with each other or with the `end`."""
    segments = {segment.address: segment for segment in end if not segment.expandable}
    mapped = Mapped((segment for segment in end if segment.expandable), settings)
    blocks = {
        segment.address + block.offset: Held(block.requested, block.size, block.state)
        for segment in end
        for block in segment.blocks
        if block.state != "inactive"
    }
    for index in range(len(entries) - 1, -1, -1):
        if not _undo(entries[index], segments, mapped, blocks):
            action, address, nbytes, _ = entries[index]
            raise ConfigurationError(
                f"snapshot: entry {index} ({action} of {nbytes} bytes at {address}) does not agree with what follows it; "
                "was the trace recorded without some of its actions?"
            )
    bare = sorted([*segments.values(), *mapped.segments(blocks)], key=lambda segment: segment.address)
    for one, two in pairwise(bare):
        if one.address + one.size > two.address:
            raise ConfigurationError(f"snapshot: the segment at {one.address} overlaps the next one at {two.address}")
    sizes = _sizes(bare, blocks, entries, settings)
    start = []
    addresses = sorted(blocks)
    for segment in bare:
        inside = addresses[
            bisect_left(addresses, segment.address) : bisect_left(addresses, segment.address + segment.size)
        ]
        start.append(replace(segment, blocks=tuple(_tiles(segment, blocks, sizes, inside))))
    if outside := blocks.keys() - {each.address + block.offset for each in start for block in each.blocks}:
        raise ConfigurationError(f"snapshot: the block at {min(outside)} lies in no segment")
    return Start(tuple(start), mapped.lowest)


def _undo(entry: Entry, segments: dict[int, Segment], mapped: Mapped, blocks: dict[int, Held]) -> bool:
    """False if the entry cannot have led to what is there."""
    action, address, nbytes, stream = entry
    held = blocks.get(address)
    match action:
        case "alloc":
            blocks.pop(address, None)
            return held is not None and held.state == "active_allocated"
        case "free_completed":
            blocks[address] = Held(nbytes, None, "active_pending_free")
            return held is None
        case "free_requested" if held is not None:
            blocks[address] = held._replace(state="active_allocated")
            return held.state == "active_pending_free"
        case "free_requested":
            return False
        case "segment_map":
            return mapped.undo_map(address, nbytes, stream)
        case "segment_unmap":
            return mapped.undo_unmap(address, nbytes, stream)
        case "segment_alloc":
            made = segments.pop(address, None)
            return made is not None and made.size == nbytes
        case "segment_free":
            pool: Literal["small", "large"] = "small" if nbytes == SMALL_SEGMENT_BYTES else "large"
            return segments.setdefault(address, freed := Segment(address, nbytes, stream, pool, ())) is freed
    return True


@dataclass(slots=True)
class _Range:
    """Mapped memory without a hole."""

    begin: int
    end: int
    stream: int
    small: bool


class Mapped:
    """The mapped ranges of expandable segments, by address, while a trace is undone.

    Neither a map nor an unmap says which pool it is of. The small pool maps 2 MiB at once, and unmaps multiples of them; the large
    one knows multiples of a large segment only. Ranges that touch are of one segment: its addresses are never used up.
    """

    def __init__(self, end: Iterable[Segment], settings: AllocatorSettings) -> None:
        self._settings = settings
        self._ranges: list[_Range] = []
        self.lowest: dict[tuple[int, bool], int] = {}
        for segment in sorted(end, key=lambda each: each.address):
            self._add(_Range(segment.address, segment.address + segment.size, segment.stream, segment.pool == "small"))

    def undo_map(self, address: int, nbytes: int, stream: int) -> bool:
        """Takes what was mapped away again; False if it is not mapped."""
        index = bisect_right(self._ranges, address, key=lambda each: each.begin) - 1
        if index < 0 or not nbytes:
            return False
        found = self._ranges[index]
        if address + nbytes > found.end or stream != found.stream:
            return False
        found.small = small = found.small or nbytes == SMALL_SEGMENT_BYTES
        rests = (replace(found, end=address), replace(found, begin=address + nbytes))
        self._ranges[index : index + 1] = [rest for rest in rests if rest.begin < rest.end]
        if any((each.stream, each.small) == (stream, small) for each in self._ranges):
            self.lowest[stream, small] = min(self.lowest.get((stream, small), address), address)
        else:  # the first memory of its segment: what was there before was another segment
            self.lowest.pop((stream, small), None)
        return True

    def undo_unmap(self, address: int, nbytes: int, stream: int) -> bool:
        """Puts what was unmapped back; False if it is mapped."""
        index = bisect_left(self._ranges, address + nbytes, key=lambda each: each.begin)
        if not nbytes or (index and self._ranges[index - 1].end > address):
            return False
        self._add(_Range(address, address + nbytes, stream, bool(nbytes % self._settings.large_segment_bytes)))
        return True

    def segments(self, blocks: Mapping[int, Held]) -> Iterator[Segment]:
        """What is mapped now, without its blocks."""
        addresses = sorted(blocks)
        for each in self._ranges:
            inside = addresses[bisect_left(addresses, each.begin) : bisect_left(addresses, each.end)]
            small = each.small or any(self._settings.rounded(blocks[at].requested) <= SMALL_BYTES for at in inside)
            pool: Literal["small", "large"] = "small" if small else "large"
            yield Segment(each.begin, each.end - each.begin, each.stream, pool, (), expandable=True)

    def _add(self, new: _Range) -> None:
        """A range more, one with those of its stream that it touches."""
        index = bisect_left(self._ranges, new.begin, key=lambda each: each.begin)
        self._ranges.insert(index, new)
        for first in (index, index - 1):
            pair = self._ranges[max(first, 0) : first + 2]
            if len(pair) == 2 and pair[0].end == pair[1].begin and pair[0].stream == pair[1].stream:
                small = pair[0].small or pair[1].small
                self._ranges[first : first + 2] = [_Range(pair[0].begin, pair[1].end, new.stream, small)]


def _sizes(
    segments: Sequence[Segment], blocks: Mapping[int, Held], entries: Sequence[Entry], settings: AllocatorSettings
) -> dict[int, int]:
    """The bytes of every block in `blocks`, of which those that were freed in the recording have no size yet.

    Such a block has the rounded request and, in the large pool, perhaps a tail of at most 1 MiB that was not split off. The tail is
    seen where nothing else can be behind the block: free memory there comes in larger pieces. And it is seen where something is
    allocated behind the block while it lives: an allocation begins where its live predecessor ends.
    """
    sizes = {address: held.size or settings.rounded(held.requested) for address, held in blocks.items()}
    live = sorted(blocks)
    last: dict[int, int] = {}
    for segment in segments:
        if segment.pool == "small" or settings.expandable_segments:  # whose tails are always split off
            continue
        end = segment.address + segment.size
        inside = live[bisect_left(live, segment.address) : bisect_left(live, end)]
        for address, following in pairwise([*inside, end]):
            if blocks[address].size is not None:
                continue
            tail = following - address - sizes[address]
            if tail <= SMALL_BYTES or sizes[address] >= settings.max_split_bytes:
                sizes[address] += max(tail, 0)
            else:
                last[address] = following
    for action, address, _, _ in entries if last else ():
        index = bisect_left(live, address)
        if action == "alloc":
            before = live[index - 1] if index else -1
            if address < last.get(before, 0):
                sizes[before] = max(sizes[before], address - before)
                del last[before]
            live.insert(index, address)
        elif action == "free_completed":
            del live[index]
            last.pop(address, None)
    return sizes


def _tiles(
    segment: Segment, blocks: Mapping[int, Held], sizes: Mapping[int, int], addresses: Sequence[int]
) -> Iterator[Block]:
    """The blocks of `segment`: those at `addresses`, and what is free between them."""
    at, end = segment.address, segment.address + segment.size
    for address in addresses:
        if at > address:
            raise ConfigurationError(f"snapshot: the block before {address} overlaps it")
        if at < address:
            yield Block(at - segment.address, address - at, 0, "inactive")
        yield Block(address - segment.address, sizes[address], blocks[address].requested, blocks[address].state)
        at = address + sizes[address]
    if at > end:
        raise ConfigurationError(f"snapshot: the last block of the segment at {segment.address} ends outside it")
    if at < end:
        yield Block(at - segment.address, end - at, 0, "inactive")
