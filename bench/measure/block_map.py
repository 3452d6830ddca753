"""Where every block lay in a GPU's memory when most was in use, from a recording: the allocator's segments, what was in them, and
what lay unused between.

    found = block_map(busiest(read_snapshot(Path("recording.pickle.gz"))))
    found.names[found.segments[0][0].name]

Where memory ran out, it is the last such moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from vrambench.bench.allocator.blocks import Segment
from vrambench.bench.allocator.comparison import DeviceTrace, Source, device_traces
from vrambench.bench.allocator.explained import InUse, in_use, map_at, moment, place_of, without_numbers
from vrambench.bench.allocator.settings import AllocatorSettings
from vrambench.bench.allocator.snapshot import Snapshot
from vrambench.bench.measure.whose import Owner
from vrambench.bench.results.records import BlockMap, BlockName, Stretch

UNUSED = BlockName()


class Busiest(NamedTuple):
    """The device of a recording that had most in use, after `entry` of its trace; what that was is `held`, by address."""

    trace: DeviceTrace
    settings: AllocatorSettings
    entry: int
    held: Mapping[int, InUse]


def busiest(source: Source) -> Busiest | None:
    """None where nothing was recorded. Raises ConfigurationError where a trace does not agree with the segments."""
    snapshot = Snapshot.of(source)
    settings = replace(snapshot.settings(), memory_fraction=1.0)
    traces = [trace for trace in device_traces(snapshot, settings) if trace.entries]
    moments = [(trace, moment(trace)[0]) for trace in traces]
    found = [(in_use(trace, entry), trace, entry) for trace, entry in moments]
    if not found:
        return None
    held, trace, entry = max(found, key=lambda one: sum(block.nbytes for block in one[0].values()))
    return Busiest(trace, settings, entry, held)


def block_map(found: Busiest, owners: Mapping[int, Owner] | None = None) -> BlockMap:
    """The name of what was in no use comes first. `owners`: role and kind of memory that is held when the recording ends, by
    address."""
    trace, settings, entry, held = found
    anew = {address for action, address, _, _ in trace.entries[entry + 1 :] if action in ("alloc", "free_completed")}
    kept = {address: who for address, who in (owners or {}).items() if address not in anew}
    places: dict[BlockName, int] = {UNUSED: 0}
    segments = tuple(
        tuple(_together(_stretches(segment, held, kept, places))) for segment in map_at(trace, entry, settings)
    )
    return BlockMap(names=tuple(places), segments=segments)


def _stretches(
    segment: Segment,
    held: Mapping[int, InUse],
    owners: Mapping[int, Owner],
    places: dict[BlockName, int],
) -> Iterator[Stretch]:
    """Each block. `places` gets the names that are new."""
    for block in segment.blocks:
        address = segment.address + block.offset
        name = UNUSED if block.state == "inactive" else _name(held.get(address), owners.get(address))
        yield Stretch(name=places.setdefault(name, len(places)), nbytes=block.size)


def _name(block: InUse | None, owner: Owner | None) -> BlockName:
    role, kind = owner or (None, None)
    if block is None:
        return BlockName(used=True, role=role, kind=kind)
    return BlockName(
        used=True,
        role=role,
        kind=kind,
        called=without_numbers(block.asked.metadata),
        where=place_of(block.asked.frames) or "",
    )


def _together(stretches: Iterator[Stretch]) -> Iterator[Stretch]:
    """Neighbours of one name as one."""
    for name, alike in groupby(stretches, key=lambda one: one.name):
        yield Stretch(name=name, nbytes=sum(one.nbytes for one in alike))
