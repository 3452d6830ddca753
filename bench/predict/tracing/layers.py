"""Extends the trace of a job whose models were built with few layers to the models' full depth.

A model's middle layers are alike: each allocates and frees what the one before it does. So four layers are traced. The second and
the third are compared event by event, and what both do is repeated for every layer that was not built. Where they differ,
or free memory in a way that repeating cannot explain, `NotAlike` is raised: the job must be traced at full depth.

Forward passes visit the layers upwards, backward passes downwards, and optimizers go through the parameters of all. Each time, the
events of one of the two layers directly follow those of the other. An event that frees memory of the layer below or above
does so in every copy.
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
    """An allocation in a repeated layer, FIRST or SECOND. Its copy in layer n gets ident `base` + n."""

    base: int
    layer: int


class LayerEvent(NamedTuple):
    """What every repeated layer does, as an event of FIRST. `base`: of the memory that it is about (see Where), None for no memory.
    `relative`: whose memory that is: its own layer's (0), the layer below's (-1) or above's (1). In the lowest or highest copy,
    that neighbour is not repeated: there it is ident `outer`."""

    event: Event
    base: int | None
    relative: int = 0
    outer: int = -1


@dataclass(frozen=True)
class Pair:
    """A run of events of one repeated layer, from `start` to `middle`, and of the other one, from there to `end`. `upwards`: the
    lower layer, FIRST, comes first."""

    start: int
    middle: int
    end: int
    upwards: bool

    @property
    def length(self) -> int:
        return self.middle - self.start

    def first(self, offset: int) -> int:
        """The index of FIRST's event number `offset`."""
        return (self.start if self.upwards else self.middle) + offset

    def second(self, offset: int) -> int:
        """The index of SECOND's event number `offset`."""
        return (self.middle if self.upwards else self.start) + offset


def extend(trace: Trace, depths: list[int]) -> Trace:
    """`trace` with stack number i at its real depth `depths[i]`, 0 where it was built whole.

    Raises NotAlike.
    """
    try:
        return _extended(trace, depths)
    except NotAlike:
        # Before torch 2.13, the graph of checkpointed int8 frees all layers' tensors at once, in an order of its own.
        return _extended(_frees_by_layer(trace), depths)


def _extended(trace: Trace, depths: list[int]) -> Trace:
    for stack, depth in enumerate(depths):
        if depth > BUILT:
            trace = _Extension(trace, stack, depth).extended()
    return trace


def _frees_by_layer(trace: Trace) -> Trace:
    """`trace` with every run of frees sorted: by layer, and within a layer as it was allocated. To an allocator it is the same:
    free neighbours become one block in whichever order they are freed."""

    def by_layer(event: Event) -> tuple[LayerIndex, int]:
        return event.place.layer or (-1, -1), event.ident

    events: list[Event] = []
    for frees, burst in groupby(trace.events, lambda event: event.kind == FREE):
        run = list(burst)
        events += sorted(run, key=by_layer) if frees else run
    return replace(trace, events=events)


class _Extension:
    """Extends one stack. Layers 1 to `depth` - 2 are copies of FIRST."""

    def __init__(self, trace: Trace, stack: int, depth: int) -> None:
        self.trace = trace
        self.events = trace.events
        self.stack = stack
        self.depth = depth
        self.runs = self._runs()
        self.pairs = self._pairs()
        self.where: dict[int, Where] = {}
        """Of each allocation in a repeated layer, by ident."""
        self.outer: dict[int, int] = {}
        """Of each allocation in the first or the last layer, by ident: which layer."""
        self.freed: Counter[int] = Counter()
        """By base, how many copies are freed."""
        self.made = Trace(heads=trace.heads)
        self.base = max((event.ident for event in self.events), default=0) + 1

    def _runs(self) -> list[tuple[int | None, int, int]]:
        """Events in a row that belong to one layer of this stack: (layer, start, end). Events of no layer continue the run. Layer
        None: another stack's, or what is before all layers."""
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
        runs = self.runs
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
        self._keep_marks()
        repeated = [self._repeated(pair) for pair in self.pairs]
        made = self.made
        done = 0
        for pair, layer_events in zip(self.pairs, repeated, strict=True):
            self._copy_outside(done, pair.start)
            layers = range(1, self.depth - 1)
            for layer in layers if pair.upwards else reversed(layers):
                self._copy_layer(layer_events, layer)
            done = pair.end
        self._copy_outside(done, len(self.events))
        for base, count in self.freed.items():
            if count != self.depth - 2:
                first = (base - self.base) // self.depth
                raise NotAlike(f"{self._words(first)}: not freed in every layer")
        return made

    def _find_allocs(self) -> None:
        """Fills `where` and `outer`. Raises NotAlike where the two layers differ in what they do."""
        for pair in self.pairs:
            for offset in range(pair.length):
                one, two = self.events[pair.first(offset)], self.events[pair.second(offset)]
                if one.kind != two.kind or one.nbytes != two.nbytes or one.place.phase != two.place.phase:
                    raise NotAlike(f"{self._words(pair.first(offset))}: the next layer does something else")
                if one.kind == ALLOC:
                    base = self.base + pair.first(offset) * self.depth
                    self.where[one.ident] = Where(base, FIRST)
                    self.where[two.ident] = Where(base, SECOND)
        for layer, start, end in self.runs:
            if layer is not None and layer not in (FIRST, SECOND):
                self.outer |= {event.ident: layer for event in self.events[start:end] if event.kind == ALLOC}

    def _repeated(self, pair: Pair) -> list[LayerEvent]:
        """What every repeated layer does, as both layers of `pair` show it."""
        found = []
        for offset in range(pair.length):
            index = pair.first(offset)
            one, two = self.events[index], self.events[pair.second(offset)]
            if one.kind == ALLOC:
                found.append(self._repeated_alloc(one))
            elif one.kind == FREE:
                found.append(self._repeated_free(one, two, index))
            else:
                found.append(LayerEvent(one, None))
        return found

    def _repeated_alloc(self, one: Event) -> LayerEvent:
        base = self.where[one.ident].base
        copies = range(base + 1, base + self.depth - 1)
        if one.ident in self.trace.hidden:
            self.made.hidden.update(copies)
        for marked, made in ((self.trace.copies, self.made.copies), (self.trace.lent, self.made.lent)):
            if one.ident in marked:
                made.update(copies)
        if one.ident in self.trace.owners:
            self.made.owners |= dict.fromkeys(copies, self.trace.owners[one.ident])
        return LayerEvent(one, base)

    def _repeated_free(self, one: Event, two: Event, index: int) -> LayerEvent:
        """`one` and `two`: the same free in FIRST and in SECOND."""
        a, b = self.where.get(one.ident), self.where.get(two.ident)
        if a and b and a.layer == FIRST and b.layer == SECOND and a.base == b.base:  # each frees its own
            self.freed[a.base] += self.depth - 2
            return LayerEvent(one, a.base)
        if b and b.layer == FIRST and self.outer.get(one.ident) == 0:  # each frees the layer's below
            self.freed[b.base] += self.depth - 3
            return LayerEvent(one, b.base, -1, one.ident)
        if a and a.layer == SECOND and self.outer.get(two.ident) == BUILT - 1:  # each frees the layer's above
            self.freed[a.base] += self.depth - 3
            return LayerEvent(one, a.base, 1, two.ident)
        raise NotAlike(f"{self._words(index)}: frees what is not its layer's, nor a neighbour's")

    def _copy_layer(self, layer_events: list[LayerEvent], layer: int) -> None:
        """Appends what layer number `layer` does."""
        events = self.made.events
        start = len(events)
        events += [
            new(Event, (kind, base + relative + layer if base else ident, nbytes, operator, place))
            for (kind, ident, nbytes, operator, place), base, relative, _ in layer_events
        ]
        outwards = {1: -1, self.depth - 2: 1}.get(layer)
        if outwards is not None:
            for index, (event, _, relative, outer) in enumerate(layer_events, start):
                if relative == outwards:
                    events[index] = event._replace(ident=outer)

    def _copy_outside(self, start: int, end: int) -> None:
        """Events that are not repeated, from `start` to `end`."""
        where, growth, append = self.where, self.trace.growth, self.made.events.append
        for event in self.events[start:end]:
            kind, ident, nbytes, _, _ = event
            if kind == FREE and ident in where:
                base, layer = where[ident]
                self.freed[base] += 1
                event = event._replace(ident=base + (1 if layer == FIRST else self.depth - 2))
            elif kind == ALLOC and ident in growth:
                stack, per_layer = growth[ident]
                if stack == self.stack:
                    event = event._replace(nbytes=nbytes + per_layer * (self.depth - BUILT))
                else:
                    self.made.growth[ident] = (stack, per_layer)
            append(event)

    def _keep_marks(self) -> None:
        """What is said of memory that is not repeated stays."""
        trace, made, repeated = self.trace, self.made, self.where.keys()
        made.hidden |= trace.hidden - repeated
        made.copies |= trace.copies - repeated
        made.lent |= trace.lent - repeated
        made.owners |= {ident: owner for ident, owner in trace.owners.items() if ident not in repeated}
