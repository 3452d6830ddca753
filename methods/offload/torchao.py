"""torchao's CPUOffloadOptimizer: each parameter's optimizer state is on the host, where it steps on a copy of the parameter.

Gradients are copied to the host on a second stream as soon as they are there; with `offload_gradients` the device's are freed then.
Parameters under `minimal_size` elements stay with an optimizer on the device. There are no master weights in fp32: the host's
copies are of the weights' own type (torchao 0.18, optim/cpu_offload.py). The cell's optimizer is the one that steps, for each
parameter by itself.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from vrambench.methods.device import Device
from vrambench.methods.offload import Offload
from vrambench.methods.offload.host import HostBuffer, HostMemory, optimizer_state
from vrambench.methods.offload.learner import Learner, PhaseMarker, PlainLearner, tensors_in
from vrambench.methods.optimizers import trainable
from vrambench.methods.registry import Options
from vrambench.methods.setup import Setup
from vrambench.methods.workload import Workload


class CpuOffloadOptions(Options):
    """torchao's names and defaults."""

    namespace: ClassVar[str] = "cpu_offload"
    offload_gradients: bool = False
    """Whether a gradient is freed once it has been copied to the host; not with several micro-batches."""
    minimal_size: Annotated[int, Field(ge=0)] = 4096
    """Parameters of fewer elements, and their state, stay on the device."""


class TorchaoLearner(PlainLearner):
    """PyTorch alone, with torchao's optimizer."""

    def _built(self, module: nn.Module, setup: Setup) -> Any:
        torchao: Any = importlib.import_module("torchao.optim")
        options: CpuOffloadOptions = setup.workload.of(CpuOffloadOptions)

        def one(groups: Sequence[dict[str, Any]]) -> Any:
            return setup.optimizer.build(held(chain.from_iterable(each(group) for group in groups)), setup.workload)

        return torchao.CPUOffloadOptimizer(
            trainable(module),
            one,
            offload_gradients=options.offload_gradients,
            minimal_size=options.minimal_size,
        )

    def optimizer_state(self) -> Iterator[torch.Tensor]:
        optimizer = self._optimizer
        on_device = optimizer.d_opt.state if optimizer.d_opt is not None else {}
        on_host = [one.state for one in optimizer.optim_dict.values()]
        return tensors_in([on_device, on_host, optimizer.param_d2h_map])


def each(group: dict[str, Any]) -> list[Any]:
    """A group's parameters: torchao gives a list, or one alone."""
    its = group["params"]
    return list(its) if isinstance(its, list) else [its]


def held(tensors: Any) -> nn.Module:
    """A module that trains `tensors`. Those that are no parameters share memory and gradients with ones that are."""
    parameters = []
    for tensor in tensors:
        parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
        if parameter is not tensor:
            parameter.grad = tensor.grad
        parameters.append(parameter)
    return nn.ParameterList(parameters)


class SimulatedCpuOffload(PlainLearner):
    """On the simulated device: what CPUOffloadOptimizer does to the device's memory. Where gradients are freed while they are being
    copied, it takes them for gone at once."""

    def _built(self, module: nn.Module, setup: Setup) -> Any:
        self._setup = setup
        options: CpuOffloadOptions = setup.workload.of(CpuOffloadOptions)
        parameters = trainable(module)
        moved = [parameter for parameter in parameters if parameter.numel() >= options.minimal_size]
        self.parameter_groups = [moved]
        self.host_memory = self.host_memory_of(self.parameter_groups)
        small = [parameter for parameter in parameters if parameter.numel() < options.minimal_size]
        if options.offload_gradients:
            for parameter in moved:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        return SmallOnly(parameters, setup.optimizer.build(held(small), setup.workload) if small else None)

    def host_memory_of(self, groups: Sequence[Sequence[nn.Parameter]]) -> HostMemory:
        """With these parameters in place of the module's."""
        parameters = list(chain.from_iterable(groups))
        pinned = tuple(HostBuffer(each.numel(), each.dtype, pinned=True) for each in parameters)
        state: list[HostBuffer] = []
        for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
            shapes = [tuple(parameter.shape) for parameter in parameters if parameter.dtype == dtype]
            state += optimizer_state(shapes, self._setup, dtype)
        return HostMemory(weights=pinned, gradients=pinned, state=tuple(state))


def _drop_gradient(parameter: nn.Parameter) -> None:
    parameter.grad = None


class SmallOnly:
    """An optimizer of the parameters that stay on the device."""

    def __init__(self, parameters: list[nn.Parameter], optimizer: Any) -> None:
        self._parameters = [weakref.ref(parameter) for parameter in parameters]
        self._optimizer = optimizer
        self.state = {} if optimizer is None else optimizer.state

    def step(self) -> None:
        if self._optimizer is not None:
            self._optimizer.step()

    def zero_grad(self) -> None:
        for reference in self._parameters:
            if (parameter := reference()) is not None:
                parameter.grad = None


def learner(module: nn.Module, setup: Setup, device: Device, phase: PhaseMarker) -> Learner:
    return (SimulatedCpuOffload if device.simulated else TorchaoLearner)(module, setup, device, phase)


def _pending(workload: Workload) -> str | None:
    options: CpuOffloadOptions = workload.of(CpuOffloadOptions)
    if not options.offload_gradients:
        return None
    return (
        "gradients that are freed while they are being copied to the host, which keep their memory until they have been"
    )


TORCHAO_OPTIMIZER = Offload(
    summary="torchao's CPUOffloadOptimizer, optimizer state and a copy of the weights on the host",
    options=CpuOffloadOptions,
    learner=learner,
    optimizer_on_host=True,
    requires=("torchao",),
    cuda_only="torchao's CPUOffloadOptimizer copies gradients on a stream of CUDA's",
    unmodelled=_pending,
)
