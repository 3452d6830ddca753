"""Inserts the decode steps that were not traced between those that were.

Of a rollout, three forward passes are traced: the prompts', the first decode step and the last one. All decode steps do the same,
but where a kernel copies keys and values, sizes grow with what is filled of the cache. The steps between have sizes on the
straight line between the two, and the allocator meets each of them.

Not every step is inserted. Where no size grows, none is: the allocator gives each step what the one before gave back. Else those
are inserted that need a block of a new size (`block_class`). Inserted steps keep the four layers that were traced: within a
step, each layer takes what the one before gave back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from vrambench.bench.allocator.settings import (
    LARGE_ROUNDING_BYTES,
    MIN_OWN_SEGMENT_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    AllocatorSettings,
)
from vrambench.bench.predict.tracing.trace import ALLOC, BEGIN, END, FREE, Event, Trace, new

LARGE_SEGMENT_BYTES = AllocatorSettings().large_segment_bytes
SHARE = 32
"""Blocks that share a segment are told apart in steps of one such part of it."""


class NotRegular(Exception):
    """Decode steps do not repeat."""


class TracedStep(NamedTuple):
    """A decode step in a trace: its events, without its markers, are those from `start` up to `end`. `number`: its place
    in the rollout, from 1."""

    number: int
    start: int
    end: int


class StepEvent(NamedTuple):
    """What every decode step does: `nbytes` in the first traced step, and `growth` more in each further one. `offset`: which of a
    step's events allocates the memory that this is about, None for no memory. `before`: that memory is of the step before."""

    event: Event
    nbytes: int
    growth: int
    offset: int | None
    before: bool = False


def with_all_steps(trace: Trace, traced: Trace) -> Trace:
    """`trace` without markers, and with all decode steps that need blocks of new sizes. `traced`: the trace of few layers that
    `trace` was extended from. Raises NotRegular."""
    if all(event.kind != BEGIN for event in traced.events):
        return trace
    made = replace(trace, events=[])
    idents = itertools.count(max((event.ident for event in trace.events), default=0) + 1)
    done = 0
    pairs = zip(itertools.pairwise(_steps(traced.events)), itertools.pairwise(_steps(trace.events)), strict=True)
    for (first, last), (whole_first, whole_last) in pairs:
        ones, others = traced.events[first.start : first.end], traced.events[last.start : last.end]
        if last.number <= first.number + 1 or _sizes(ones) == _sizes(others):
            continue
        between = whole_last.start - whole_first.end - 2  # without the markers
        if between:
            raise NotRegular(f"{between} events between two decode steps")
        step_events = _common(ones, others, last.number - first.number)
        _check_handed_on(step_events, ones, trace.events[whole_first.start : whole_first.end])
        made.events += _unmarked(trace.events[done : whole_first.end])
        held = {offset: event.ident for offset, event in enumerate(ones) if event.kind == ALLOC}
        for since in _needing_blocks(step_events, last.number - first.number):
            held = _insert(step_events, since, held, idents, traced, made)
        # The last step frees what is of the step before it: the last one inserted, in place of the first traced.
        renamed = {ones[offset].ident: ident for offset, ident in held.items()}
        made.events += [
            event._replace(ident=renamed.get(event.ident, event.ident)) if event.kind == FREE else event
            for event in trace.events[whole_last.start : whole_last.end]
        ]
        done = whole_last.end
    made.events += _unmarked(trace.events[done:])
    return made


def _check_handed_on(step_events: list[StepEvent], ones: list[Event], whole: list[Event]) -> None:
    """Raises NotRegular where a step frees what a repeated layer of the one before made. `ones`: the first step's events with few
    layers; `whole`: with all."""
    there = {event.ident for event in whole if event.kind == ALLOC}
    if any(
        event.before and event.offset is not None and ones[event.offset].ident not in there for event in step_events
    ):
        raise NotRegular("a decode step frees what a repeated layer made in the step before")


def _needing_blocks(step_events: list[StepEvent], steps: int) -> Iterator[int]:
    """Steps, counted from the first traced one, that need other blocks than the last step that was inserted (or traced)."""
    growing = {(event.nbytes, event.growth) for event in step_events if event.growth}
    blocks = [block_class(nbytes) for nbytes, _ in growing]
    for since in range(1, steps):
        needed = [block_class(nbytes + growth * since) for nbytes, growth in growing]
        if needed != blocks:
            blocks = needed
            yield since


def _insert(
    step_events: list[StepEvent], since: int, before: dict[int, int], idents: Iterator[int], traced: Trace, made: Trace
) -> dict[int, int]:
    """Appends to `made` the step that is `since` steps after the first traced one. Returns the idents that it allocates, by offset;
    `before`: those of the step before."""
    own: dict[int, int] = {}
    for event, nbytes, growth, offset, earlier in step_events:
        kind, ident, _, operator, place = event
        if kind == ALLOC and offset is not None:
            sample, ident = ident, next(idents)
            own[offset] = ident
            if sample in traced.hidden:
                made.hidden.add(ident)
            if sample in traced.owners:
                made.owners[ident] = traced.owners[sample]
        elif offset is not None:
            ident = (before if earlier else own)[offset]
        made.events.append(new(Event, (kind, ident, nbytes + growth * since, operator, place)))
    return own


def without_marks(trace: Trace) -> Trace:
    """`trace` without markers, and with the traced decode steps alone."""
    return replace(trace, events=_unmarked(trace.events))


def block_class(nbytes: int) -> tuple[int, int]:
    """Sizes of one class fit into each other's blocks. A large one has a segment of its own, in steps of 2 MiB. Smaller ones share
    segments of 20 or 2 MiB, in steps of a SHARE-th of those."""
    if nbytes >= MIN_OWN_SEGMENT_BYTES:
        return 2, -(-nbytes // LARGE_ROUNDING_BYTES)
    if nbytes > SMALL_BYTES:
        return 1, -(-nbytes * SHARE // LARGE_SEGMENT_BYTES)
    return 0, -(-nbytes * SHARE // SMALL_SEGMENT_BYTES)


def _sizes(events: list[Event]) -> list[tuple[int, int]]:
    return [(event.kind, event.nbytes) for event in events]


def _steps(events: list[Event]) -> Iterator[TracedStep]:
    begun: list[tuple[int, int]] = []
    for index, event in enumerate(events):
        if event.kind == BEGIN:
            begun.append((event.nbytes, index + 1))
        elif event.kind == END:
            number, start = begun.pop()
            yield TracedStep(number, start, index)


def _unmarked(events: list[Event]) -> list[Event]:
    return [event for event in events if event.kind != BEGIN and event.kind != END]


def _common(ones: list[Event], others: list[Event], steps: int) -> list[StepEvent]:
    """What every step does, from the events of two that are `steps` apart. Raises NotRegular where more than sizes differs."""
    if len(ones) != len(others):
        raise NotRegular(f"a decode step has {len(ones)} events, the last one {len(others)}")
    of_one = {event.ident: offset for offset, event in enumerate(ones) if event.kind == ALLOC}
    of_other = {event.ident: offset for offset, event in enumerate(others) if event.kind == ALLOC}
    unfreed = set(of_other.values())
    found = []
    for offset, (one, other) in enumerate(zip(ones, others, strict=True)):
        growth, rest = divmod(other.nbytes - one.nbytes, steps)
        if one.kind != other.kind or rest:
            raise NotRegular(f"event {offset} of a decode step ({one.operator}) is another in the last one")
        if other.kind == ALLOC:
            found.append(StepEvent(other, one.nbytes, growth, offset))
        elif other.kind != FREE:
            found.append(StepEvent(other, one.nbytes, growth, None))
        elif other.ident in of_other and of_one.get(one.ident) == of_other[other.ident]:
            found.append(StepEvent(other, 0, 0, of_other[other.ident]))
            unfreed.discard(of_other[other.ident])
        elif other.ident in of_one and one.ident not in of_one:
            found.append(StepEvent(other, 0, 0, of_one[other.ident], before=True))
            unfreed.discard(of_one[other.ident])
        else:
            raise NotRegular(f"event {offset} of a decode step ({one.operator}) frees what is no step's")
    if unfreed:
        raise NotRegular(f"{len(unfreed)} allocations of a decode step outlive the next one")
    return found
