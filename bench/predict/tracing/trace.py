"""What a traced job did to memory: every storage's alloc and free in order, and what each was for.

A `Trace` is data alone: the tracer (tracer.py) makes it, layers.py extends it to a model's full depth, replay.py replays it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

ALLOC, FREE, MARK, EMPTY, BEGIN, END, SYNC, HOST = 0, 1, 2, 3, 4, 5, 6, 7

new = tuple.__new__
"""`new(Event, (...))` takes half the time of `Event(...)`, and there are hundreds of thousands of events."""

LayerIndex = tuple[int, int]
"""A stack of layers, by number (a job may hold several models), and the layer's number in it."""


class Place(NamedTuple):
    """What the job was doing. `layer`: None outside the layers. `module`: the path, below its role's module, of the module whose
    forward pass it was; "" outside of all. `backward`: inside a backward pass, in which checkpointed modules run forward again."""

    phase: str | None
    step: int | None
    role: str | None
    layer: LayerIndex | None
    module: str
    backward: bool = False


class Event(NamedTuple):
    """By `kind`:

    ALLOC       `operator` allocates `nbytes`, called `ident`; no ident comes twice
    FREE        `ident` is freed
    MARK        the phase of `place` begins
    EMPTY       cached memory goes back to the driver
    BEGIN, END  around a decode step, number `nbytes` of its rollout; decode_steps.py takes them out
    SYNC        the host waits for all streams
    HOST        the host takes a page-locked block of `nbytes`, or gives one back, where that is negative
    """

    kind: int
    ident: int
    nbytes: int
    operator: str
    place: Place


class Owner(NamedTuple):
    """Whose memory it is: `kind` is weights, gradients or optimizer (state) of `role`, or what the job's code calls it
    (`memory_named`). `time`: the optimizer step that gradients belong to, or which look at the weights found them, since some are
    put in the place of others: each is counted by itself."""

    role: str | None
    kind: str
    time: int = 0


@dataclass
class Trace:
    """`events` in order. By ident: `hidden`: buffers that no tensor shows, inside one operator or kept by a library. `growth`: what
    is made from all layers of a stack: the stack, and the bytes that each further layer adds. `owners`: what the roles keep.
    `heads`: paths of the modules that make logits. `copies`: what is allocated on the second stream (methods/streams.py); `lent`:
    what of that waits for the first one's work when it is freed."""

    events: list[Event] = field(default_factory=list)
    hidden: set[int] = field(default_factory=set)
    growth: dict[int, tuple[int, int]] = field(default_factory=dict)
    owners: dict[int, Owner] = field(default_factory=dict)
    heads: set[str] = field(default_factory=set)
    copies: set[int] = field(default_factory=set)
    lent: set[int] = field(default_factory=set)

    def live(self) -> Iterator[tuple[Event, int]]:
        """Every event with the bytes that are live after it."""
        sizes: dict[int, int] = {}
        total = 0
        for event in self.events:
            if event.kind == ALLOC:
                sizes[event.ident] = event.nbytes
                total += event.nbytes
            elif event.kind == FREE:
                total -= sizes.pop(event.ident)
            yield event, total

    def peak_bytes(self) -> int:
        """The most bytes that were live at once."""
        return max((total for _, total in self.live()), default=0)
