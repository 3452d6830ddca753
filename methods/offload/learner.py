"""A learner runs backward passes and optimizer steps for one trained model; an offload value says which learner.

It counts micro-batches itself: `backward` is called once for each, and every `gradient_accumulation_steps`-th call is followed by
clipping and the optimizer's step, in a phase of its own. So an algorithm's file shows its loss and nothing of this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from vrambench.methods.activation_offloading import OffloadActivations
from vrambench.methods.device import Device
from vrambench.methods.optimizers import trainable
from vrambench.methods.setup import Setup

PhaseMarker = Callable[[str], None]


class Learner(Protocol):
    """`module`: what forward passes are called on, inside `forward()`."""

    module: Any

    def forward(self) -> AbstractContextManager[Any]:
        """The context of a forward pass (autocast, where the precision wants it)."""

    def backward(self, loss: torch.Tensor) -> None:
        """Backward pass of one micro-batch's mean loss (a scalar), and the optimizer's step where one is due."""

    def gradients(self) -> Iterator[torch.Tensor]:
        """Every gradient that is held now."""

    def optimizer_state(self) -> Iterator[torch.Tensor]:
        """Every tensor that the optimizer keeps between steps, master weights and an adapter's schedule included."""

    def train(self, mode: bool = True) -> None:
        """Weights are those to train, or those to evaluate and to save, where the optimizer knows two kinds."""

    def optimizer_steps(self) -> int:
        """How many optimizer steps were due so far, those that loss scaling left out among them."""

    def skipped_steps(self) -> int:
        """How many optimizer steps loss scaling has left out because gradients overflowed."""


class OffloadsActivations(Protocol):
    """What autograd saves inside `forward()` is elsewhere until the backward pass, which is run inside `backward()`."""

    def forward(self) -> AbstractContextManager[Any]: ...

    def backward(self) -> AbstractContextManager[Any]: ...


class LearnerFactory(Protocol):
    def __call__(self, module: nn.Module, setup: Setup, device: Device, phase: PhaseMarker) -> Learner: ...


class PlainLearner:
    """PyTorch alone: autocast, loss scaling, clipping by the global norm, the optimizer."""

    def __init__(self, module: nn.Module, setup: Setup, device: Device, phase: PhaseMarker) -> None:
        self.module: Any = module
        self._device = device
        self._phase = phase
        self._autocast = setup.precision.autocast(setup.workload)
        self._accumulation = setup.workload.gradient_accumulation_steps
        self._max_grad_norm = setup.workload.max_grad_norm
        self._empty_every = setup.workload.torch_empty_cache_steps
        self._pending = 0
        self._steps = 0
        self._parameters = trainable(module)
        self._optimizer = self._built(module, setup)
        self._steps_in_backward = setup.optimizer.layerwise
        self._has_modes = setup.optimizer.modes
        self._mark = setup.optimizer.mark_phases
        self._scaler = device.grad_scaler(setup.precision.loss_scaling(setup.workload))
        self._initial_scale = self._scaler.get_scale()
        self._schedule = setup.adapter.schedule(module) if setup.adapter.schedule else None
        self._activations = self._offloading(module, setup, device)

    def _built(self, module: nn.Module, setup: Setup) -> Any:
        """The optimizer."""
        return setup.optimizer.build(module, setup.workload)

    def _offloading(self, module: nn.Module, setup: Setup, device: Device) -> OffloadsActivations | None:
        return OffloadActivations(module, device) if setup.workload.activation_offloading else None

    @contextmanager
    def forward(self) -> Iterator[None]:
        activations = self._activations if torch.is_grad_enabled() else None
        with activations.forward() if activations else nullcontext(), self._device.autocast(self._autocast):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        self._device.empty_cache_in(self._steps, self._empty_every)
        marking = self._marking("learn") if self._steps_in_backward else nullcontext()
        with self._activations.backward() if self._activations else nullcontext(), marking:
            self._scaler.scale(loss / self._accumulation).backward()
        loss.detach_()  # whoever keeps it keeps no graph, and nothing that checkpointing left in it
        self._pending += 1
        if self._pending < self._device.passes(self._accumulation):
            return
        self._pending = 0
        self._steps += 1
        if self._steps_in_backward:
            return
        self._phase("optimizer_step")
        optimizer: Any = self._optimizer  # typed by what is used of it; GradScaler's stubs want torch's own class
        if self._max_grad_norm:
            self._scaler.unscale_(optimizer)
            clip_gradients(self._parameters, self._max_grad_norm)
        with self._marking("optimizer_step"):
            self._scaler.step(optimizer)
            if self._schedule:
                self._schedule.stepped(self._steps - 1)
        self._scaler.update()
        self._optimizer.zero_grad()

    def _marking(self, phase: str) -> AbstractContextManager[None]:
        """Where the optimizer has phases of its own inside `phase`, it marks them there."""
        return self._mark(self._phase, phase) if self._mark else nullcontext()

    def gradients(self) -> Iterator[torch.Tensor]:
        return (parameter.grad for parameter in self._parameters if parameter.grad is not None)

    def optimizer_state(self) -> Iterator[torch.Tensor]:
        yield from tensors_in(self._optimizer.state)
        if self._schedule:
            yield from self._schedule.state()

    def train(self, mode: bool = True) -> None:
        if self._has_modes:
            optimizer: Any = self._optimizer
            optimizer.train() if mode else optimizer.eval()

    def optimizer_steps(self) -> int:
        return self._steps

    def skipped_steps(self) -> int:
        return skipped_by(self._scaler, self._initial_scale)


def skipped_by(scaler: Any, initial_scale: float) -> int:
    """Steps that a GradScaler has left out: every overflow halves the scale; it grows after 2,000 steps without one only."""
    if not scaler.is_enabled():
        return 0
    return max(0, round(math.log(scaler.get_scale() / initial_scale, scaler.get_backoff_factor())))


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> None:
    """Scales all gradients in place so that their global L2 norm is at most `max_norm` (as torch.nn.utils.clip_grad_norm_).

    The same list kernels in every world: torch's own function takes them on some devices only, and refuses them on others.
    """
    lists: dict[torch.dtype, list[torch.Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            lists.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    norms = [norm.float() for gradients in lists.values() for norm in torch._foreach_norm(gradients)]
    if not norms:
        return
    scale = (max_norm / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-6)).clamp(max=1.0)
    for dtype, gradients in lists.items():
        torch._foreach_mul_(gradients, scale.to(dtype))


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor inside nested mappings, sequences, plain objects (GaLore keeps its projectors in objects) and tensors that are
    made of others (torchao's moments)."""
    stack, seen = [value], dict[int, Any]()  # kept, so that no id is used again
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if hasattr(item, "__tensor_flatten__"):
            stack.extend(getattr(item, name) for name in item.__tensor_flatten__()[0])
        elif isinstance(item, torch.Tensor):
            yield item
        elif hasattr(item, "values") and callable(item.values):
            stack.extend(item.values())
        elif isinstance(item, list | tuple | set):
            stack.extend(item)
        elif hasattr(item, "__dict__") and not callable(item):
            stack.extend(vars(item).values())
