"""What a recording of a GPU's memory tells its owner: what was in use when memory ran out, or was at its highest; what lay unused
between; and what the same requests would have needed under other settings.

    for device in explain(read_snapshot(Path("oom.pickle")), others=[AllocatorSettings(expandable_segments=True)]):
        device.live, device.unused, device.others

In: a snapshot (`vrambench.bench.allocator.snapshot`). Where memory ran out several times, the last time counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vrambench.bench.allocator.blocks import Segment
from vrambench.bench.allocator.comparison import DeviceTrace, device_traces, events_of
from vrambench.bench.allocator.recorded import Entry, RecordedPeaks, address_space, recorded_peaks
from vrambench.bench.allocator.replay import Event, ReplayResult, replay
from vrambench.bench.allocator.settings import MIB, AllocatorSettings
from vrambench.bench.allocator.snapshot import Snapshot

LEAST_WITHIN = 0.005
"""How close the least memory is looked for, as a share of the peak."""
PLACES = ("segment_placed", "segment_released")
"""Events of addresses that hold under the recorded settings alone."""
LIBRARIES = ("/torch/", "\\torch\\", "/contextlib.py", "<frozen")
"""Parts of paths of frames that say less than those that called them."""


class Live(NamedTuple):
    """What one place had in use. `where`: the innermost frame that is not PyTorch's own; None for blocks of one size without
    a recorded stack. `before`: it was there when the recording began."""

    where: str | None
    before: bool
    nbytes: int
    blocks: int
    largest_bytes: int


class Unused(NamedTuple):
    """Reserved memory that was in no use: its bytes and blocks, and the largest of these."""

    nbytes: int
    blocks: int
    largest_bytes: int


class RanOut(NamedTuple):
    """A request that found no memory: its bytes, and what the card had left (None where the recording does not say)."""

    asked_bytes: int
    left_bytes: int | None


@dataclass(frozen=True, slots=True)
class Needed:
    """The same requests under other settings, in bytes: the peak of reserved memory on a card without a limit, and the least that a
    card must give. With less than the peak, cached memory goes back to the driver before more is taken, which takes time."""

    settings: AllocatorSettings
    reserved_bytes: int
    least_bytes: int


@dataclass(frozen=True, slots=True)
class Explained:
    """One device of a recording. `entry`: the moment, out of `entries`, that `live` and `unused` are of; `requested_bytes` were in
    use then, and `reserved_bytes` reserved. `exact`: the model put every block where the GPU did, up to then. `before_bytes`: in
    use when the recording began. `others`: first the recording's own settings."""

    device: int
    entries: int
    entry: int
    recorded: RecordedPeaks
    exact: bool
    before_bytes: int
    requested_bytes: int
    reserved_bytes: int
    ran_out: RanOut | None
    live: tuple[Live, ...]
    unused: Unused
    others: tuple[Needed, ...]
    left_out: str | None

    @property
    def given_bytes(self) -> int | None:
        """What the card gave in all where memory ran out: what was reserved, and what was left."""
        if self.ran_out is None or self.ran_out.left_bytes is None:
            return None
        return self.reserved_bytes + self.ran_out.left_bytes


def explain(snapshot: Snapshot, others: Iterable[AllocatorSettings] = ()) -> list[Explained]:
    """Each device of the recording. Raises ConfigurationError where the trace does not agree with the segments."""
    settings = replace(snapshot.settings(), memory_fraction=1.0)
    more = tuple(others)
    return [_explained(trace, settings, more) for trace in device_traces(snapshot, settings) if trace.entries]


def _explained(trace: DeviceTrace, settings: AllocatorSettings, others: Sequence[AllocatorSettings]) -> Explained:
    ran_out = [index for index, entry in enumerate(trace.entries) if entry[0] == "oom"]
    last = ran_out[-1] if ran_out else None
    live, at, entry = _in_use(trace, last)
    events, positions = events_of(trace, settings)
    until = sum(position <= entry for position in positions)
    space = address_space(trace.start, trace.entries, settings)
    run = replay(
        events[:until],
        settings,
        address_space_bytes=space,
        start=trace.start.segments,
        region_bases=trace.start.region_bases,
        ids_are_addresses=True,
    )
    asked = trace.entries[last][2] if last is not None else 0
    requests = [event for event in (events if last is None else events[:until]) if event[0] not in PLACES]
    if asked:
        requests.append(("alloc", -1, asked, trace.entries[last or 0][3]))
    recorded = recorded_peaks(trace.start, trace.entries, settings)
    as_recorded = needed(requests, settings, trace, space)
    if last is None:  # where segments lay is known, and decides between blocks of one size
        most, least = recorded.reserved_bytes, min(as_recorded.least_bytes, recorded.reserved_bytes)
        as_recorded = replace(as_recorded, reserved_bytes=most, least_bytes=least)
    return Explained(
        device=trace.device,
        entries=len(trace.entries),
        entry=entry,
        recorded=recorded,
        exact=run.moved_event is None,
        before_bytes=sum(block.requested for segment in trace.start.segments for block in segment.blocks),
        requested_bytes=at,
        reserved_bytes=sum(segment.size for segment in run.final_map),
        ran_out=RanOut(asked, trace.entries[last][1] or None) if last is not None else None,
        live=live,
        unused=_unused(run.final_map),
        others=(as_recorded, *(needed(requests, one, trace, space) for one in others)),
        left_out=str(trace.left_out) if trace.left_out else None,
    )


def _in_use(trace: DeviceTrace, last: int | None) -> tuple[tuple[Live, ...], int, int]:
    """What was in use at entry `last`, or else when most was; its bytes, and the entry."""
    held: dict[int, tuple[int, bool, str | None]] = {
        segment.address + block.offset: (
            block.requested,
            True,
            place_of(trace.held.get(segment.address + block.offset)),
        )
        for segment in trace.start.segments
        for block in segment.blocks
        if block.state != "inactive"
    }
    moment = last if last is not None else _highest(trace.entries, sum(nbytes for nbytes, *_ in held.values()))
    stacks = iter(trace.stacks)
    since: dict[int, tuple[int, Any]] = {}
    for action, address, nbytes, _ in trace.entries[: moment + 1]:
        if action == "alloc":
            since[address] = nbytes, next(stacks)
        elif action == "free_completed" and since.pop(address, None) is None:
            held.pop(address, None)
    held |= {address: (nbytes, False, place_of(stack)) for address, (nbytes, stack) in since.items()}
    groups: dict[tuple[str | None, bool, int], list[int]] = {}
    for nbytes, before, where in held.values():
        groups.setdefault((where, before, nbytes if where is None else 0), []).append(nbytes)
    live = [Live(where, before, sum(sizes), len(sizes), max(sizes)) for (where, before, _), sizes in groups.items()]
    ordered = tuple(sorted(live, key=lambda one: -one.nbytes))
    return ordered, sum(one.nbytes for one in ordered), moment


def _highest(entries: Sequence[Entry], before: int) -> int:
    """The entry after which most was in use."""
    sizes: dict[int, int] = {}
    now = most = before
    found = 0
    for index, (action, address, nbytes, _) in enumerate(entries):
        if action == "alloc":
            sizes[address] = nbytes
            now += nbytes
        elif action == "free_completed":
            now -= sizes.pop(address, nbytes)
        if now > most:
            most, found = now, index
    return found


def place_of(stack: object) -> str | None:
    """Where memory was asked for, of a recorded stack, innermost frame first: `llama/modeling_llama.py:176 forward`."""
    frames = [frame for frame in stack if isinstance(frame, Mapping)] if isinstance(stack, list | tuple) else []
    written = [frame for frame in frames if str(frame.get("filename", "")).endswith(".py")]
    own = (frame for frame in written if not any(part in str(frame["filename"]) for part in LIBRARIES))
    chosen = next(own, next(iter(written or frames), None))
    if chosen is None:
        return None
    parts = str(chosen.get("filename", "?")).replace("\\", "/").split("/")
    return f"{'/'.join(parts[-2:])}:{chosen.get('line', '?')} {chosen.get('name', '?')}"


def _unused(segments: Sequence[Segment]) -> Unused:
    free = [block.size for segment in segments for block in segment.blocks if block.state == "inactive"]
    return Unused(sum(free), len(free), max(free, default=0))


def needed(
    requests: Sequence[Event], settings: AllocatorSettings, trace: DeviceTrace, address_space_bytes: int | None
) -> Needed:
    """What `requests` need under `settings`, after what was there at the start of `trace`, which stays where it was."""

    def run(capacity: int | None = None) -> ReplayResult:
        return replay(
            requests,
            settings,
            capacity,
            address_space_bytes=address_space_bytes,
            start=trace.start.segments,
            region_bases=trace.start.region_bases,
            at_peak=False,
        )

    free = run().stats
    most = free.reserved.peak
    enough, short = most, max(0, free.active.peak - 1)
    while enough - short > max(MIB, int(LEAST_WITHIN * most)):
        middle = (enough + short) // 2
        if run(middle).oom is None:
            enough = middle
        else:
            short = middle
    return Needed(settings, most, enough)
