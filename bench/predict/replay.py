"""A trace in the model of CUDA's caching allocator: peaks by phase, where memory runs out, and whose memory is live at the peak.

replay = Replay(trace, AllocatorSettings(), allowed_bytes=20 * GIB)
replay.reserved_bytes, replay.phases, replay.oom, shares(replay)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from vrambench.bench.allocator import Allocator, AllocatorSettings, DeviceOutOfMemory
from vrambench.bench.allocator.explained import without_numbers
from vrambench.bench.allocator.snapshot import Span
from vrambench.bench.measure.whose import Asker, Owner, held_of, passing, shares_of
from vrambench.bench.predict.tracing.trace import ALLOC, EMPTY, FREE, MARK, SYNC, Event, Trace
from vrambench.bench.results.records import Held, OutOfMemory, Share

WORK, COPIES = 0, 1
"""The streams."""


class Replay:
    """A trace in the allocator: peaks by phase and of all, and what was live at the highest moment (of allocated bytes).

    `allowed_bytes`: what the allocator may reserve; `oom` says where that was too little. `falling`: the order of addresses, as
    on native Linux (vrambench.bench.allocator.blocks.Addresses). `behind`: the device does nothing before the host waits for it, so
    that memory which its work has to be done with waits, too; else it is never behind.
    """

    def __init__(
        self,
        trace: Trace,
        settings: AllocatorSettings,
        allowed_bytes: int | None = None,
        *,
        falling: bool = True,
        behind: bool = False,
        record: bool = False,
    ) -> None:
        self.phases: dict[tuple[str, int | None], tuple[int, int]] = {}
        self.requested_bytes = self.allocated_bytes = self.active_bytes = self.reserved_bytes = 0
        self.oom: OutOfMemory | None = None
        self.oom_phase: str | None = None
        self.allocator = Allocator(settings, allowed_bytes=allowed_bytes, falling=falling, record=record)
        self.spans: list[Span] = []
        self.trace = trace
        self.peak_event = 0
        self.peak_events: dict[tuple[str, int | None], int] = {}
        self._behind = behind
        self._run()

    def _run(self) -> None:
        allocator, handles = self.allocator, dict[int, int]()
        malloc, free = allocator.malloc, allocator.free
        copies, lent = self.trace.copies, self.trace.lent
        highest = here = at = 0
        phase: tuple[str, int | None] | None = None
        for index, (kind, ident, nbytes, _, place) in enumerate(self.trace.events):
            if kind == ALLOC:
                try:
                    handles[ident] = malloc(nbytes, COPIES) if ident in copies else malloc(nbytes)
                except DeviceOutOfMemory as error:
                    self.oom = OutOfMemory(
                        where="device", asked_bytes=error.asked_bytes, missing_bytes=error.missing_bytes or None
                    )
                    self.oom_phase = place.phase
                    break
                if allocator._allocated > here:
                    here, at = allocator._allocated, index
                    if here > highest:
                        highest = here
                        self.peak_event = index
            elif kind == FREE:
                if ident not in lent:
                    free(handles.pop(ident))
                    continue
                allocator.record_stream(handles[ident], WORK)
                free(handles.pop(ident))
                if not self._behind:
                    allocator.synchronize(WORK)
            elif kind == SYNC:
                allocator.synchronize()
            elif kind == EMPTY:
                allocator.empty_cache()
            elif kind == MARK:
                self._close(phase, at)
                phase = (place.phase or "", place.step)
                here, at = allocator._allocated, index
        self._close(phase, at)

    def _close(self, phase: tuple[str, int | None] | None, peak_event: int) -> None:
        stats = self.allocator.stats
        self.requested_bytes = max(self.requested_bytes, stats.requested.peak)
        self.allocated_bytes = max(self.allocated_bytes, stats.allocated.peak)
        self.active_bytes = max(self.active_bytes, stats.active.peak)
        self.reserved_bytes = max(self.reserved_bytes, stats.reserved.peak)
        if phase is not None:
            before = self.phases.get(phase, (0, 0))
            if phase not in self.phases or stats.allocated.peak > before[0]:
                self.peak_events[phase] = peak_event
            self.phases[phase] = (max(before[0], stats.allocated.peak), max(before[1], stats.reserved.peak))
            self._span(phase)
        self.allocator.reset_peaks()

    def _span(self, phase: tuple[str, int | None]) -> None:
        if self.allocator.trace is not None:
            name, step = phase
            begin = self.spans[-1].end if self.spans else 0
            self.spans.append(Span(name if step is None else f"step {step} {name}", begin, len(self.allocator.trace)))

    @property
    def num_alloc_retries(self) -> int:
        return self.allocator.stats.num_alloc_retries

    @property
    def live_at_peak(self) -> list[Event]:
        """The allocs that were live when the most was allocated."""
        return self._live[self.peak_event]

    @cached_property
    def _live(self) -> dict[int, list[Event]]:
        """The allocs that were live at the peak, and at that of each phase, by event."""
        wanted = {self.peak_event, *self.peak_events.values()}
        found: dict[int, list[Event]] = {index: [] for index in wanted}
        live: dict[int, Event] = {}
        for index, event in enumerate(self.trace.events[: max(wanted) + 1]):
            kind, ident, _, _, _ = event
            if kind == ALLOC:
                live[ident] = event
            elif kind == FREE:
                del live[ident]
            if index in wanted:
                found[index] = list(live.values())
        return found

    def live_in(self, phase: tuple[str, int | None]) -> list[Event]:
        """The allocs that were live when the most was allocated in a phase of a step."""
        return self._live[self.peak_events[phase]]


def shares(replay: Replay) -> tuple[Share, ...]:
    """Whose the memory is that is live at the peak, largest first."""
    return shares_of(_by_owner(replay, replay.live_at_peak), least=0)


def shares_in(replay: Replay, phase: tuple[str, int | None]) -> tuple[Share, ...]:
    """The same of the peak inside a phase of a step, without what is little."""
    return shares_of(_by_owner(replay, replay.live_in(phase)))


def _by_owner(replay: Replay, live: Iterable[Event]) -> Counter[Owner]:
    sums: Counter[Owner] = Counter()
    for event in live:
        sums[whose(event, replay.trace)] += event.nbytes
    return sums


def held(replay: Replay) -> tuple[Held, ...]:
    """Who asked for the memory that is live at the peak, largest first."""
    sums: Counter[Asker] = Counter()
    for event in replay.live_at_peak:
        role, kind = whose(event, replay.trace)
        sums[role, kind, event.place.phase, without_numbers(event.place.module), event.operator] += event.nbytes
    return held_of(sums)


def whose(event: Event, trace: Trace) -> Owner:
    """Role and kind of the memory that the alloc `event` took."""
    owner = trace.owners.get(event.ident)
    if owner is not None:
        return owner.role, owner.kind
    if event.ident in trace.hidden:
        return None, "workspace"
    place = event.place
    outside_layers = not place.module or place.module in trace.heads
    return place.role, passing(place.phase, place.role, outside_layers=outside_layers, backward=place.backward)
