"""What a recording of a GPU's memory tells its owner: what was in use when memory ran out, or was at its highest; what lay unused
between; and what the same requests would have needed under other settings.

    for device in explain(read_snapshot(Path("oom.pickle")), others=[AllocatorSettings(expandable_segments=True)]):
        device.live, device.unused, device.others

In: a snapshot (`vrambench.bench.allocator.snapshot`). Where memory ran out several times, the last time counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from vrambench.bench.allocator.blocks import Segment
from vrambench.bench.allocator.comparison import DeviceTrace, device_traces, events_of
from vrambench.bench.allocator.recorded import RecordedPeaks, address_space, recorded_peaks
from vrambench.bench.allocator.replay import Event, ReplayResult, replay
from vrambench.bench.allocator.settings import MIB, AllocatorSettings
from vrambench.bench.allocator.snapshot import Asked, Frames, Snapshot

LEAST_WITHIN = 0.005
"""How close the least memory is looked for, as a share of the peak."""
PLACES = ("segment_placed", "segment_released")
"""Events of addresses that hold under the recorded settings alone."""
LIBRARIES = ("/torch/", "\\torch\\", "/contextlib.py", "<frozen")
"""Parts of paths of frames that say less than those that called them."""


class Live(NamedTuple):
    """What was in use, asked for at one place, or called the same. `where`: the innermost frame that is not PyTorch's own, or the
    metadata; None for blocks of one size without a recorded stack, and for all without metadata. `before`: it was there when the
    recording began."""

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
    """A request that found no memory: its bytes, what the card had left, where it was made and for what (None where the recording
    does not say)."""

    asked_bytes: int
    left_bytes: int | None
    where: str | None = None
    called: str | None = None


@dataclass(frozen=True, slots=True)
class Needed:
    """The same requests under other settings, in bytes: the peak of reserved memory on a card without a limit, and the least that a
    card must give. With less than the peak, cached memory goes back to the driver before more is taken, which takes time."""

    settings: AllocatorSettings
    reserved_bytes: int
    least_bytes: int


@dataclass(frozen=True, slots=True)
class Explained:
    """One device of a recording. `entry`: the moment, out of `entries`, that `live` and `unused` are of, in the `part` of the job
    that was annotated; `requested_bytes` were in use then, and `reserved_bytes` reserved. `called`: what is in `live`, by metadata;
    none where nothing has any. `exact`: the model put every block where the GPU did, up to then. `before_bytes`: in use when the
    recording began. `others`: first the recording's own settings."""

    device: int
    entries: int
    entry: int
    part: str | None
    recorded: RecordedPeaks
    exact: bool
    before_bytes: int
    requested_bytes: int
    reserved_bytes: int
    ran_out: RanOut | None
    live: tuple[Live, ...]
    called: tuple[Live, ...]
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
    entry, last = moment(trace)
    blocks = list(in_use(trace, entry).values())
    live = _by_place(blocks)
    events, positions = events_of(trace, settings)
    until = sum(position <= entry for position in positions)
    space = address_space(trace.start, trace.entries, settings)
    run = _run(trace, events[:until], settings, space)
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
        part=_part(trace, entry),
        recorded=recorded,
        exact=run.moved_event is None,
        before_bytes=sum(block.requested for segment in trace.start.segments for block in segment.blocks),
        requested_bytes=sum(one.nbytes for one in live),
        reserved_bytes=sum(segment.size for segment in run.final_map),
        ran_out=_ran_out(trace, last) if last is not None else None,
        live=live,
        called=_by_metadata(blocks),
        unused=_unused(run.final_map),
        others=(as_recorded, *(needed(requests, one, trace, space) for one in others)),
        left_out=str(trace.left_out) if trace.left_out else None,
    )


def _ran_out(trace: DeviceTrace, entry: int) -> RanOut:
    """The last request of all that found no memory."""
    _, left, nbytes, _ = trace.entries[entry]
    who = trace.refused[-1]
    return RanOut(nbytes, left or None, place_of(who.frames), without_numbers(who.metadata) or None)


def moment(trace: DeviceTrace) -> tuple[int, int | None]:
    """The entry that counts: the last that found no memory, which is the second value too, else the one after which most was in
    use."""
    ran_out = [index for index, entry in enumerate(trace.entries) if entry[0] == "oom"]
    return (ran_out[-1], ran_out[-1]) if ran_out else (_highest(trace), None)


def map_at(trace: DeviceTrace, entry: int, settings: AllocatorSettings) -> Sequence[Segment]:
    """The segments and their blocks after `entry`."""
    events, positions = events_of(trace, settings)
    until = sum(position <= entry for position in positions)
    return _run(trace, events[:until], settings, address_space(trace.start, trace.entries, settings)).final_map


def _run(
    trace: DeviceTrace, events: Sequence[Event], settings: AllocatorSettings, address_space_bytes: int | None
) -> ReplayResult:
    return replay(
        events,
        settings,
        address_space_bytes=address_space_bytes,
        start=trace.start.segments,
        region_bases=trace.start.region_bases,
        ids_are_addresses=True,
    )


class InUse(NamedTuple):
    """A block in use: the bytes that were asked for, whether it was there before the recording began, and who asked."""

    nbytes: int
    before: bool
    asked: Asked


UNKNOWN = Asked()


def in_use(trace: DeviceTrace, moment: int) -> dict[int, InUse]:
    """What was in use after entry `moment`, by address."""
    held = {
        address: InUse(block.requested, True, trace.held.get(address, UNKNOWN))
        for segment in trace.start.segments
        for block in segment.blocks
        if block.state != "inactive"
        for address in [segment.address + block.offset]
    }
    asked = iter(trace.asked)
    for action, address, nbytes, _ in trace.entries[: moment + 1]:
        if action == "alloc":
            held[address] = InUse(nbytes, False, next(asked))
        elif action == "free_completed":
            held.pop(address, None)
    return held


def _highest(trace: DeviceTrace) -> int:
    """The entry after which most was in use."""
    sizes: dict[int, int] = {}
    now = most = sum(block.requested for segment in trace.start.segments for block in segment.blocks)
    found = 0
    for index, (action, address, nbytes, _) in enumerate(trace.entries):
        if action == "alloc":
            sizes[address] = nbytes
            now += nbytes
        elif action == "free_completed":
            now -= sizes.pop(address, nbytes)
        if now > most:
            most, found = now, index
    return found


def _by_place(blocks: Iterable[InUse]) -> tuple[Live, ...]:
    wheres = ((place_of(block.asked.frames), block) for block in blocks)
    return _together((where, 0 if where else block.nbytes, block) for where, block in wheres)


def _by_metadata(blocks: Sequence[InUse]) -> tuple[Live, ...]:
    if not any(block.asked.metadata for block in blocks):
        return ()
    return _together((without_numbers(block.asked.metadata) or None, 0, block) for block in blocks)


def _together(named: Iterable[tuple[str | None, int, InUse]]) -> tuple[Live, ...]:
    """Blocks of one name (and, where they have none, of one size), largest first."""
    groups: dict[tuple[str | None, bool, int], list[int]] = {}
    for where, size, block in named:
        groups.setdefault((where, block.before, size), []).append(block.nbytes)
    live = [Live(where, before, sum(sizes), len(sizes), max(sizes)) for (where, before, _), sizes in groups.items()]
    return tuple(sorted(live, key=lambda one: -one.nbytes))


def _part(trace: DeviceTrace, entry: int) -> str | None:
    """The shortest annotated part of the job that `entry` is in."""
    time = trace.times[entry]
    around = [span for span in trace.spans if span.begin <= time < span.end]
    return min(around, key=lambda span: span.end - span.begin).name if around else None


def without_numbers(text: str) -> str:
    """`model.layers.3.mlp` -> `model.layers.*.mlp`: what layers do alike is told together."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", text)


def place_of(frames: Frames) -> str | None:
    """Where memory was asked for: `llama/modeling_llama.py:176 forward`; in a predicted job, whose frames are modules and have no
    lines, `policy/model.layers.*.mlp.up_proj aten::mm`."""
    written = [frame for frame in frames if str(frame.get("filename", "")).endswith(".py")]
    own = (frame for frame in written if not any(part in str(frame["filename"]) for part in LIBRARIES))
    chosen = next(own, next(iter(written or frames), None))
    if chosen is None:
        return None
    parts = str(chosen.get("filename", "?")).replace("\\", "/").split("/")
    line, name = chosen.get("line", "?"), chosen.get("name", "?")
    if line == 0 and not written:
        return f"{without_numbers('/'.join(parts[-2:]))} {name}"
    return f"{'/'.join(parts[-2:])}:{line} {name}"


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
