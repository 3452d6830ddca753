"""A recording as a trace for ui.perfetto.dev: memory over time as counters, what was annotated as slices, and where memory ran out.

    Path("job.json").write_text(json.dumps(perfetto_of(read_snapshot(Path("job.pickle")))))

The form is Chrome's JSON trace, which Perfetto reads (its documentation: "Importing traces from other tools").
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vrambench.bench.allocator.comparison import DeviceTrace, device_traces
from vrambench.bench.allocator.explained import without_numbers
from vrambench.bench.allocator.snapshot import Snapshot

SLICES, MOMENTS = 1, 2
"""Rows of a device (Chrome: threads)."""
RESERVED, IN_USE = "reserved", "in use"
MOST_NAMES = 20
"""Names of memory that have a counter of their own, by the most that was in use; the others have one together."""


class Change(NamedTuple):
    """`nbytes` more, or fewer, of reserved memory (`name` None), or in use and called `name` (the metadata)."""

    time: int
    name: str | None
    nbytes: int


def perfetto_of(snapshot: Snapshot) -> dict[str, Any]:
    """Every device is a process of the trace. Times are the recording's, in microseconds; counters are bytes. Raises
    ConfigurationError where the trace does not agree with the segments."""
    events = [event for trace in device_traces(snapshot) if trace.entries for event in _events(trace)]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _events(trace: DeviceTrace) -> Iterator[dict[str, Any]]:
    device = {"pid": trace.device}
    yield {"ph": "M", "name": "process_name", "args": {"name": f"memory of device {trace.device}"}} | device
    if trace.spans:
        yield {"ph": "M", "name": "thread_name", "args": {"name": "parts of the job"}, "tid": SLICES} | device
    for span in trace.spans:
        yield {"ph": "X", "name": span.name, "ts": span.begin, "dur": span.end - span.begin, "tid": SLICES} | device
    for time, (action, _, nbytes, _) in zip(trace.times, trace.entries, strict=True):
        if action == "oom":
            told = {"name": "out of memory", "args": {"asked_bytes": nbytes}}
            yield {"ph": "i", "s": "p", "ts": time, "tid": MOMENTS} | told | device
    changes = list(_changes(trace))
    counters = _counters(changes)
    values: Counter[str] = Counter()
    for change in changes:
        for counter in counters[change.name]:
            values[counter] += change.nbytes
            yield {"ph": "C", "name": counter, "ts": change.time, "args": {"bytes": values[counter]}} | device


def _changes(trace: DeviceTrace) -> Iterator[Change]:
    held: dict[int, tuple[str, int]] = {}
    for segment in trace.start.segments:
        yield Change(trace.times[0], None, segment.size)
        for block in segment.blocks:
            if block.state != "inactive":
                address = segment.address + block.offset
                asked = trace.held.get(address)
                held[address] = without_numbers(asked.metadata) if asked else "", block.requested
                yield Change(trace.times[0], *held[address])
    askers = iter(trace.asked)
    for time, (action, address, nbytes, _) in zip(trace.times, trace.entries, strict=True):
        if action in ("segment_alloc", "segment_map"):
            yield Change(time, None, nbytes)
        elif action in ("segment_free", "segment_unmap"):
            yield Change(time, None, -nbytes)
        elif action == "alloc":
            held[address] = without_numbers(next(askers).metadata), nbytes
            yield Change(time, *held[address])
        elif action == "free_completed" and address in held:
            name, freed = held.pop(address)
            yield Change(time, name, -freed)


def _counters(changes: Sequence[Change]) -> dict[str | None, tuple[str, ...]]:
    """By name: the counters that it is counted in."""
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for change in changes:
        if change.name is not None:
            now[change.name] += change.nbytes
            most[change.name] = max(most[change.name], now[change.name])
    counters: dict[str | None, tuple[str, ...]] = {None: (RESERVED,), **dict.fromkeys(most, (IN_USE,))}
    if any(most):
        own = heapq.nlargest(MOST_NAMES, most, key=lambda name: most[name])
        counters |= {name: (IN_USE, f"{IN_USE}: {name if name and name in own else 'others'}") for name in most}
    return counters
