"""Traces a job's memory: which storage appeared and disappeared when, in which phase, for which role, layer and module.

    tracer = Tracer("meta")
    job = TracedJob(cell, device, tracer)
    with tracer:
        job.load()
        job.step(0)
    tracer.trace

It works on every device. On the simulated one, where nothing is computed, operators that were called before with arguments of
the same shapes are not called again: what they would give is known.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from vrambench.bench.measure.collector import collector_held
from vrambench.bench.measure.ledger import own_weights
from vrambench.bench.predict.tracing.accumulation import ADD, ADD_IN_PLACE, adds_in_place, sole_holder
from vrambench.bench.predict.tracing.shapes import KnownShapes, tensors_of
from vrambench.bench.predict.tracing.trace import (
    ALLOC,
    BEGIN,
    EMPTY,
    END,
    FREE,
    MARK,
    Event,
    Layer,
    Owner,
    Place,
    Trace,
    new,
)
from vrambench.methods.device import EMPTIES_CACHE, MEMORY, REPEATS
from vrambench.methods.models.parts import heads, layer_stacks
from vrambench.methods.offload.simulated import WALKS_PARAMETERS
from vrambench.methods.registry import Workspace

WALKS = ("Optimizer.step", WALKS_PARAMETERS)
"""What walks through parameters calls itself so."""
LISTED = ("optimizer_step", "svd")
"""Phases in which work goes through parameters, as it does before the first step: an operator then belongs to the layer that
its arguments belong to."""


class Kept(NamedTuple):
    """A buffer that a library keeps, by name and bytes."""

    name: str
    nbytes: int


class Known(NamedTuple):
    """A module of a role: its path below the role's module, and the layer that it is in or is."""

    role: str
    path: str
    layer: Layer | None


class Ref(weakref.ref[torch.UntypedStorage]):
    """A storage that is alive, and what the trace calls it."""

    __slots__ = ("ident", "key")
    ident: int
    key: int


class Tracer(TorchDispatchMode):
    """`device_type`: whose storages count. `workspaces`: hidden memory by operator (str of it), which
    those of `early` take before their results. `kept`: what operators (by name)
    keep from their first call on, once for the thread of the forward and once for that of the backward pass.
    `shapes`: what operators give, known from traces before (simulated device only)."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and asking costs more than tracing

    def __init__(
        self,
        device_type: str,
        *,
        workspaces: Mapping[str, Workspace] | None = None,
        early: frozenset[str] = frozenset(),
        kept: Mapping[str, tuple[Kept, ...]] | None = None,
        shapes: KnownShapes | None = None,
    ) -> None:
        super().__init__()
        sole_holder()
        self.trace = Trace()
        self.stacks: list[int] = []
        """For every stack of layers that the job holds, how many layers its model really has; 0 where all of them were built."""
        self._counts: Callable[[torch.Tensor], bool] = attrgetter(f"is_{device_type}")
        self._workspaces = dict(workspaces or {})
        self._early = early
        self._kept = dict(kept or {})
        self._kept_in: set[tuple[str, bool]] = set()
        self._shapes = shapes or KnownShapes() if device_type == "meta" else None
        self._names: dict[int, str] = {}
        self._live: dict[int, Ref] = {}
        self._layers: dict[int, Layer | None] = {}
        self._size: dict[int, int] = {}
        self._made_from: dict[int, list[int]] = {}
        self._owned: set[int] = set()
        self._next = 0
        self._phase: str | None = None
        self._step: int | None = None
        self._role: str | None = None
        self._layer: Layer | None = None
        self._working_on: Layer | None = None
        """While somebody walks through parameters: the layer of the last operator's arguments."""
        self._parameter_layers: dict[torch.Tensor, Layer | None] = {}
        self._parts: list[str] = []
        self._memory: str | None = None
        """What the job's code says is being allocated."""
        self._walking = False
        self._walk_began = 0
        self._signposted = False
        """Every operator is about the parameter that was named last."""
        self._known: dict[nn.Module, Known] = {}
        self._entered: list[Known] = []
        self._roots: dict[nn.Module, str] = {}
        self._acting: list[str] = []
        self._place = Place(None, None, None, None, "")
        self._in_layers: dict[Layer, Place] = {}
        """The same place in the layers that it has been named with."""
        self._stale = False
        self._operator = ""
        self._handles: list[Any] = []
        self._held = ExitStack()

    # --- what the job is doing ---

    def enter(self, phase: str) -> None:
        """The job enters `phase` (a PhaseMarker)."""
        if phase in ("load", "rollout", "score"):
            self._role = None
        self._phase, self._working_on, self._stale = phase, None, True
        if not _in_backward():  # an optimizer that steps there has phases of its own
            self._layer = None
        self._record(MARK, 0, 0)

    def step(self, index: int) -> None:
        """The job begins step `index`."""
        self._step, self._stale = index, True

    def watch(self, role: str, module: nn.Module) -> None:
        """From here on, places are told by `role`'s module as well; and what has been loaded for it is given to its layers."""
        if module in self._roots:
            return
        self._roots[module] = role
        layer_of: dict[nn.Module, Layer] = {}
        for stack in layer_stacks(module):
            if stack.layers[0] in self._known:
                continue  # another role's
            number = len(self.stacks)
            self.stacks.append(stack.depth if stack.depth > len(stack.layers) else 0)
            for index, layer in enumerate(stack.layers):
                layer_of |= dict.fromkeys(layer.modules(), (number, index))
                self._handles.append(layer.register_forward_hook(self._left_layer))
        for path, part in module.named_modules():
            self._known.setdefault(part, Known(role, path, layer_of.get(part)))
            for parameter in part.parameters(recurse=False):
                self._parameter_layers.setdefault(parameter, layer_of.get(part))
        makes_logits = heads(module)
        self.trace.heads |= {path for path, part in module.named_modules() if part in makes_logits}
        self._handles.append(module.register_forward_hook(self._left_role, always_call=True))
        self._own()

    @contextmanager
    def building(self, role: str) -> Iterator[None]:
        """What is allocated meanwhile is made for `role`."""
        before, self._role, self._stale = self._role, role, True
        try:
            yield
        finally:
            self._role, self._stale = before, True

    def _own(self) -> None:
        """Gives the storages of every layer's weights to the layer, in the events that there are."""
        owners: dict[int, tuple[str, Layer | None, str]] = {}
        for module, known in self._known.items():
            for tensor in own_weights(module):
                ref = self._live.get(tensor.untyped_storage()._cdata)
                if ref is not None and ref.ident not in self._owned and ref.ident not in self.trace.growth:
                    owners.setdefault(ref.ident, (known.role, known.layer, known.path))
        # What a layer's weights were made from, and what was made from that on the way, is the layer's too.
        for ident, sources in reversed(self._made_from.items()):
            if ident in owners:
                for source in sources:
                    if source not in self._owned:
                        owners.setdefault(source, owners[ident])
        for ident, sources in self._made_from.items():
            for source in sources:
                if source in owners and ident not in self._owned:
                    owners.setdefault(ident, owners[source])
        self._owned.update(owners)
        events = self.trace.events
        for index, event in enumerate(events):
            owner = owners.get(event.ident)
            if owner is not None and event.kind == ALLOC:
                role, layer, path = owner
                events[index] = event._replace(place=event.place._replace(role=role, layer=layer, module=path))
                self._layers[event.ident] = layer

    def _entering(self, module: nn.Module, inputs: Any) -> None:
        known = self._known.get(module)
        if known is None:
            return
        role = self._roots.get(module)
        if role is not None:
            self._acting.append(role)
        self._entered.append(known)
        self._role = self._acting[0] if self._acting else known.role
        self._layer = known.layer
        self._stale = True

    def _leaving(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._entered and self._known.get(module) is self._entered[-1]:
            self._entered.pop()
            self._stale = True

    def _left_role(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._acting:
            self._acting.pop()

    def _left_layer(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """In the backward pass, the layer begins where the gradient of its output is complete."""
        states = output if isinstance(output, torch.Tensor) else output[0]
        if isinstance(states, torch.Tensor) and states.requires_grad:
            known = self._known[module]

            def back_in(gradient: torch.Tensor) -> None:
                self._layer, self._stale = known.layer, True

            states.register_hook(back_in)

    def own(self, tensors: Iterable[torch.Tensor], owner: Owner) -> None:
        """Says whose the storages of `tensors` are; the first word counts."""
        for tensor in tensors:
            ref = self._live.get(tensor.untyped_storage()._cdata)
            if ref is not None and self._counts(tensor):
                self.trace.owners.setdefault(ref.ident, owner)

    # --- what memory does ---

    def __enter__(self) -> Tracer:
        self._held.enter_context(collector_held())
        self._handles += [
            register_module_forward_pre_hook(self._entering),
            register_module_forward_hook(self._leaving, always_call=True),
        ]
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._live.clear()  # nobody listens any more to what is gone
        self._held.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is ADD and _in_backward() and adds_in_place(args, kwargs, sys._getframe(1)):
            func = ADD_IN_PLACE
        result = self._shapes.call(func, args, kwargs) if self._shapes else func(*args, **kwargs)
        name = self._names.get(id(func))
        if name is None:
            name = self._names[id(func)] = str(func)
        self._operator = name
        if name.startswith("profiler._record_function"):
            self._named_part(name, args)
        if self._walking:
            found = self._layers_of(args)
            if found:  # what belongs to no layer is made on the way
                self._working_on = next(iter(found)) if len(found) == 1 else None
        inside = self._begin_inside(name, args, kwargs, result) if name in self._early else None
        if isinstance(result, torch.Tensor):
            before = self._next
            self._see(result, args)
            if self._next > before and self._layer is None and args:
                if isinstance(args[0], list | tuple):
                    self._note_growth(
                        before, lambda fewer: _nbytes(func(fewer, *args[1:], **kwargs)), result.nbytes, args[0]
                    )
                elif self.trace.growth and isinstance(args[0], torch.Tensor) and args[0].numel() == result.numel():
                    self._inherit_growth(before, args[0], result)
        elif isinstance(result, tuple | list):
            first = next((arg for arg in args if isinstance(arg, list | tuple)), ()) if self._listed else ()
            for index, item in enumerate(result):
                if isinstance(item, torch.Tensor):
                    self._see(item, (first[index],) if index < len(first) else args)
        if name in self._workspaces or name in self._kept:
            self._hide(name, args, kwargs, result, inside)
        return result

    def _note_growth(self, ident: int, size: Callable[[list[Any]], int], nbytes: int, items: Any) -> None:
        """Where something is made from all of a stack's layers, how much larger one more layer would make it."""
        layers = [self._layer_of((item,)) for item in items]
        for stack in range(len(self.stacks)):
            if (stack, 1) in layers and (stack, 2) in layers:
                fewer = [item for item, layer in zip(items, layers, strict=True) if layer != (stack, 1)]
                self.trace.growth[ident] = (stack, nbytes - size(fewer))

    def _inherit_growth(self, ident: int, source: torch.Tensor, result: torch.Tensor) -> None:
        """A copy of what grows with the layers does, too."""
        ref = self._live.get(source.untyped_storage()._cdata)
        if ref is not None and ref.ident in self.trace.growth:
            stack, per_layer = self.trace.growth[ref.ident]
            self.trace.growth[ident] = (stack, per_layer * result.element_size() // source.element_size())

    def _named_part(self, operator: str, args: Any) -> None:
        """Optimizers, and others, name what they do for profilers."""
        if operator == "profiler._record_function_enter_new.default":
            self._parts.append(args[0])
            if args[0] == EMPTIES_CACHE:
                self._record(EMPTY, 0, 0)
            elif args[0] == REPEATS:
                self._record(BEGIN, -1, int(args[1]))
            elif args[0] == WALKS_PARAMETERS:
                self._walk_began = len(self.trace.events)
        elif self._parts:
            ended = self._parts.pop()
            if ended == REPEATS:
                self._record(END, -1, 0)
            elif ended == WALKS_PARAMETERS:
                self._end_walk()
        self._walking = any(part.startswith(WALKS) for part in self._parts)
        self._signposted = WALKS_PARAMETERS in self._parts
        self._memory = next((part.removeprefix(MEMORY) for part in self._parts if part.startswith(MEMORY)), None)
        self._working_on = None

    def _end_walk(self) -> None:
        """A walk that reached no further than the layer above the one that the backward pass is in is that one's work."""
        events, here = self.trace.events, self._layer
        layers = {event.place.layer for event in events[self._walk_began :]} - {None}
        if here is None or not layers or not layers <= {here, (here[0], here[1] + 1)}:
            return
        for index in range(self._walk_began, len(events)):
            event = events[index]
            events[index] = event._replace(place=event.place._replace(layer=here))
            if event.kind == ALLOC:
                self._layers[event.ident] = here

    @property
    def _listed(self) -> bool:
        return self._walking or (self._layer is None and (self._step is None or self._phase in LISTED))

    def _see(self, tensor: torch.Tensor, args: Any) -> None:
        if not self._counts(tensor):
            return
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            return  # sparse and opaque tensors have no storage
        key = storage._cdata
        known = self._live.get(key)
        nbytes = storage.nbytes()
        if known is not None:
            if self._size[known.ident] == nbytes:
                return
            self._end(known.ident)  # resized
        if self._step is None and args:
            self._made_from[self._next] = [self._live[k].ident for k in self._storages(args) if k in self._live]
        ref = Ref(storage, self._gone)
        ref.key = key
        ref.ident = self._begin(nbytes, self._layer_of(args) if args and self._listed else self._layer)
        self._live[key] = ref

    def _layer_of(self, args: Any) -> Layer | None:
        """The one layer that all of an operator's tensors belong to, as far as they belong to any."""
        found = self._layers_of(args)
        if not found and self._signposted:
            return self._working_on
        return found.pop() if len(found) == 1 else None

    def _layers_of(self, args: Any) -> set[Layer]:
        found = set()
        for tensor in tensors_of(args):
            layer = self._parameter_layers.get(tensor)
            if layer is None and not self._signposted and self._counts(tensor):
                ref = self._live.get(tensor.untyped_storage()._cdata)
                layer = self._layers[ref.ident] if ref is not None else None
            if layer is not None:
                found.add(layer)
        return found

    def _storages(self, args: Any) -> Iterator[int]:
        for tensor in tensors_of(args):
            if self._counts(tensor):
                yield tensor.untyped_storage()._cdata

    def _begin(self, nbytes: int, layer: Layer | None) -> int:
        ident = self._next
        self._next += 1
        self._layers[ident] = layer
        self._size[ident] = nbytes
        if self._memory:
            self.trace.owners[ident] = Owner(self._role, self._memory)
        self._record(ALLOC, ident, nbytes, layer)
        return ident

    def _gone(self, ref: Ref) -> None:
        if self._live.get(ref.key) is ref:
            del self._live[ref.key]
            self._end(ref.ident)

    def _end(self, ident: int) -> None:
        layer = None if self._walking else self._layer
        if layer is None:
            layer = self._layers[ident]
            now = self._working_on
            if layer and now and layer[0] == now[0] and layer[1] == now[1] - 1:
                layer = now  # a loop's variables: they hold the last layer's memory until this one's takes their place
        del self._size[ident]
        self._record(FREE, ident, 0, layer)

    def _begin_inside(self, name: str, args: Any, kwargs: Any, result: Any) -> list[int]:
        """The buffers that an operator takes inside itself, as the table says."""
        declared = self._workspaces.get(name)
        buffers = [nbytes for nbytes in declared(args, kwargs, result) if nbytes] if declared else []
        layer = self._layer_of(args) if args and self._listed else self._layer
        inside = [self._begin(nbytes, layer) for nbytes in buffers]
        self.trace.hidden.update(inside)
        if declared and inside and layer is None and args and isinstance(args[0], list | tuple):
            size = _total(declared, args[1:], kwargs, result)
            self._note_growth(inside[0], size, sum(buffers), args[0])
        return inside

    def _hide(self, name: str, args: Any, kwargs: Any, result: Any, inside: list[int] | None) -> None:
        """What an operator takes inside itself and gives back (`inside`: what it took before its results), and what it keeps."""
        for ident in self._begin_inside(name, args, kwargs, result) if inside is None else inside:
            self._end(ident)
        for kept in self._kept.get(name, ()):
            key = (kept.name, _in_backward())
            if key not in self._kept_in:
                self._kept_in.add(key)
                self.trace.hidden.add(self._begin(kept.nbytes, None))

    def _record(self, kind: int, ident: int, nbytes: int, layer: Layer | None = None) -> None:
        backward = _in_backward()
        if self._stale or backward is not self._place.backward:
            module = self._entered[-1].path if self._entered else ""
            self._place = Place(self._phase, self._step, self._role, None, module, backward)
            self._stale = False
            self._in_layers.clear()
        place = self._place
        if layer is not None:
            known = self._in_layers.get(layer)
            place = self._in_layers[layer] = known or place._replace(layer=layer)
        self.trace.events.append(new(Event, (kind, ident, nbytes, self._operator, place)))


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _total(
    workspace: Workspace, rest: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> Callable[[list[Any]], int]:
    return lambda items: sum(workspace((items, *rest), kwargs, result))


def _nbytes(result: Any) -> int:
    return result.untyped_storage().nbytes() if isinstance(result, torch.Tensor) else 0
