"""What a recorded trace of the allocator shows by itself, without any choice of the model: its peaks, and how far segments grow.

In: a trace's entries, and the segments at its start. `vrambench.bench.allocator.snapshot` reads the entries from a file,
`vrambench.bench.allocator.beginning` works the start out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from vrambench.bench.allocator.blocks import Segment
from vrambench.bench.allocator.settings import SMALL_BYTES, SMALL_SEGMENT_BYTES, AllocatorSettings

MEMORY_ACTIONS = (
    "alloc",
    "free_requested",
    "free_completed",
    "segment_alloc",
    "segment_free",
    "segment_map",
    "segment_unmap",
)
Entry = tuple[str, int, int, int]
"""Action (torch's name), address (of `oom`: bytes that the card had left, 0 if unknown), bytes (as asked for, with alloc, free and
oom), stream."""


class Start(NamedTuple):
    """What was there before the first entry, by address. `region_bases`: by stream and whether it is the small pool, the lowest
    address at which an expandable segment of the start grew later. It may lie below all that was mapped then."""

    segments: tuple[Segment, ...] = ()
    region_bases: Mapping[tuple[int, bool], int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RecordedPeaks:
    """Peaks in bytes: reserved from the segment events, requested from allocs and frees; allocated, whose block sizes a trace does
    not hold, from the recorded addresses and the rule that says which remainders are split off."""

    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int


def recorded_peaks(start: Start, entries: Sequence[Entry], settings: AllocatorSettings) -> RecordedPeaks:
    """What the trace shows by itself: no choice of the model enters."""
    layout = _Layout(settings)
    requested = allocated = reserved = 0
    asked: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for segment in start.segments:
        reserved += segment.size
        layout.add_segment(segment.address, segment.size, expandable=segment.expandable)
        for block in segment.blocks:
            if block.state == "inactive":
                continue
            address = segment.address + block.offset
            asked[address], sizes[address] = block.requested, block.size
            requested += block.requested
            layout.use(address, block.size)
            allocated += block.size if block.state == "active_allocated" else 0
    most_requested, most_allocated, most_reserved = requested, allocated, reserved
    for action, address, nbytes, _ in entries:
        match action:
            case "alloc":
                sizes[address] = size = layout.block_bytes(address, nbytes)
                layout.use(address, size)
                asked[address] = nbytes
                requested += nbytes
                allocated += size
                most_requested = max(most_requested, requested)
                most_allocated = max(most_allocated, allocated)
            case "free_requested":
                allocated -= sizes[address]
            case "free_completed":
                requested -= asked.pop(address)
                layout.free(address, sizes.pop(address))
            case "segment_alloc" | "segment_map":
                reserved += nbytes
                layout.add_segment(address, nbytes, expandable=action == "segment_map")
                most_reserved = max(most_reserved, reserved)
            case "segment_free" | "segment_unmap":
                reserved -= nbytes
                layout.remove_segment(address)
    return RecordedPeaks(most_requested, most_allocated, most_reserved)


class _Layout:
    """Where the recorded blocks of the large pool's segments lie: how far the free block that an alloc was cut from went."""

    def __init__(self, settings: AllocatorSettings) -> None:
        self._settings = settings
        self._starts: list[int] = []
        self._ends: dict[int, int] = {}
        self._used: list[int] = []

    def add_segment(self, address: int, nbytes: int, *, expandable: bool) -> None:
        if not expandable and nbytes != SMALL_SEGMENT_BYTES:
            insort(self._starts, address)
            self._ends[address] = address + nbytes

    def remove_segment(self, address: int) -> None:
        if self._ends.pop(address, None) is not None:
            self._starts.remove(address)

    def use(self, address: int, nbytes: int) -> None:
        insort(self._used, address)

    def free(self, address: int, nbytes: int) -> None:
        del self._used[bisect_left(self._used, address)]

    def block_bytes(self, address: int, nbytes: int) -> int:
        """The request, rounded, with what was left over where that was not split off."""
        size = self._settings.rounded(nbytes)
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= (end := self._ends[self._starts[index]]):
            return size
        following = bisect_right(self._used, address)
        if following < len(self._used):
            end = min(end, self._used[following])
        rest = end - address - size
        return size + rest if rest <= SMALL_BYTES or size >= self._settings.max_split_bytes else size


def address_space(start: Start, entries: Sequence[Entry], settings: AllocatorSettings) -> int | None:
    """The size of an expandable segment's range of addresses, as far as it shows: from the beginning of each there are at least as
    many, in its whole granules, up to whatever lies above it. None where nothing does.

    Memory that is mapped elsewhere than at the end, or inside, of what was mapped before begins a new one. What was mapped at the
    start is of one if it is of one stream and pool and nothing else lies between.
    """
    regions: list[tuple[int, int, int]] = []
    granules = {True: SMALL_SEGMENT_BYTES, False: settings.large_segment_bytes}
    above = [segment.address for segment in start.segments if not segment.expandable]
    above += [address for action, address, _, _ in entries if action == "segment_alloc"]
    last: Segment | None = None
    for segment in start.segments:
        if segment.expandable:
            small = segment.pool == "small"
            same = last is not None and (last.expandable, last.stream, last.pool) == (
                True,
                segment.stream,
                segment.pool,
            )
            lowest = min(start.region_bases.get((segment.stream, small), segment.address), segment.address)
            regions.append((regions.pop()[0] if same else lowest, segment.address + segment.size, granules[small]))
        last = segment
    for action, address, nbytes, _ in entries:
        if action != "segment_map":
            continue
        index = bisect_right(regions, (address, 2**64)) - 1
        if index >= 0 and address <= regions[index][1]:
            begin, end, granule = regions[index]
            regions[index] = begin, max(end, address + nbytes), granule
        else:
            insort(regions, (address, address + nbytes, granules[nbytes == SMALL_SEGMENT_BYTES]))
    above = sorted([*above, *(begin for begin, _, _ in regions)])
    spaces = []
    for begin, end, granule in regions:
        index = bisect_left(above, max(end, begin + 1))
        if index < len(above):
            spaces.append((above[index] - begin) // granule * granule)
    return min(spaces, default=None)
