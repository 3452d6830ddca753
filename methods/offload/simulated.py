"""ZeRO-2 with its optimizer on the host, for the simulated device: what DeepSpeed's engine allocates and frees there, in order.

DeepSpeed's engine needs values and a process group, and the simulated device has neither. This does the engine's work on the
device and leaves out the host's, which `host.py` counts instead. It follows DeepSpeed 0.19.8 (runtime/engine.py and
runtime/zero/stage_1_and_2.py, whose functions the docstrings name), one rank, gradients contiguous and scattered:

  load      a flat copy of what is trained, in the engine's type, takes the parameters' place; a second flat copy goes to the
            host and becomes the fp32 masters, so twice the trained weights are needed at once. A buffer as large as the
            largest parameter stays.
  backward  from the first gradient to the end, a bucket of `reduce_bucket_size` elements (two with `overlap_comm`). Gradients
            are copied into it. When it is full, and at the end, each is taken to the host: in fp64 for its norm, in fp32 to
            be sent. A parameter larger than the bucket has its gradient copied to a place of its own.
  step      single numbers alone.

Where a card has less memory free than the flat copy takes, the engine makes that on the host (`flatten_on_accelerator`); the
second flat copy, just as large, finds no room then either. Memory runs out at the same size, so there is one way only here.
With `overlap_comm` the engine reduces on a second stream, whose memory a caching allocator keeps apart; no stream is named here.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch._utils import _flatten_dense_tensors

from vrambench.methods.device import Device, memory_named
from vrambench.methods.offload.host import HostBuffer, aligned, host_memory, sums_on_device
from vrambench.methods.offload.learner import PhaseMarker, tensors_in
from vrambench.methods.offload.zero import ZeroOptions
from vrambench.methods.setup import Setup

CASTABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NORM_DTYPE = torch.float64  # on CUDA as on the CPU


@dataclass
class Group:
    """One parameter group. `flat`: its parameters, which are views of it. `sums`: where gradients are summed up on the device, the
    part of a flat fp32 buffer that belongs to each parameter, from its first gradient to the optimizer's step."""

    parameters: list[nn.Parameter]
    flat: torch.Tensor
    sums: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)


@dataclass
class Bucket:
    """Gradients on their way to the host (IPGBucket). `buffers` are there from a backward pass' first gradient to its end."""

    buffers: list[torch.Tensor] = field(default_factory=list)
    index: int = 0
    elements: int = 0
    parameters: list[nn.Parameter] = field(default_factory=list)
    gradients: list[torch.Tensor] = field(default_factory=list)

    def empty(self) -> None:
        self.elements = 0
        self.parameters.clear()
        self.gradients.clear()


WALKS_PARAMETERS = "SimulatedZero.send"
"""Profiler name for work inside the backward pass on parameters of any layer."""


class SimulatedZero:
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
        options: ZeroOptions = setup.workload.of(ZeroOptions)
        self.module: Any = module
        self._device = device
        self._phase = phase
        self._host_device = host_device
        self._on_host: list[torch.Tensor] = []
        self._accumulation = setup.workload.gradient_accumulation_steps
        self._empty_every = setup.workload.torch_empty_cache_steps
        self._micro_step = 0
        self._steps = 0
        self._bucket_size = options.reduce_bucket_size
        self._bucket_count = 2 if options.overlap_comm else 1
        self._bucket = Bucket()
        self._norms: list[torch.Tensor] = []

        self._engine_dtype = setup.precision.dtype(setup.workload)
        cast(module, self._engine_dtype)
        groups = parameter_groups(module, setup)
        self._parameters = list(chain.from_iterable(groups))
        self._dtype = self._parameters[0].dtype
        self._sums_on_device = sums_on_device(self._dtype, setup)
        self.parameter_groups = groups
        sizes = [[parameter.numel() for parameter in group] for group in groups]
        self.host_memory = host_memory(sizes, self._dtype, setup)
        self._sums_to_come = dict(zip(self._parameters, self.host_memory.accumulated, strict=False))  # all, or none
        self._state_to_come = list(self.host_memory.state)

        self._groups = [
            self._flattened(group, image) for group, image in zip(groups, self.host_memory.weights, strict=True)
        ]
        self._group_of = {parameter: group for group in self._groups for parameter in group.parameters}
        self._keep(self.host_memory.staging)
        with memory_named("engine_buffers"):
            self._staging = torch.zeros(self.host_memory.staging.elements, dtype=self._dtype, device=device.torch)
        self._listen()
        for buffer in self.host_memory.gradients:
            self._keep(buffer)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is trained."""
        return self._dtype

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
        """On the device: those of a backward pass that is under way, and sums in fp32. The others are on the host."""
        return tensors_in([[parameter.grad for parameter in self._parameters], [group.sums for group in self._groups]])

    def optimizer_state(self) -> Iterator[torch.Tensor]:
        """None on the device: master weights and moments are on the host."""
        return iter(())

    def train(self, mode: bool = True) -> None:
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

    def _flattened(self, parameters: list[nn.Parameter], image: HostBuffer) -> Group:
        """DeepSpeedZeroOptimizer.__init__, its loop over groups."""
        self._device.empty_cache()
        group = Group(parameters, flatten(parameters))
        offset = 0
        for parameter in parameters:
            parameter.data = group.flat.narrow(0, offset, parameter.numel()).view(parameter.shape)
            offset += parameter.numel()
        partition = group.flat.clone()  # on its way to the host
        if self._host_device is not None:
            self._on_host.append(partition.to(self._host_device, torch.float32))
        del partition
        self._keep(image)
        return group

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
        """DeepSpeedEngine.backward, independent_gradient_partition_epilogue."""
        mean = loss / self._accumulation
        scaled = mean * 1.0  # by the loss scale, a number on the host
        scaled.backward()
        self._send()
        self._bucket.buffers.clear()
        self._bucket.index = 0
        self._drop_gradients()

    def _collect(self, parameter: nn.Parameter) -> None:
        """setup_buckets, reduce_independent_p_g_buckets_and_remove_grads: takes a gradient that has just been computed."""
        bucket, elements, gradient = self._bucket, parameter.numel(), parameter.grad
        assert gradient is not None
        while len(bucket.buffers) < self._bucket_count:
            with memory_named("engine_buffers"):
                bucket.buffers.append(torch.empty(self._bucket_size, dtype=self._dtype, device=self._device.torch))
        if bucket.elements + elements > self._bucket_size:
            self._send()
            bucket.index = (bucket.index + 1) % self._bucket_count
        if elements > self._bucket_size:
            gradient.data = gradient.detach().clone(memory_format=torch.contiguous_format)
        else:
            place = bucket.buffers[bucket.index].narrow(0, bucket.elements, elements)
            place.copy_(gradient.view(-1))
            gradient.data = place.data.view_as(gradient)
        bucket.elements += elements
        bucket.parameters.append(parameter)
        bucket.gradients.append(gradient)

    def _send(self) -> None:
        """reduce_ipg_grads: averages what the bucket holds, and takes it to the host."""
        with torch.profiler.record_function(WALKS_PARAMETERS):
            self._send_bucket(self._bucket)

    def _send_bucket(self, bucket: Bucket) -> None:
        if bucket.elements > self._bucket_size:  # one large parameter, and nothing beside it
            self._average(bucket.gradients[0].view(-1))
        else:
            self._average(bucket.buffers[bucket.index].narrow(0, 0, bucket.elements))
        for parameter in bucket.parameters:
            self._to_host(parameter)
        bucket.empty()

    def _average(self, tensor: torch.Tensor) -> None:
        """average_tensor, allreduce_and_scatter. One rank's average is what it was. For sums in fp32 it goes through a flat copy of
        its gradients and another in fp32, otherwise through none: it is one slice, and one slice is flat as it is."""
        parameters = self._bucket.parameters
        slices: tuple[torch.Tensor, ...] = (tensor,)
        if self._sums_on_device:
            slices = tensor.split([parameter.numel() for parameter in parameters]) if parameters else ()
            for parameter in parameters:
                self._make_sums(self._group_of[parameter])
        tensor.div_(1.0)
        if not parameters:
            return
        flat = _flatten_dense_tensors(slices)
        reduced = flat.to(self._engine_dtype)
        del flat
        tensor.copy_(reduced)

    def _make_sums(self, group: Group) -> None:
        """_build_compact_grad_partition_buffer."""
        if not group.sums:
            with memory_named("engine_buffers"):
                flat = torch.zeros(group.flat.numel(), dtype=torch.float32, device=self._device.torch)
            offset = 0
            for parameter in group.parameters:
                group.sums[parameter] = flat.narrow(0, offset, parameter.numel())
                offset += parameter.numel()

    def _to_host(self, parameter: nn.Parameter) -> None:
        """copy_grads_in_partition."""
        assert parameter.grad is not None
        parameter.detach()  # does nothing: tells a tracer which parameter follows, since all share one storage
        gradient = parameter.grad.data.view(-1)
        if self._sums_on_device:
            gradient = self._group_of[parameter].sums[parameter]
        elif self._micro_step or not self._step_is_due:
            self._accumulate(parameter, gradient)
        if self._step_is_due:
            self._norms.append(gradient.to(NORM_DTYPE).norm(2))
            torch.isfinite(gradient.amax()).logical_and(torch.isfinite(gradient.amin())).logical_not()
            gradient.to(torch.float32)
            parameter.grad = None

    def _accumulate(self, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
        """async_accumulate_grad_in_cpu_via_gpu: the host's sum comes back through the staging buffer, the new one goes there."""
        if parameter in self._sums_to_come:
            self._keep(self._sums_to_come.pop(parameter))
        if self._micro_step:
            gradient.add_(self._staging.narrow(0, 0, parameter.numel()))

    def _step(self) -> None:
        """DeepSpeedZeroOptimizer.step: the host steps, and its new weights are copied into the flat buffers as they are."""
        if self._engine_dtype != torch.float32:
            torch.zeros(1, dtype=torch.uint8, device=self._device.torch)  # has_overflow
        for _ in self._groups:
            torch.zeros(1, device=self._device.torch)  # complete_grad_norm_calculation_for_cpu_offload
        while self._state_to_come:
            self._keep(self._state_to_come.pop(0))
        for group in self._groups:
            group.sums.clear()
        self._norms.clear()
        self._drop_gradients()

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


def flatten(parameters: list[nn.Parameter]) -> torch.Tensor:
    """flatten_dense_tensors_aligned: one after the other, and zeros up to the alignment."""
    tensors = [parameter.detach() for parameter in parameters]
    elements = sum(tensor.numel() for tensor in tensors)
    if padding := aligned(elements) - elements:
        tensors.append(torch.zeros(padding, dtype=tensors[0].dtype, device=tensors[0].device))
    return _flatten_dense_tensors(tensors)
