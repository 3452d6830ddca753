"""What a recorded trace of the allocator shows by itself, without any choice of the model: its peaks, and how it began.

In: a trace's entries, and the segments at its end. `vrambench.bench.allocator.snapshot` reads both from a file.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from vrambench.bench.allocator.blocks import Block, Segment, State
from vrambench.bench.allocator.settings import SMALL_BYTES, SMALL_SEGMENT_BYTES, AllocatorSettings
from vrambench.methods.errors import ConfigurationError

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
"""Action (torch's name), address, bytes (as asked for, with alloc and free), stream."""


@dataclass(frozen=True, slots=True)
class RecordedPeaks:
    """Peaks in bytes: reserved from the segment events, requested from allocs and frees; allocated, whose block sizes a trace does
    not hold, from the recorded addresses and the rule that says which remainders are split off."""

    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int


def start_of(entries: Sequence[Entry], end: Sequence[Segment], settings: AllocatorSettings) -> tuple[Segment, ...]:
    """What the device held when the recording began: the `end`, with every entry undone from the last to the first.

    The size of a block that was freed in the recording is not in it. It is the rounded request and, in the large pool, all of a
    gap of at most 1 MiB that follows (free memory there always comes in larger pieces; only a tail that was not split off is as
    small); a tail that already had free memory behind it cannot be told from that memory. Raises ConfigurationError where the
    entries do not agree with each other, and for expandable segments that were there before.
    """
    return _Backwards(settings).start(entries, end)


def recorded_peaks(start: Sequence[Segment], entries: Sequence[Entry], settings: AllocatorSettings) -> RecordedPeaks:
    """What the trace shows by itself: no choice of the model enters."""
    layout = _Layout(settings)
    requested = allocated = reserved = 0
    asked: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for segment in start:
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
    peaks = [requested, allocated, reserved]
    for action, address, nbytes, _ in entries:
        match action:
            case "segment_alloc" | "segment_map":
                reserved += nbytes
                layout.add_segment(address, nbytes, expandable=action == "segment_map")
            case "segment_free" | "segment_unmap":
                reserved -= nbytes
                layout.remove_segment(address)
            case "alloc":
                sizes[address] = layout.block_bytes(address, nbytes)
                layout.use(address, sizes[address])
                asked[address] = nbytes
                requested += nbytes
                allocated += sizes[address]
            case "free_requested":
                allocated -= sizes[address]
            case "free_completed":
                requested -= asked.pop(address)
                layout.free(address, sizes.pop(address))
        peaks = [max(peak, now) for peak, now in zip(peaks, (requested, allocated, reserved), strict=True)]
    return RecordedPeaks(*peaks)


class _Backwards:
    """What a device held when its recording began: the end, with every entry undone from the last to the first."""

    def __init__(self, settings: AllocatorSettings) -> None:
        self._settings = settings
        self._segments: dict[int, Segment] = {}
        self._mapped = 0
        self._blocks: dict[int, tuple[int, int | None, State]] = {}

    def start(self, entries: Sequence[Entry], end: Sequence[Segment]) -> tuple[Segment, ...]:
        for segment in end:
            self._mapped += segment.size if segment.expandable else 0
            if not segment.expandable:
                self._segments[segment.address] = segment
            for block in segment.blocks:
                if block.state != "inactive":
                    self._blocks[segment.address + block.offset] = block.requested, block.size, block.state
        for index in range(len(entries) - 1, -1, -1):
            self._undo(index, entries[index])
        if self._mapped:
            raise ConfigurationError("snapshot: expandable segments must be recorded from the first allocation on")
        segments = []
        addresses = sorted(self._blocks)
        for at, segment in sorted(self._segments.items()):
            low, high = bisect_left(addresses, at), bisect_left(addresses, at + segment.size)
            segments.append(replace(segment, blocks=tuple(self._tiles(segment, addresses[low:high]))))
            del addresses[low:high]
        if addresses:
            raise ConfigurationError(f"snapshot: the block at {addresses[0]} lies in no segment")
        return tuple(segments)

    def _undo(self, index: int, entry: Entry) -> None:
        action, address, nbytes, stream = entry
        blocks = self._blocks
        match action:
            case "segment_map":
                self._mapped -= nbytes
            case "segment_unmap":
                self._mapped += nbytes
            case "segment_alloc":
                self._agree(address in self._segments, index, entry)
                del self._segments[address]
            case "segment_free":
                self._agree(address not in self._segments, index, entry)
                pool: Literal["small", "large"] = "small" if nbytes == SMALL_SEGMENT_BYTES else "large"
                self._segments[address] = Segment(address, nbytes, stream, pool, ())
            case "alloc":
                self._agree(address in blocks, index, entry)
                del blocks[address]
            case "free_completed":
                self._agree(address not in blocks, index, entry)
                blocks[address] = nbytes, None, "active_pending_free"
            case "free_requested":
                self._agree(address in blocks, index, entry)
                requested, size, _ = blocks[address]
                blocks[address] = requested, size, "active_allocated"

    @staticmethod
    def _agree(right: bool, index: int, entry: Entry) -> None:
        if not right:
            raise ConfigurationError(
                f"snapshot: entry {index} ({entry[0]} of {entry[2]} bytes at {entry[1]}) does not agree with what follows it; "
                "was the trace recorded without some of its actions?"
            )

    def _tiles(self, segment: Segment, addresses: Sequence[int]) -> list[Block]:
        tiles: list[Block] = []
        end = segment.address + segment.size
        at = segment.address
        for address, following in pairwise([*addresses, end]):
            if at < address:
                tiles.append(Block(at - segment.address, address - at, 0, "inactive"))
            requested, size, state = self._blocks[address]
            if size is None:
                size = self._settings.rounded(requested)
                tail = following - address - size
                if segment.pool == "large" and (tail <= SMALL_BYTES or size >= self._settings.max_split_bytes):
                    size += tail
            tiles.append(Block(address - segment.address, size, requested, state))
            at = address + size
            if at > following:
                raise ConfigurationError(f"snapshot: the block at {address} overlaps the next one at {following}")
        if at < end:
            tiles.append(Block(at - segment.address, end - at, 0, "inactive"))
        return tiles


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


def address_space(entries: Sequence[Entry]) -> int | None:
    """How far apart the expandable segments of a trace lie, which none of them outgrows; None with fewer than two.

    Memory that is mapped elsewhere than at the end, or inside, of what was mapped before begins a new one.
    """
    reached: list[tuple[int, int]] = []
    for action, address, nbytes, _ in entries:
        if action != "segment_map":
            continue
        index = bisect_right(reached, (address, 2**63)) - 1
        if index >= 0 and address <= reached[index][1]:
            reached[index] = reached[index][0], max(reached[index][1], address + nbytes)
        else:
            insort(reached, (address, address + nbytes))
    return min((second[0] - first[0] for first, second in pairwise(reached)), default=None)
