"""Traces a job's memory: which storage appeared and disappeared when, in which phase, for which role, layer and module.

    tracer = Tracer("meta")
    job = TracedJob(cell, device, tracer)
    with tracer:
        job.load()
        job.step(0)
    tracer.trace

It works on every device. On the simulated one, where nothing is computed, operators that were called before with arguments of
the same shapes are not called again: what they would give is known (shapes.py).

The tracer ties together what others know: which storages are alive (meters/storages.py), where the job is (places.py), what
operators take inside themselves (hidden.py), and what grows with a model's depth (growth.py).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vrambench.bench.measure.collector import collector_held
from vrambench.bench.measure.meters.storages import Storage, Storages, made_of_others, tensors_of
from vrambench.bench.predict.tracing.accumulation import IN_PLACE, done, sole_holder
from vrambench.bench.predict.tracing.growth import Growth
from vrambench.bench.predict.tracing.hidden import HiddenMemory
from vrambench.bench.predict.tracing.places import Places, in_backward
from vrambench.bench.predict.tracing.shapes import KnownShapes
from vrambench.bench.predict.tracing.trace import (
    ALLOC,
    BEGIN,
    EMPTY,
    END,
    FREE,
    HOST,
    MARK,
    SYNC,
    Event,
    LayerIndex,
    Owner,
    Trace,
    new,
)
from vrambench.methods.device import EMPTIES_CACHE, REPEATS, WALKS_PARAMETERS
from vrambench.methods.models.parts import head_paths
from vrambench.methods.streams import COPYING, ON_HOST, SYNCHRONIZES, USED_BY_WORK

PARTS, PART_BEGINS = "profiler._record_function", "profiler._record_function_enter_new.default"
"""How the names of the two operators begin that `record_function` calls around what it names, and the first one's."""


class Operator(NamedTuple):
    """`names_part`: it is `record_function`'s. `hides`: it takes or keeps memory that no tensor shows; `early`: takes it before its
    results."""

    name: str
    names_part: bool
    hides: bool
    early: bool


class Tracer(TorchDispatchMode):
    """`device_type`: whose storages count. `hidden`: what no tensor shows. `shapes`: what operators give, known from traces
    before (simulated device only)."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and asking costs more than tracing

    def __init__(
        self, device_type: str, *, hidden: HiddenMemory | None = None, shapes: KnownShapes | None = None
    ) -> None:
        super().__init__()
        sole_holder()
        self.trace = Trace()
        self._shapes = shapes or KnownShapes() if device_type == "meta" else None
        self._storages = Storages(device_type, self._ended)
        self._places = Places(self._storages)
        self._growth = Growth(self.trace, self._places, self._storages)
        self._hidden = hidden or HiddenMemory()
        self._operators: dict[int, Operator] = {}
        """By the ids of their functions."""
        self._operator = ""
        self._next_ident = 0
        self._made_from: dict[int, list[int]] = {}
        """While loading: what each storage was made from."""
        self._placed: set[int] = set()
        """Idents of what belongs to a layer's weights, already placed there."""
        self._walk_began = 0
        """The number of events when the last walk through parameters began."""
        self._copying = False
        """Whether the job works on the second stream."""
        self._held = ExitStack()

    # --- what the job says ---

    @property
    def stacks(self) -> list[int]:
        """For every stack of layers that the job holds, how many layers its model really has; 0 where all of them were built."""
        return self._places.stacks

    @property
    def inside_module(self) -> bool:
        """Whether a module that is watched is in its forward pass."""
        return self._places.inside_module

    def enter(self, phase: str) -> None:
        """The job enters `phase` (a PhaseMarker)."""
        self._places.enter(phase)
        self._record(MARK, 0, 0)

    def step(self, index: int) -> None:
        """The job begins step `index`."""
        self._places.begin_step(index)

    def building(self, role: str) -> AbstractContextManager[None]:
        """Whatever is allocated meanwhile is made for `role`."""
        return self._places.building(role)

    def watch(self, role: str, module: nn.Module) -> None:
        """From here on, places are told by `role`'s module as well. What was loaded for it is placed in its layers."""
        if self._places.watch(role, module):
            self.trace.heads |= head_paths(module)
            self._place_weights()

    def own(self, tensors: Iterable[torch.Tensor], owner: Owner) -> None:
        """Says whose the storages of `tensors` are; the first word counts."""
        for tensor in tensors:
            storage = self._storages.of(tensor)
            if storage is not None and self._storages.counts(tensor):
                self.trace.owners.setdefault(storage.ident, owner)

    def _place_weights(self) -> None:
        """Moves the allocs of weights, and of all that was on the way to them, to the module that has them now."""
        modules = self._places.of_weights(self._made_from, self._placed, self.trace.growth)
        self._placed.update(modules)
        events = self.trace.events
        for index, event in enumerate(events):
            found = modules.get(event.ident)
            if found is not None and event.kind == ALLOC:
                place = event.place._replace(role=found.role, layer=found.layer, module=found.path)
                events[index] = event._replace(place=place)
                self._places.layer_of_ident[event.ident] = found.layer

    # --- what operators do ---

    def __enter__(self) -> Tracer:
        self._held.enter_context(collector_held())
        self._places.listen()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._places.close()
        self._storages.forget()
        self._held.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if types and made_of_others(types):
            return NotImplemented  # a tensor made of others: its own operators come here next
        kwargs = kwargs or {}
        if id(func) in IN_PLACE and in_backward():
            func = done(func, args, kwargs, sys._getframe(1))
        result = self._shapes.call(func, args, kwargs) if self._shapes else func(*args, **kwargs)
        operator = self._operators.get(id(func))
        if operator is None:
            operator = self._operators[id(func)] = self._described(str(func))
        name, names_part, hides, early = operator
        self._operator = name
        if names_part:
            self._part_begins(*args) if name == PART_BEGINS else self._part_ends()
        if self._places.walking:
            self._places.walk_to(args)
        taken = self._take_inside(name, args, kwargs, result) if early else None
        if isinstance(result, torch.Tensor):
            self._see_one(func, args, kwargs, result)
        elif isinstance(result, tuple | list):
            self._see_several(args, result)
        if hides:
            self._give_back(self._take_inside(name, args, kwargs, result) if taken is None else taken)
            for kept in self._hidden.newly_kept(name, in_backward()):
                self.trace.hidden.add(self._begin(kept.nbytes, None))
        return result

    def _described(self, name: str) -> Operator:
        return Operator(name, name.startswith(PARTS), name in self._hidden.operators, name in self._hidden.early)

    def _see_one(self, func: Any, args: Any, kwargs: Any, result: torch.Tensor) -> None:
        """An operator gave one tensor. Outside the layers, what it made may grow with their number."""
        ident = self._see(result, args)
        if ident is None or self._places.layer is not None or not args:
            return
        source = args[0]
        if isinstance(source, list | tuple):

            def size(fewer: list[Any]) -> int:
                return int(func(fewer, *args[1:], **kwargs).untyped_storage().nbytes())

            self._growth.note(ident, size, result.nbytes, source)
        elif isinstance(source, torch.Tensor) and source.numel() == result.numel():
            self._growth.inherit(ident, source, result)

    def _see_several(self, args: Any, results: Any) -> None:
        """An operator gave several tensors. Of a list of parameters' tensors, it made the n-th from the n-th."""
        by_arguments = self._places.by_arguments
        listed = next((arg for arg in args if isinstance(arg, list | tuple)), ()) if by_arguments else ()
        for index, result in enumerate(results):
            if isinstance(result, torch.Tensor):
                self._see(result, (listed[index],) if index < len(listed) else args)

    def _see(self, tensor: torch.Tensor, args: Any) -> int | None:
        """An operator gave `tensor`, from `args`: the ident of its storage, if that is new."""
        storage = self._storages.appeared(tensor)
        if storage is None:
            return None
        if self._places.step is None and args:
            sources = map(self._storages.of, filter(self._storages.counts, tensors_of(args)))
            self._made_from[self._next_ident] = [source.ident for source in sources if source is not None]
        storage.ident = self._begin(storage.nbytes, self._places.layer_making(args))
        self._storages.add(storage)
        return storage.ident

    def _ended(self, storage: Storage) -> None:
        self._end(storage.ident)

    # --- what operators do inside themselves ---

    def _take_inside(self, name: str, args: Any, kwargs: Any, result: Any) -> list[int]:
        """The buffers that an operator takes inside itself: their idents."""
        sizes = self._hidden.sizes(name, args, kwargs, result)
        if not sizes:
            return []
        layer = self._places.layer_making(args)
        taken = [self._begin(nbytes, layer) for nbytes in sizes]
        self.trace.hidden.update(taken)
        if layer is None and args and isinstance(args[0], list | tuple):
            size = self._hidden.total(name, args, kwargs, result)
            self._growth.note(taken[0], size, sum(sizes), args[0])
        return taken

    def _give_back(self, taken: list[int]) -> None:
        for ident in taken:
            self._end(ident)

    # --- what has a name for profilers ---

    def _part_begins(self, part: str, argument: str | None = None) -> None:
        """The job, or an optimizer, says by a profiler's name what it does next."""
        layer = self._places.at_work
        self._places.begin_part(part)
        if part == EMPTIES_CACHE:
            self._record(EMPTY, 0, 0)
        elif part == REPEATS:
            self._record(BEGIN, -1, int(argument or 0))
        elif part == WALKS_PARAMETERS:
            self._walk_began = len(self.trace.events)
        elif part == COPYING:
            self._copying = True
        elif part == USED_BY_WORK:
            storage = self._storages.at(int(argument or 0))
            if storage is not None:
                self.trace.lent.add(storage.ident)
        elif part == ON_HOST:
            self._record(HOST, -1, int(argument or 0), layer)
        elif part == SYNCHRONIZES:
            self._record(SYNC, -1, 0)

    def _part_ends(self) -> None:
        ended = self._places.end_part()
        if ended == REPEATS:
            self._record(END, -1, 0)
        elif ended == WALKS_PARAMETERS:
            self._place_walk()
        elif ended == COPYING:
            self._copying = False

    def _place_walk(self) -> None:
        """A walk inside the backward pass has ended. If it touched this layer and the next one alone, it is this layer's work."""
        events, here = self.trace.events, self._places.layer
        layers = {event.place.layer for event in events[self._walk_began :]} - {None}
        if here is None or not layers or not layers <= {here, (here[0], here[1] + 1)}:
            return
        for index in range(self._walk_began, len(events)):
            event = events[index]
            events[index] = event._replace(place=event.place._replace(layer=here))
            if event.kind == ALLOC:
                self._places.layer_of_ident[event.ident] = here

    # --- events ---

    def _begin(self, nbytes: int, layer: LayerIndex | None) -> int:
        ident = self._next_ident
        self._next_ident += 1
        self._places.layer_of_ident[ident] = layer
        if self._places.memory:
            self.trace.owners[ident] = Owner(self._places.role, self._places.memory)
        if self._copying:
            self.trace.copies.add(ident)
        self._record(ALLOC, ident, nbytes, layer)
        return ident

    def _end(self, ident: int) -> None:
        self._record(FREE, ident, 0, self._places.layer_freeing(ident))

    def _record(self, kind: int, ident: int, nbytes: int, layer: LayerIndex | None = None) -> None:
        self.trace.events.append(new(Event, (kind, ident, nbytes, self._operator, self._places.place(layer))))
