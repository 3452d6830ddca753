"""Real recordings of CUDA's caching allocator against the model of it: does the model put every block where the GPU did?

    for device in replay_snapshot(read_snapshot(Path("job.pickle"))):
        device.exact, device.predicted.reserved.peak, device.recorded.reserved_bytes

In: a snapshot (`vrambench.bench.allocator.snapshot`). Out: per device, the peaks that the trace itself shows beside those of the
model that was given only the requests, and the first request that the model served from another address. With the requests the
same, an error of this replay is an error of the allocator model alone.

A recording may begin when memory is in use already: what was there is worked out backwards from the segments at its end. Private
pools (CUDA graphs, torch.cuda.MemPool), which the model does not have, are left out, and how much that was is said.
"""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from vrambench.bench.allocator.beginning import start_of
from vrambench.bench.allocator.blocks import AllocatorStats, Block, Segment, State
from vrambench.bench.allocator.recorded import (
    MEMORY_ACTIONS,
    Entry,
    RecordedPeaks,
    Start,
    address_space,
    recorded_peaks,
)
from vrambench.bench.allocator.replay import Event, replay
from vrambench.bench.allocator.settings import UNLIMITED, AllocatorSettings
from vrambench.bench.allocator.snapshot import (
    DEFAULT_POOL,
    Asked,
    RawAnnotation,
    RawEntry,
    RawSegment,
    Snapshot,
    Span,
)
from vrambench.methods.errors import ConfigurationError, UnknownValue

Source = Snapshot | Mapping[str, Any] | Sequence[Any]
"""What `Snapshot.of` takes."""

ACTIONS = (*MEMORY_ACTIONS, "oom", "snapshot", "user_defined")
STATES: dict[str, State] = {
    "active_allocated": "active_allocated",
    "active_pending_free": "active_pending_free",
    "active_awaiting_free": "active_pending_free",  # the name in torch's documentation
    "inactive": "inactive",
}


class LeftOut(NamedTuple):
    """Private pools of a device: their segments at the end, their bytes, and how many entries of the trace were theirs."""

    segments: int
    reserved_bytes: int
    entries: int

    def __str__(self) -> str:
        return (
            f"private pools (CUDA graphs or torch.cuda.MemPool) are left out: {self.segments} segments of "
            f"{self.reserved_bytes} bytes at the end, {self.entries} entries of the trace"
        )


@dataclass(frozen=True, slots=True)
class DeviceTrace:
    """One device's part of a snapshot: what it held when the recording began, what happened, and what it held at the end. `times`:
    of each entry, in microseconds of the recording's clock; its number, where none are recorded. `asked`: who asked for each alloc,
    in order, and `refused` for each request that found no memory; `held`: for each block in use at the end, by address. `spans`:
    what was annotated (torch.profiler.record_function), from one time to another."""

    device: int
    start: Start
    entries: tuple[Entry, ...]
    end: tuple[Segment, ...]
    left_out: LeftOut | None
    times: tuple[int, ...]
    asked: tuple[Asked, ...]
    held: Mapping[int, Asked]
    spans: tuple[Span, ...]
    refused: tuple[Asked, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceComparison:
    """`moved_entry` is the first entry of the trace that the model answered with another address; `same_end` says whether it ended
    with the recorded segments and blocks, to the byte; `began_empty` whether nothing was worked out backwards. `at_peak` is the
    model's map when reserved memory was at its peak. `left_out` is in neither side's numbers."""

    device: int
    recorded: RecordedPeaks
    predicted: AllocatorStats
    began_empty: bool
    moved_entry: int | None
    same_end: bool
    at_peak: tuple[Segment, ...]
    left_out: LeftOut | None

    @property
    def exact(self) -> bool:
        """Every block where it was, and the three peaks equal."""
        peaks = self.predicted
        return (
            self.moved_entry is None
            and self.same_end
            and (peaks.requested.peak, peaks.allocated.peak, peaks.reserved.peak)
            == (self.recorded.requested_bytes, self.recorded.allocated_bytes, self.recorded.reserved_bytes)
        )


def device_traces(snapshot: Source, settings: AllocatorSettings | None = None) -> list[DeviceTrace]:
    """The devices that a snapshot tells about. Raises ConfigurationError for traces that do not agree with the segments."""
    snapshot = Snapshot.of(snapshot)
    settings = settings or snapshot.settings()
    ends: dict[int, list[RawSegment]] = {device: [] for device, raw in enumerate(snapshot.device_traces) if raw}
    for segment in snapshot.segments:
        ends.setdefault(segment.device, []).append(segment)
    traces = []
    for device, raw_segments in sorted(ends.items()):
        raw_entries = snapshot.device_traces[device] if 0 <= device < len(snapshot.device_traces) else []
        private = [segment for segment in raw_segments if segment.segment_pool_id != DEFAULT_POOL]
        kept = _of_the_default_pool(raw_entries, private)
        raw = _with_requests(kept)
        entries = [_entry(one) for one in raw]
        end = sorted(map(_segment, raw_segments), key=lambda segment: segment.address)
        end = [segment for segment in end if segment.address not in {each.address for each in private}]
        start = start_of(entries, end, settings)
        left_out = LeftOut(len(private), sum(each.total_size for each in private), len(raw_entries) - len(kept))
        traces.append(
            DeviceTrace(
                device,
                start,
                tuple(entries),
                tuple(end),
                left_out if any(left_out) else None,
                _times(raw),
                _askers(raw, "alloc"),
                dict(pair for segment in raw_segments for pair in _holders(segment)),
                tuple(_spans(snapshot.external_annotations, device)),
                _askers(raw, "oom"),
            )
        )
    return traces


def events_of(trace: DeviceTrace, settings: AllocatorSettings) -> tuple[list[Event], list[int]]:
    """The trace as events for `replay` (ids are addresses), and for each the entry that it comes from.

    Segments that go back to the driver are the user's doing (empty_cache) or a full card's, neither of which the requests tell:
    they are passed on, as one empty_cache for a whole run of them (each by itself where max_split_size lets single ones go).
    """
    events: list[Event] = []
    positions: list[int] = []
    releasing = False
    entries = trace.entries
    skip = -1
    for index, (action, address, nbytes, stream) in enumerate(entries):
        event: Event | None = None
        if action == "alloc":
            event = action, address, nbytes, stream
        elif action == "free_requested":
            following = entries[index + 1] if index + 1 < len(entries) else None
            at_once = following is not None and following[:2] == ("free_completed", address)
            skip = index + 1 if at_once else skip
            event = "free" if at_once else action, address, nbytes, stream
        elif action == "free_completed" and index != skip:
            event = action, address, nbytes, stream
        elif action in ("segment_alloc", "segment_map"):
            event = "segment_placed", address, nbytes, stream
        elif action == "segment_free" and settings.max_split_bytes != UNLIMITED:
            event = "segment_released", address, 0, 0
        elif action in ("segment_free", "segment_unmap") and not releasing:
            event = "empty_cache", 0, 0, 0
        releasing = action in ("segment_free", "segment_unmap") or (releasing and action not in MEMORY_ACTIONS)
        if event is not None:
            events.append(event)
            positions.append(index)
    return events, positions


def replay_snapshot(
    snapshot: Source, settings: AllocatorSettings | None = None, total_bytes: int | None = None
) -> list[DeviceComparison]:
    """Replays each device's requests through the model, and lays its peaks beside the recorded ones.

    `settings` are the snapshot's own unless given; `total_bytes` is the card's memory, which sets how far an expandable segment can
    grow. A memory fraction is not applied: what it led to is in the trace.
    """
    snapshot = Snapshot.of(snapshot)
    settings = replace(settings or snapshot.settings(), memory_fraction=1.0)
    return [_compared(trace, settings, total_bytes) for trace in device_traces(snapshot, settings)]


def _compared(trace: DeviceTrace, settings: AllocatorSettings, total_bytes: int | None) -> DeviceComparison:
    events, positions = events_of(trace, settings)
    space = address_space(trace.start, trace.entries, settings)
    try:
        result = replay(
            events,
            settings,
            address_space_bytes=total_bytes * 9 // 8 if total_bytes else space,
            start=trace.start.segments,
            region_bases=trace.start.region_bases,
            ids_are_addresses=True,
        )
    except ValueError as error:
        raise ConfigurationError(f"snapshot: {error}") from error
    return DeviceComparison(
        device=trace.device,
        recorded=recorded_peaks(trace.start, trace.entries, settings),
        predicted=result.stats,
        began_empty=not trace.start.segments,
        moved_entry=None if result.moved_event is None else positions[result.moved_event],
        same_end=result.final_map == trace.end,
        at_peak=result.block_map,
        left_out=trace.left_out,
    )


def _of_the_default_pool(entries: Sequence[RawEntry], private: Sequence[RawSegment]) -> list[RawEntry]:
    """The entries that are not of private pools.

    Before torch 2.9 an entry does not say which pool it is of: it is private if it lies in a segment that is private at the end,
    and not before that segment was allocated. Of private segments that are gone by the end nothing is known.
    """
    ranges = {segment.address: segment.address + segment.total_size for segment in private}
    kept = []
    for entry in reversed(entries):
        action, address = entry["action"], entry.get("addr", 0)
        inside = entry.get("pool_id", DEFAULT_POOL) != DEFAULT_POOL
        if ranges and not inside:
            inside = any(begin <= address < end for begin, end in ranges.items())
        if inside and action == "segment_alloc":
            ranges.pop(address, None)
        if not inside or action not in MEMORY_ACTIONS:
            kept.append(entry)
    return kept[::-1]


def _times(entries: Sequence[RawEntry]) -> tuple[int, ...]:
    times = [entry.get("time_us") for entry in entries]
    if not all(isinstance(time, int) for time in times):
        return tuple(range(len(entries)))
    return tuple(itertools.accumulate(typing.cast(list[int], times), max))


def _askers(raw: Iterable[RawEntry], action: str) -> tuple[Asked, ...]:
    """Who caused each entry of this action."""
    return tuple(_asked(one.get("frames"), one.get("user_metadata")) for one in raw if one["action"] == action)


def _asked(frames: Any, metadata: Any) -> Asked:
    stack = [frame for frame in frames if isinstance(frame, Mapping)] if isinstance(frames, list | tuple) else []
    return Asked(stack, metadata if isinstance(metadata, str) else "")


def _holders(raw: RawSegment) -> Iterator[tuple[int, Asked]]:
    """Of each block in use, its address and who asked for it."""
    address = raw.address
    for block in raw.blocks:
        if block.frames or block.user_metadata:
            yield address, _asked(block.frames, block.user_metadata)
        address += block.size


def _spans(annotations: Iterable[RawAnnotation], device: int) -> Iterator[Span]:
    """In the order in which they end. What was still going on at the end is left out."""
    begun: dict[str, list[int]] = {}
    for one in annotations:
        if one.device != device:
            continue
        if one.stage == "START":
            begun.setdefault(one.name, []).append(one.time_us)
        elif begun.get(one.name):
            yield Span(one.name, begun[one.name].pop(), one.time_us)


def _segment(raw: RawSegment) -> Segment:
    blocks = []
    offset = 0
    for block in raw.blocks:
        if block.state not in STATES:
            raise UnknownValue("snapshot.segments.blocks.state", block.state, STATES)
        state = STATES[block.state]
        requested = block.size if block.requested_size is None else block.requested_size
        blocks.append(Block(offset, block.size, 0 if state == "inactive" else requested, state))
        offset += block.size
    pool: Literal["small", "large"] = "small" if raw.segment_type == "small" else "large"
    return Segment(raw.address, raw.total_size, raw.stream, pool, tuple(blocks), raw.is_expandable)


def _entry(raw: RawEntry) -> Entry:
    if raw["action"] not in ACTIONS:
        raise UnknownValue("snapshot.device_traces.action", raw["action"], ACTIONS)
    address = raw.get("device_free", 0) if raw["action"] == "oom" else raw.get("addr", 0)
    return raw["action"], address, raw["size"], raw["stream"]


def _with_requests(entries: Sequence[RawEntry]) -> Sequence[RawEntry]:
    """The entries, with a request for every free where the recording left them out."""
    if not _requests_left_out(entries):
        return entries
    asked: RawEntry
    whole: list[RawEntry] = []
    for entry in entries:
        if entry["action"] == "free_completed":
            asked = {**entry, "action": "free_requested"}
            whole.append(asked)
        whole.append(entry)
    return whole


def _requests_left_out(entries: Sequence[RawEntry]) -> bool:
    """Recorded with skip_actions=["free_requested"]: something allocated in the recording was freed, and no free was asked for.
    (Of a block that was there before, the free may have been asked for before, too.)"""
    allocated: set[int] = set()
    left_out = False
    for entry in entries:
        action, address = entry["action"], entry.get("addr", 0)
        if action == "free_requested":
            return False
        if action == "alloc":
            allocated.add(address)
        left_out = left_out or (action == "free_completed" and address in allocated)
    return left_out
