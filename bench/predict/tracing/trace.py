"""What a traced job did to memory: every storage's alloc and free in order, and what each was for.

A `Trace` is data alone: the tracer (tracer.py) makes it, layers.py extends it to a model's full depth, replay.py replays it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

ALLOC, FREE, MARK, EMPTY, BEGIN, END = 0, 1, 2, 3, 4, 5

new = tuple.__new__
"""`new(Event, (...))`: events are made by the hundred thousand, and their own constructor takes twice as long."""

LayerIndex = tuple[int, int]
"""The stack of layers (a model's, by number), and the layer's number in it."""


class Place(NamedTuple):
    """What the job was doing. `layer`: None outside the layers; `module`: the path of the module whose forward pass it was,
    below its role's, "" outside all; `backward`: inside a backward pass (where checkpointed modules are passed forward again)."""

    phase: str | None
    step: int | None
    role: str | None
    layer: LayerIndex | None
    module: str
    backward: bool = False


class Event(NamedTuple):
    """`kind` ALLOC: `ident` (each only once) takes `nbytes`, made by `operator`. FREE: `ident` is gone. MARK: the phase is now
    that of `place`. EMPTY: cached memory goes back to the driver. BEGIN, END: of one of many steps that differ in sizes only,
    number `nbytes` (decode_steps.py takes them out)."""

    kind: int
    ident: int
    nbytes: int
    operator: str
    place: Place


class Owner(NamedTuple):
    """Whose memory it is, for good or until the next step: a role's weights, gradients or optimizer state, or what the job's code
    has named (`memory_named`). Gradients are counted anew whenever an optimizer steps: at which time."""

    role: str | None
    kind: str
    time: int = 0


@dataclass
class Trace:
    """`events` in order. `hidden`: idents of buffers that live inside one operator (or for good) and that no tensor shows.
    `growth`: idents of what is put together from all layers of a stack: the stack, and bytes for each more layer of it. `owners`:
    idents of what the roles keep. `heads`: paths of the modules that make logits."""

    events: list[Event] = field(default_factory=list)
    hidden: set[int] = field(default_factory=set)
    growth: dict[int, tuple[int, int]] = field(default_factory=dict)
    owners: dict[int, Owner] = field(default_factory=dict)
    heads: set[str] = field(default_factory=set)

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
