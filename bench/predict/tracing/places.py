"""Where a job is at each moment: its phase and step, and the role, layer and module that are at work.

Three things say it: the job itself (phases, steps, which role is being built), hooks on modules (forward passes, and gradients on
their way back through the layers), and, where work goes through parameters one by one, whose parameters an operator is given.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from vrambench.bench.measure.ledger import own_weights
from vrambench.bench.measure.meters.storages import Storages, tensors_of
from vrambench.bench.measure.whose import NO_ROLE_YET
from vrambench.bench.predict.tracing.trace import LayerIndex, Place
from vrambench.methods.device import MEMORY, WALKS_PARAMETERS
from vrambench.methods.models.parts import layer_stacks

WALKS = ("Optimizer.step", WALKS_PARAMETERS)
"""How profiler names begin of work that goes through parameters one by one."""
WALKING_PHASES = ("learn", "optimizer_step", "svd", "save")
"""Phases of such work; in `learn`, what an adapter adds to the loss."""


class Known(NamedTuple):
    """A module of a role: its path below the role's module, and the layer that it is or belongs to."""

    role: str
    path: str
    layer: LayerIndex | None


class Places:
    """`storages`: those that are alive. Their layers are in `layer_of_ident`, which the tracer keeps."""

    def __init__(self, storages: Storages) -> None:
        self.stacks: list[int] = []
        """For every stack of layers that the job holds, how many layers its model really has; 0 where all of them were built."""
        self.role: str | None = None
        self.layer: LayerIndex | None = None
        """The layer that a forward or backward pass is in."""
        self.layer_of_ident: dict[int, LayerIndex | None] = {}
        """The layer of everything that was ever allocated."""
        self.walking = False
        """Whether work goes through parameters one by one, as profiler names say."""
        self.memory: str | None = None
        """What is being allocated, as the job's code says (`memory_named`)."""
        self.step: int | None = None
        self.known: dict[nn.Module, Known] = {}
        self._storages = storages
        self._phase: str | None = None
        self._walked: LayerIndex | None = None
        """While walking: the layer of the last operator's arguments."""
        self._announced = False
        """Whether every operator is about the parameter that was named last."""
        self._layer_of_parameter: dict[torch.Tensor, LayerIndex | None] = {}
        self._parts: list[str] = []
        """Profiler names that are open, innermost last."""
        self._entered: list[Known] = []
        self._roots: dict[nn.Module, str] = {}
        self._acting: list[str] = []
        """Roles whose modules are in a forward pass, outermost first."""
        self._handles: list[Any] = []
        self._place = Place(None, None, None, None, "")
        self._place_in: dict[LayerIndex, Place] = {}
        """`_place` in each layer that was asked for."""
        self._stale = False
        """Whether `_place` is to be made anew."""

    # --- what the job says ---

    def enter(self, phase: str) -> None:
        """The job enters `phase`."""
        if phase in NO_ROLE_YET:
            self.role = None
        if phase == "save":  # merged weights take the place of those known here, which are to be gone then
            self._layer_of_parameter.clear()
        self._phase, self._walked, self._stale = phase, None, True
        if not in_backward():  # an optimizer that steps inside a backward pass has phases of its own
            self.layer = None

    def begin_step(self, index: int) -> None:
        """The job begins step `index`."""
        self.step, self._stale = index, True

    @contextmanager
    def building(self, role: str) -> Iterator[None]:
        """Whatever is allocated meanwhile is made for `role`."""
        before, self.role, self._stale = self.role, role, True
        try:
            yield
        finally:
            self.role, self._stale = before, True

    def begin_part(self, name: str) -> None:
        """A block begins that has this name for profilers."""
        self._parts.append(name)
        self._parts_changed()

    def end_part(self) -> str | None:
        """The innermost named block ends: its name."""
        ended = self._parts.pop() if self._parts else None
        self._parts_changed()
        return ended

    def _parts_changed(self) -> None:
        self.walking = any(part.startswith(WALKS) for part in self._parts)
        self._announced = WALKS_PARAMETERS in self._parts
        self.memory = next((part.removeprefix(MEMORY) for part in self._parts if part.startswith(MEMORY)), None)
        self._walked = None

    # --- what modules say ---

    @property
    def inside_module(self) -> bool:
        """Whether a module that is known is in its forward pass."""
        return bool(self._entered)

    def listen(self) -> None:
        """Hooks every module's forward pass, until `close`."""
        self._handles += [
            register_module_forward_pre_hook(self._before_forward),
            register_module_forward_hook(self._after_forward, always_call=True),
        ]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def watch(self, role: str, module: nn.Module) -> bool:
        """From here on, `module`'s parts and parameters are known as `role`'s. False: they were before."""
        if module in self._roots:
            return False
        self._roots[module] = role
        layers = self._number_layers(module)
        for path, part in module.named_modules():
            self.known.setdefault(part, Known(role, path, layers.get(part)))
            for parameter in part.parameters(recurse=False):
                self._layer_of_parameter.setdefault(parameter, layers.get(part))
        self._handles.append(module.register_forward_hook(self._after_role, always_call=True))
        return True

    def _number_layers(self, module: nn.Module) -> dict[nn.Module, LayerIndex]:
        """The layer of each part of `module` that is in one. A stack that another role shares keeps its number."""
        layers: dict[nn.Module, LayerIndex] = {}
        for stack in layer_stacks(module):
            if stack.layers[0] in self.known:
                continue
            number = len(self.stacks)
            self.stacks.append(stack.depth if stack.depth > len(stack.layers) else 0)
            for index, layer in enumerate(stack.layers):
                layers |= dict.fromkeys(layer.modules(), (number, index))
                self._handles.append(layer.register_forward_hook(self._after_layer))
        return layers

    def _before_forward(self, module: nn.Module, inputs: Any) -> None:
        known = self.known.get(module)
        if known is None:
            return
        role = self._roots.get(module)
        if role is not None:
            self._acting.append(role)
        self._entered.append(known)
        self.role = self._acting[0] if self._acting else known.role
        self.layer = known.layer
        self._stale = True

    def _after_forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._entered and self.known.get(module) is self._entered[-1]:
            self._entered.pop()
            self._stale = True

    def _after_role(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._acting:
            self._acting.pop()

    def _after_layer(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """In the backward pass, a layer begins where the gradient of its output is complete."""
        states = output if isinstance(output, torch.Tensor) else output[0]
        if isinstance(states, torch.Tensor) and states.requires_grad:
            known = self.known[module]

            def back_in(gradient: torch.Tensor) -> None:
                self.layer, self._stale = known.layer, True

            states.register_hook(back_in)

    def of_weights(
        self, made_from: dict[int, list[int]], placed: Container[int], growing: Container[int]
    ) -> dict[int, Known]:
        """By ident: the module that each weight's storage belongs to, and all that was on the way to it. `made_from`: what each was
        made from. Left out: what is `placed` already, and weights that are `growing` with the layers."""
        modules: dict[int, Known] = {}
        for module, its in self.known.items():
            for tensor in own_weights(module):
                storage = self._storages.of(tensor)
                if storage is not None and storage.ident not in placed and storage.ident not in growing:
                    modules.setdefault(storage.ident, its)
        for ident, sources in reversed(made_from.items()):  # what weights were made from
            if ident in modules:
                for source in sources:
                    if source not in placed:
                        modules.setdefault(source, modules[ident])
        for ident, sources in made_from.items():  # what else was made from that
            for source in sources:
                if source in modules and ident not in placed:
                    modules.setdefault(ident, modules[source])
        return modules

    # --- what operators' arguments say ---

    @property
    def by_arguments(self) -> bool:
        """Whether an operator belongs to the layer that its arguments belong to: while work goes through parameters; and, outside
        the layers, before the first step and in WALKING_PHASES."""
        return self.walking or (self.layer is None and (self.step is None or self._phase in WALKING_PHASES))

    @property
    def at_work(self) -> LayerIndex | None:
        """The layer that a pass is in, or of the parameter that was named last."""
        return self._walked if self._announced else self.layer

    def walk_to(self, args: Any) -> None:
        """While walking: an operator is called with `args`. What belongs to no layer changes nothing."""
        found = self._layers_of(args)
        if found:
            self._walked = next(iter(found)) if len(found) == 1 else None

    def layer_making(self, args: Any) -> LayerIndex | None:
        """The layer of what an operator makes from `args`."""
        return self.layer_of(args) if args and self.by_arguments else self.layer

    def layer_freeing(self, ident: int) -> LayerIndex | None:
        """The layer in which `ident` is freed; its own, where no pass is at work (a graph that is let go). A walk's loop variables
        still hold the layer before: their memory is freed by the layer that the walk has reached."""
        if self.layer is not None and not self.walking and (self._entered or in_backward()):
            return self.layer
        layer, walked = self.layer_of_ident[ident], self._walked
        if layer and walked and layer[0] == walked[0] and layer[1] == walked[1] - 1:
            return walked
        return layer

    def layer_of(self, args: Any) -> LayerIndex | None:
        """The one layer that all tensors in `args` belong to, as far as they belong to any; None where there are several."""
        found = self._layers_of(args)
        if not found and self._announced:
            return self._walked
        return found.pop() if len(found) == 1 else None

    def _layers_of(self, args: Any) -> set[LayerIndex]:
        found = set()
        for tensor in tensors_of(args):
            layer = self._layer_of_parameter.get(tensor)
            if layer is None and not self._announced and self._storages.counts(tensor):
                storage = self._storages.of(tensor)
                layer = self.layer_of_ident[storage.ident] if storage is not None else None
            if layer is not None:
                found.add(layer)
        return found

    # --- the answer ---

    def place(self, layer: LayerIndex | None) -> Place:
        """Where the job is now, in `layer`."""
        backward = in_backward()
        if self._stale or backward is not self._place.backward:
            module = self._entered[-1].path if self._entered else ""
            self._place = Place(self._phase, self.step, self.role, None, module, backward)
            self._stale = False
            self._place_in.clear()
        if layer is None:
            return self._place
        known = self._place_in.get(layer)
        if known is None:
            known = self._place_in[layer] = self._place._replace(layer=layer)
        return known


def in_backward() -> bool:
    """Whether autograd's engine is at work in this thread."""
    return torch._C._current_graph_task_id() != -1
