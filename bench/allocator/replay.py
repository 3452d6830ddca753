"""Runs a stream of events through the allocator model: peaks, where memory ran out, and the blocks at the highest moment.

result = replay([("alloc", 1, 3 * 2**20, 0), ("free", 1, 0, 0)], AllocatorSettings(), capacity_bytes=24 * 2**30)
result.stats.reserved.peak, result.oom, result.block_map
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from vrambench.bench.allocator.blocks import AllocatorStats, DeviceOutOfMemory, Segment
from vrambench.bench.allocator.model import Allocator
from vrambench.bench.allocator.settings import AllocatorSettings
from vrambench.methods.errors import UnknownValue

Event = tuple[str, int, int, int]
"""(action, id, bytes, stream), what an action does not need being 0. Ids are the caller's own; a freed one may come again.

alloc            `bytes` for `id` on `stream`
free             `id`
free_requested   `id`, whose memory stays in use until its
free_completed
record_stream    `id` is used on `stream` too
synchronize      all work on `stream` (-1: on every stream) is done
empty_cache      torch.cuda.empty_cache
segment_placed   a segment of `bytes` that the next alloc takes lies at address `id`
segment_released the segment at address `id` goes back to the driver, and no other
"""
ACTIONS = (
    "alloc",
    "free",
    "free_requested",
    "free_completed",
    "record_stream",
    "synchronize",
    "empty_cache",
    "segment_placed",
    "segment_released",
)


@dataclass(frozen=True, slots=True)
class ReplayOutOfMemory:
    """The event that found no memory; bytes as in DeviceOutOfMemory."""

    event: int
    requested_bytes: int
    asked_bytes: int
    missing_bytes: int


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """`stats` at the end (of all events, or where memory ran out); `reserved_peak_event` is the first event after which reserved
    memory was at its peak (None: at the start), `block_map` the segments then; `final_map` those at the end.

    `moved_event` is, where ids are recorded addresses, the first alloc that the model put elsewhere.
    """

    stats: AllocatorStats
    reserved_peak_event: int | None
    block_map: tuple[Segment, ...]
    final_map: tuple[Segment, ...]
    oom: ReplayOutOfMemory | None = None
    moved_event: int | None = None


def replay(
    events: Iterable[Event],
    settings: AllocatorSettings | None = None,
    capacity_bytes: int | None = None,
    *,
    allowed_bytes: int | None = None,
    address_space_bytes: int | None = None,
    falling: bool = False,
    start: Sequence[Segment] = (),
    region_bases: Mapping[tuple[int, bool], int] = MappingProxyType({}),
    ids_are_addresses: bool = False,
    at_peak: bool = True,
) -> ReplayResult:
    """Replays until the end or until memory runs out. `start` holds what is there before; ids of its blocks are their addresses.
    The limits, `falling` and `region_bases` are those of `Allocator` and its `restore`.

    Runs twice where the peak is not at the end, the second time up to it, for the `block_map` there: keeping every map on the way
    would cost more. Without `at_peak` it runs once, and that map is empty. Raises ValueError for an id that is not in use, and
    UnknownValue for an unknown action.
    """
    events = events if isinstance(events, list) else list(events)

    def fresh() -> _Run:
        allocator = Allocator(
            settings,
            capacity_bytes,
            allowed_bytes=allowed_bytes,
            address_space_bytes=address_space_bytes,
            falling=falling,
        )
        allocator.restore(start, region_bases)
        return _Run(allocator, start)

    run = fresh()
    run.through(events, ids_are_addresses=ids_are_addresses)
    final = tuple(run.allocator.block_map())
    highest = fresh() if at_peak else None
    if highest and run.peak_event is not None:
        highest.through(events[: run.peak_event + 1])
    return ReplayResult(
        run.allocator.stats,
        run.peak_event,
        tuple(highest.allocator.block_map()) if highest else (),
        final,
        run.oom,
        run.moved_event,
    )


class _Run:
    def __init__(self, allocator: Allocator, start: Sequence[Segment]) -> None:
        self.allocator = allocator
        self.handles = {
            segment.address + block.offset: segment.address + block.offset
            for segment in start
            for block in segment.blocks
            if block.state != "inactive"
        }
        self.peak_event: int | None = None
        self.moved_event: int | None = None
        self.oom: ReplayOutOfMemory | None = None

    def through(self, events: list[Event], *, ids_are_addresses: bool = False) -> None:
        allocator, handles = self.allocator, self.handles
        malloc, free = allocator.malloc, allocator.free
        driver = allocator._driver
        peak = driver.reserved
        for index, (action, ident, nbytes, stream) in enumerate(events):
            if action == "alloc":
                if ident in handles:
                    raise ValueError(f"event {index}: {ident} is in use already")
                try:
                    handle = malloc(nbytes, stream)
                except DeviceOutOfMemory as error:
                    self.oom = ReplayOutOfMemory(index, nbytes, error.asked_bytes, error.missing_bytes)
                handles[ident] = handle if self.oom is None else 0
                if driver.reserved > peak:
                    peak = driver.reserved
                    self.peak_event = index
                if self.oom is not None:
                    return
                if ids_are_addresses:
                    allocator.addresses.forget_places()
                    if handle != ident and self.moved_event is None:
                        self.moved_event = index
                continue
            if action == "free":
                handle = handles.pop(ident, -1)
                if handle < 0:
                    raise ValueError(f"event {index}: {ident} is not in use")
                free(handle)
                continue
            self._other(index, action, ident, nbytes, stream)

    def _other(self, index: int, action: str, ident: int, nbytes: int, stream: int) -> None:
        allocator = self.allocator
        match action:
            case "empty_cache":
                allocator.empty_cache()
            case "synchronize":
                allocator.synchronize(None if stream < 0 else stream)
            case "segment_placed":
                allocator.addresses.place(ident, nbytes)
            case "segment_released":
                allocator.release_segment(ident)
            case "record_stream" | "free_requested" | "free_completed":
                if ident not in self.handles:
                    raise ValueError(f"event {index}: {ident} is not in use")
                if action == "record_stream":
                    allocator.record_stream(self.handles[ident], stream)
                elif action == "free_requested":
                    allocator.begin_free(self.handles[ident])
                else:
                    allocator.end_free(self.handles.pop(ident))
            case _:
                raise UnknownValue("event.action", action, ACTIONS)
