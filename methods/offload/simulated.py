"""What DeepSpeed's engine does around its optimizer, for the simulated device: the base of a stand-in for each of ZeRO's stages.

DeepSpeed's engine needs values and a process group, and the simulated device has neither. A stand-in does the engine's work on the
device and leaves out the host's, which `host.py` counts instead. All follow DeepSpeed 0.19.8 (runtime/engine.py and
runtime/zero/, whose functions their docstrings name), one rank.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import nn

from vrambench.methods.device import Device
from vrambench.methods.offload.host import HostBuffer, HostMemory, host_memory
from vrambench.methods.offload.learner import PhaseMarker
from vrambench.methods.offload.zero import ZeroOptions
from vrambench.methods.setup import Setup

CASTABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NORM_DTYPE = torch.float64  # on CUDA as on the CPU


class SimulatedEngine(ABC):
    """Does to the device's memory what ZeroLearner does on CUDA. `host_memory`: what the host holds from the first step on.

    `host_device`: where to make the host's buffers as well, as tensors. On the CPU an engine has device and host in one place;
    a trace of it is like that of this with `host_device` the device itself.
    """

    def __init__(
        self,
        module: nn.Module,
        setup: Setup,
        device: Device,
        phase: PhaseMarker,
        host_device: torch.device | None = None,
    ) -> None:
        self.module: Any = module
        self._setup = setup
        self._options: ZeroOptions = setup.workload.of(ZeroOptions)
        self._device = device
        self._phase = phase
        self._host_device = host_device
        self._on_host: list[torch.Tensor] = []
        self._accumulation = setup.workload.gradient_accumulation_steps
        self._empty_every = setup.workload.torch_empty_cache_steps
        self._micro_step = 0
        self._steps = 0
        self._engine_dtype = setup.precision.dtype(setup.workload)
        cast(module, self._engine_dtype)
        self._optimizer: Any = None
        if not setup.optimizer_on_host:
            self._optimizer = setup.optimizer.build(module, setup.workload)
        self.parameter_groups = parameter_groups(module, setup)
        self._parameters = list(chain.from_iterable(self.parameter_groups))
        self._dtype = self._parameters[0].dtype
        self.host_memory = self.host_memory_of(self.parameter_groups)
        self._load()
        self._listen()

    def host_memory_of(self, groups: Sequence[Sequence[nn.Parameter]]) -> HostMemory:
        """With these parameters, by the optimizer's groups, in place of the module's."""
        sizes = [[getattr(each, "ds_numel", each.numel()) for each in group] for group in groups]
        return host_memory(sizes, self._dtype, self._setup)

    @abstractmethod
    def _load(self) -> None:
        """What the optimizer's constructor does."""

    @abstractmethod
    def _collect(self, parameter: nn.Parameter) -> None:
        """Takes a gradient that has just been computed."""

    @abstractmethod
    def _end_backward(self) -> None:
        """independent_gradient_partition_epilogue."""

    @abstractmethod
    def _step(self) -> None:
        """The optimizer's step."""

    def forward(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self._device.empty_cache_in(self._steps, self._empty_every)
        self._engine_backward(loss)
        loss.detach_()
        due = self._step_is_due
        self._micro_step += 1
        if due:
            self._phase("optimizer_step")
            self._step()
            self._micro_step = 0
            self._steps += 1

    def gradients(self) -> Iterator[torch.Tensor]:
        """On the device."""
        return (parameter.grad for parameter in self._parameters if parameter.grad is not None)

    def optimizer_state(self) -> Iterator[torch.Tensor]:
        """On the device: none where master weights and moments are on the host."""
        return iter(())

    def train(self, mode: bool = True) -> None:  # noqa: B027 - no stage has anything to do
        """Nothing: no optimizer that knows two kinds of weights runs here."""

    def optimizer_steps(self) -> int:
        return self._steps

    def skipped_steps(self) -> int:
        """None: without values nothing overflows."""
        return 0

    @property
    def _step_is_due(self) -> bool:
        """Whether an optimizer step follows this micro-batch."""
        return self._micro_step + 1 == self._device.passes(self._accumulation)

    def _keep(self, buffer: HostBuffer) -> None:
        if self._host_device is not None:
            self._on_host.append(torch.empty(buffer.elements, dtype=buffer.dtype, device=self._host_device))

    def _listen(self) -> None:
        """Has every gradient collected as soon as it is there. Not by a bound method: a parameter's hooks are out of the garbage
        collector's sight, and a learner that they held would stay for ever."""
        learner = weakref.ref(self)

        def collect(parameter: nn.Parameter) -> None:
            if (owner := learner()) is not None:
                owner._collect(parameter)

        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(collect)

    def _engine_backward(self, loss: torch.Tensor) -> None:
        """DeepSpeedEngine.backward."""
        mean = loss / self._accumulation
        scaled = mean * 1.0  # by the loss scale, a number on the host
        scaled.backward()
        self._end_backward()

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """DeepSpeedEngine._cast_module_mixed_precision: every float parameter of `module`, frozen ones too, in the engine's type.

    Buffers keep theirs, and so does everything under an engine of fp32.
    """
    if dtype == torch.float32:
        return
    for parameter in module.parameters():
        if parameter.dtype in CASTABLE and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def parameter_groups(module: nn.Module, setup: Setup) -> list[list[nn.Parameter]]:
    """What `module` trains, by its optimizer's groups, each of which is flattened by itself."""
    groups = [group["params"] for group in setup.optimizer.groups(module, setup.workload)]
    kept = [[parameter for parameter in group if parameter.requires_grad and parameter.numel()] for group in groups]
    return [group for group in kept if group]
