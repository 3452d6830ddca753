"""Extends the trace of a job whose models were built with few layers to the models' full depth.

A model's middle layers are all alike: each allocates and frees what the one before it does, in every pass over the layers. So a
trace of four layers holds all that there is to know: its second and third layer are laid side by side, event by event, and
what they show is repeated. Nothing is assumed that they do not show: where they differ, or hold or free memory in a way
that repeating cannot explain, `NotAlike` is raised, and the job must be traced at full depth.

Forward passes run through the layers upwards, backward passes downwards, optimizers through the parameters of all; each is
a sequence of events that ends in one of both layers and goes on in the other. An event that frees what the layer before
or after allocated does so in every copy, too.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from vrambench.bench.predict.tracing.trace import ALLOC, FREE, Event, LayerIndex, Trace, new

BUILT = 4
"""Layers that a model must have been built with: a first, a last, and two between them to compare."""
FIRST, SECOND = 1, 2


class NotAlike(Exception):
    """A model's layers do not repeat."""


class Where(NamedTuple):
    """An alloc in a layer that is repeated: which of both layers, and `base`: plus a layer's number, the ident of its copy
    there."""

    base: int
    layer: int


class Step(NamedTuple):
    """An event of a layer that is repeated. `base`: of the memory that it is about (None: it is about none), which is its own
    layer's or that of the layer below (`relative` -1) or above (1). In the lowest or highest of the copies that neighbour is no
    copy, and its memory is `outer`."""

    event: Event
    base: int | None
    relative: int = 0
    outer: int = -1


@dataclass(frozen=True)
class Pair:
    """Two adjoining runs of events, one of each repeated layer; `upwards`: the lower layer comes first."""

    start: int
    middle: int
    end: int
    upwards: bool

    @property
    def length(self) -> int:
        return self.middle - self.start

    def first(self, offset: int) -> int:
        """The index of an event of the layer FIRST."""
        return (self.start if self.upwards else self.middle) + offset

    def second(self, offset: int) -> int:
        return (self.middle if self.upwards else self.start) + offset


def extend(trace: Trace, depths: list[int]) -> Trace:
    """`trace` with stack number i at its real depth `depths[i]`, 0 where it was built whole.

    Raises NotAlike.
    """
    try:
        return _extended(trace, depths)
    except NotAlike:
        # As of checkpointed int8 before torch 2.13: its graph lets go of all layers at once, in an order of its own.
        return _extended(_frees_by_layer(trace), depths)


def _extended(trace: Trace, depths: list[int]) -> Trace:
    for stack, depth in enumerate(depths):
        if depth > BUILT:
            trace = _Extension(trace, stack, depth).extended()
    return trace


def _frees_by_layer(trace: Trace) -> Trace:
    """`trace` with what is freed in a row, with nothing in between, layer by layer, in the order in which it was made. To an
    allocator that is the same: free neighbours become one block in whichever order they are freed."""

    def by_layer(event: Event) -> tuple[LayerIndex, int]:
        return event.place.layer or (-1, -1), event.ident

    events: list[Event] = []
    for frees, burst in groupby(trace.events, lambda event: event.kind == FREE):
        run = list(burst)
        events += sorted(run, key=by_layer) if frees else run
    return replace(trace, events=events)


class _Extension:
    """One stack's."""

    def __init__(self, trace: Trace, stack: int, depth: int) -> None:
        self.trace = trace
        self.events = trace.events
        self.stack = stack
        self.depth = depth
        self.pairs = self._pairs()
        self.where: dict[int, Where] = {}
        """Allocs of repeated layers."""
        self.outer: dict[int, int] = {}
        """Allocs of the first and the last layer: which."""
        self.freed: Counter[int] = Counter()
        """By base, how many copies are freed."""
        self.made = Trace(heads=trace.heads)
        self.base = max((event.ident for event in self.events), default=0) + 1

    def _runs(self) -> list[tuple[int | None, int, int]]:
        """Runs of events of one layer of this stack: (layer, start, end). What belongs to no layer goes with the run before it."""
        runs: list[tuple[int | None, int, int]] = []
        current: int | None = None
        start = 0
        for index, event in enumerate(self.events):
            layer = event.place.layer
            if layer is None:
                continue
            here = layer[1] if layer[0] == self.stack else None
            if here != current:
                runs.append((current, start, index))
                current, start = here, index
        runs.append((current, start, len(self.events)))
        return runs

    def _pairs(self) -> list[Pair]:
        pairs = []
        runs = self._runs()
        index = 0
        while index < len(runs):
            layer, start, end = runs[index]
            if layer not in (FIRST, SECOND):
                index += 1
                continue
            if index + 1 == len(runs) or runs[index + 1][0] != FIRST + SECOND - layer:
                raise NotAlike(f"{self._words(start)}: layer {layer} is visited alone")
            pair = Pair(start, end, runs[index + 1][2], layer == FIRST)
            if pair.end - pair.middle != pair.length:
                raise NotAlike(
                    f"{self._words(start)}: {pair.length} events in one layer, {pair.end - pair.middle} in the next"
                )
            pairs.append(pair)
            index += 2
        return pairs

    def _words(self, index: int) -> str:
        event = self.events[index]
        return f"event {index} ({event.place.phase}, step {event.place.step}, {event.operator})"

    def extended(self) -> Trace:
        """The trace at the stack's real depth."""
        self._find_allocs()
        plans = [self._plan(pair) for pair in self.pairs]
        made = self.made
        done = 0
        for pair, plan in zip(self.pairs, plans, strict=True):
            self._copy_outside(done, pair.start)
            layers = range(1, self.depth - 1)
            for layer in layers if pair.upwards else reversed(layers):
                self._copy_layer(plan, layer)
            done = pair.end
        self._copy_outside(done, len(self.events))
        for base, count in self.freed.items():
            if count != self.depth - 2:
                first = (base - self.base) // self.depth
                raise NotAlike(f"{self._words(first)}: not freed in every layer")
        return made

    def _find_allocs(self) -> None:
        for pair in self.pairs:
            for offset in range(pair.length):
                one, two = self.events[pair.first(offset)], self.events[pair.second(offset)]
                if one.kind != two.kind or one.nbytes != two.nbytes or one.place.phase != two.place.phase:
                    raise NotAlike(f"{self._words(pair.first(offset))}: the next layer does something else")
                if one.kind == ALLOC:
                    base = self.base + pair.first(offset) * self.depth
                    self.where[one.ident] = Where(base, FIRST)
                    self.where[two.ident] = Where(base, SECOND)
        for layer, start, end in self._runs():
            if layer is not None and layer not in (FIRST, SECOND):
                self.outer |= {event.ident: layer for event in self.events[start:end] if event.kind == ALLOC}

    def _plan(self, pair: Pair) -> list[Step]:
        """What one layer does, in the first and in the second layer's words."""
        plan = []
        for offset in range(pair.length):
            one, two = self.events[pair.first(offset)], self.events[pair.second(offset)]
            if one.kind == ALLOC:
                base = self.where[one.ident].base
                plan.append(Step(one, base))
                copies = range(base + 1, base + self.depth - 1)
                if one.ident in self.trace.hidden:
                    self.made.hidden.update(copies)
                if one.ident in self.trace.owners:
                    self.made.owners |= dict.fromkeys(copies, self.trace.owners[one.ident])
                continue
            if one.kind != FREE:
                plan.append(Step(one, None))
                continue
            a, b = self.where.get(one.ident), self.where.get(two.ident)
            if a and b and a.layer == FIRST and b.layer == SECOND and a.base == b.base:
                plan.append(Step(one, a.base))
                self.freed[a.base] += self.depth - 2
            elif b and b.layer == FIRST and self.outer.get(one.ident) == 0:
                plan.append(Step(one, b.base, -1, one.ident))
                self.freed[b.base] += self.depth - 3
            elif a and a.layer == SECOND and self.outer.get(two.ident) == BUILT - 1:
                plan.append(Step(one, a.base, 1, two.ident))
                self.freed[a.base] += self.depth - 3
            else:
                raise NotAlike(f"{self._words(pair.first(offset))}: frees what is not its layer's, nor a neighbour's")
        return plan

    def _copy_layer(self, plan: list[Step], layer: int) -> None:
        outermost = {1: -1, self.depth - 2: 1}.get(layer)
        events = self.made.events
        start = len(events)
        events += [
            new(Event, (kind, base + relative + layer if base else ident, nbytes, operator, place))
            for (kind, ident, nbytes, operator, place), base, relative, _ in plan
        ]
        if outermost is not None:
            for index, (event, _, relative, outer) in enumerate(plan, start):
                if relative == outermost:
                    events[index] = event._replace(ident=outer)

    def _copy_outside(self, start: int, end: int) -> None:
        made, trace = self.made, self.trace
        for event in self.events[start:end]:
            where = self.where.get(event.ident) if event.kind == FREE else None
            if where is not None:
                self.freed[where.base] += 1
                layer = 1 if where.layer == FIRST else self.depth - 2
                made.events.append(event._replace(ident=where.base + layer))
                continue
            if event.kind == ALLOC and event.ident in trace.growth:
                stack, per_layer = trace.growth[event.ident]
                if stack == self.stack:
                    event = event._replace(nbytes=event.nbytes + per_layer * (self.depth - BUILT))
                else:
                    made.growth[event.ident] = (stack, per_layer)
            if event.ident in trace.hidden:
                made.hidden.add(event.ident)
            if event.ident in trace.owners:
                made.owners[event.ident] = trace.owners[event.ident]
            made.events.append(event)
