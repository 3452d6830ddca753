"""Puts the decode steps that were left out between those that were traced.

Decoding does the same at every token, but where a kernel copies keys and values, sizes grow with what is filled of the cache,
and the allocator meets each of them. Of a rollout the second and the last forward pass are traced (the first is the prompts');
where they differ in sizes only, those between them have sizes on the straight line from one to the other. Where all sizes are
equal, so is every step, and none is put in: the allocator gives each what the one before gave back. For the same reason the
steps that are put in have the few layers that were traced (within a step, each layer takes what the one before gave back), and
only those are put in that ask the allocator for other blocks than the last one that was.
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
"""A segment that several blocks share is told apart by this many sizes."""


class NotRegular(Exception):
    """Decode steps do not repeat."""


class Block(NamedTuple):
    """One traced step: its events are those from `start` up to `end`, markers left out; `number` counts the steps of a rollout."""

    number: int
    start: int
    end: int


class Step(NamedTuple):
    """An event of every step: sizes are `nbytes` in step `first` and `growth` more in each further one. What it allocates or
    frees is the step's own or (`before`) the step's before, by the offset of its alloc; None: it does neither."""

    event: Event
    nbytes: int
    growth: int
    offset: int | None
    before: bool = False


def with_all_steps(trace: Trace, traced: Trace) -> Trace:
    """`trace` without markers, and with the decode steps that grow out of their blocks. `traced` is the same with the layers
    that were traced, from which `trace` was extended. Raises NotRegular."""
    made = replace(trace, events=[])
    idents = itertools.count(max((event.ident for event in trace.events), default=0) + 1)
    done = 0
    pairs = zip(itertools.pairwise(_blocks(traced.events)), itertools.pairwise(_blocks(trace.events)), strict=True)
    for (first, last), (whole_first, whole_last) in pairs:
        ones, others = traced.events[first.start : first.end], traced.events[last.start : last.end]
        if last.number <= first.number + 1 or _sizes(ones) == _sizes(others):
            continue
        if whole_last.start - whole_first.end != 2:  # the markers
            raise NotRegular(f"{whole_last.start - whole_first.end - 2} events between two decode steps")
        plan = _plan(ones, others, last.number - first.number)
        begin = trace.events[whole_first.start : whole_first.end]
        there = {event.ident for event in begin if event.kind == ALLOC}
        if any(step.before and step.offset is not None and ones[step.offset].ident not in there for step in plan):
            raise NotRegular("a decode step frees what a repeated layer made in the step before")
        made.events += _unmarked(trace.events[done : whole_first.end])
        held = {offset: event.ident for offset, event in enumerate(ones) if event.kind == ALLOC}
        for since in _grown(plan, last.number - first.number):
            held = _put_in(plan, since, held, idents, traced, made)
        names = {ones[offset].ident: ident for offset, ident in held.items()}
        made.events += [
            event._replace(ident=names.get(event.ident, event.ident)) if event.kind == FREE else event
            for event in trace.events[whole_last.start : whole_last.end]
        ]
        done = whole_last.end
    made.events += _unmarked(trace.events[done:])
    return made


def _grown(plan: list[Step], steps: int) -> Iterator[int]:
    """Which steps, counted from the first, ask for other blocks than the one before them that was put in."""
    growing = {(step.nbytes, step.growth) for step in plan if step.growth}
    blocks = [block_class(nbytes) for nbytes, _ in growing]
    for since in range(1, steps):
        needed = [block_class(nbytes + growth * since) for nbytes, growth in growing]
        if needed != blocks:
            blocks = needed
            yield since


def _put_in(
    plan: list[Step], since: int, before: dict[int, int], idents: Iterator[int], traced: Trace, made: Trace
) -> dict[int, int]:
    """Appends one step; `before`, and what is returned: the idents of the step before, and of this one, by offset."""
    own: dict[int, int] = {}
    for event, nbytes, growth, offset, earlier in plan:
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
    """`trace` with the decode steps that were traced, and no others."""
    return replace(trace, events=_unmarked(trace.events))


def block_class(nbytes: int) -> tuple[int, int]:
    """Sizes of one class fit into each other's blocks: segments of their own come in steps of 2 MiB; smaller ones share segments of
    20 or 2 MiB, and are told apart by SHARE sizes."""
    if nbytes >= MIN_OWN_SEGMENT_BYTES:
        return 2, -(-nbytes // LARGE_ROUNDING_BYTES)
    if nbytes > SMALL_BYTES:
        return 1, -(-nbytes * SHARE // LARGE_SEGMENT_BYTES)
    return 0, -(-nbytes * SHARE // SMALL_SEGMENT_BYTES)


def _sizes(events: list[Event]) -> list[tuple[int, int]]:
    return [(event.kind, event.nbytes) for event in events]


def _blocks(events: list[Event]) -> Iterator[Block]:
    begun: list[tuple[int, int]] = []
    for index, event in enumerate(events):
        if event.kind == BEGIN:
            begun.append((event.nbytes, index + 1))
        elif event.kind == END:
            number, start = begun.pop()
            yield Block(number, start, index)


def _unmarked(events: list[Event]) -> list[Event]:
    return [event for event in events if event.kind != BEGIN and event.kind != END]


def _plan(ones: list[Event], others: list[Event], steps: int) -> list[Step]:
    """What every step does, from the events of two that are `steps` apart."""
    if len(ones) != len(others):
        raise NotRegular(f"a decode step has {len(ones)} events, the last one {len(others)}")
    of_one = {event.ident: offset for offset, event in enumerate(ones) if event.kind == ALLOC}
    of_other = {event.ident: offset for offset, event in enumerate(others) if event.kind == ALLOC}
    unfreed = set(of_other.values())
    plan = []
    for offset, (one, other) in enumerate(zip(ones, others, strict=True)):
        growth, rest = divmod(other.nbytes - one.nbytes, steps)
        if one.kind != other.kind or rest:
            raise NotRegular(f"event {offset} of a decode step ({one.operator}) is another in the last one")
        if other.kind == ALLOC:
            plan.append(Step(other, one.nbytes, growth, offset))
        elif other.kind != FREE:
            plan.append(Step(other, one.nbytes, growth, None))
        elif other.ident in of_other and of_one.get(one.ident) == of_other[other.ident]:
            plan.append(Step(other, 0, 0, of_other[other.ident]))
            unfreed.discard(of_other[other.ident])
        elif other.ident in of_one and one.ident not in of_one:
            plan.append(Step(other, 0, 0, of_one[other.ident], before=True))
            unfreed.discard(of_one[other.ident])
        else:
            raise NotRegular(f"event {offset} of a decode step ({one.operator}) frees what is no step's")
    if unfreed:
        raise NotRegular(f"{len(unfreed)} allocations of a decode step outlive the next one")
    return plan
