"""ZeRO-2 for the simulated device: what DeepSpeed's engine allocates and frees there, in order.

It follows runtime/zero/stage_1_and_2.py, gradients contiguous and scattered. With the optimizer on the host:

  load      a flat copy of what is trained, in the engine's type, takes the parameters' place; a second flat copy goes to the
            host and becomes the fp32 masters, so twice the trained weights are needed at once. A buffer as large as the
            largest parameter stays.
  backward  from the first gradient to the end, a bucket of `reduce_bucket_size` elements (two with `overlap_comm`). Gradients
            are copied into it. When it is full, and at the end, each is taken to the host: in fp64 for its norm, in fp32 to
            be sent. A parameter larger than the bucket has its gradient copied to a place of its own.
  step      single numbers alone.

With everything on the device (SimulatedZero2):

  load      the second flat copy becomes the fp32 masters there, and gradients of their size are made once and dropped.
  backward  what the bucket holds is copied into one flat buffer of all gradients. It stays to the step; later micro-batches
            have one of their own, and are added to the first.
  step      each gradient in fp64 for its norm, then all of them flat once more, and in fp32, on which the optimizer steps.

Where a card has less memory free than the flat copy takes, the engine makes that on the host (`flatten_on_accelerator`); the
second flat copy, just as large, finds no room then either. Memory runs out at the same size, so there is one way only here.
With `overlap_comm` the engine reduces on a second stream, whose memory a caching allocator keeps apart; no stream is named here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch._utils import _flatten_dense_tensors

from vrambench.methods.device import WALKS_PARAMETERS, memory_named
from vrambench.methods.offload.host import aligned, sums_on_device
from vrambench.methods.offload.learner import tensors_in
from vrambench.methods.offload.simulated import NORM_DTYPE, SimulatedEngine
from vrambench.methods.offload.zero import number_of


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


class Bucketed(SimulatedEngine):
    """What both have in common: parameters are flat, and gradients go through a bucket."""

    def _load(self) -> None:
        self._bucket_size = number_of(self._options.reduce_bucket_size)
        self._bucket_count = 2 if self._options.overlap_comm else 1
        self._bucket = Bucket()
        self._sums_on_device = sums_on_device(self._dtype, self._setup)
        self._groups: list[Group] = []
        self._partition()
        self._group_of = {parameter: group for group in self._groups for parameter in group.parameters}

    @abstractmethod
    def _partition(self) -> None:
        """Makes `_groups`, and what else there is for them."""

    @abstractmethod
    def _take(self, parameter: nn.Parameter) -> None:
        """copy_grads_in_partition: what becomes of an averaged gradient, whose place in the bucket is used again."""

    def _flattened(self, parameters: list[nn.Parameter]) -> Group:
        """DeepSpeedZeroOptimizer.__init__, its loop over groups."""
        self._device.empty_cache()
        group = Group(parameters, flatten(parameters))
        offset = 0
        for parameter in parameters:
            parameter.data = group.flat.narrow(0, offset, parameter.numel()).view(parameter.shape)
            offset += parameter.numel()
        return group

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
            if self._setup.optimizer_on_host:
                gradient.data = gradient.detach().clone(memory_format=torch.contiguous_format)
        else:
            place = bucket.buffers[bucket.index].narrow(0, bucket.elements, elements)
            place.copy_(gradient.view(-1))
            gradient.data = place.data.view_as(gradient)
        bucket.elements += elements
        bucket.parameters.append(parameter)
        bucket.gradients.append(gradient)

    def _send(self) -> None:
        """reduce_ipg_grads: averages what the bucket holds, and takes it from there."""
        with torch.profiler.record_function(WALKS_PARAMETERS):
            self._send_bucket(self._bucket)

    def _send_bucket(self, bucket: Bucket) -> None:
        if bucket.elements > self._bucket_size:  # one large parameter, and nothing beside it
            self._average(bucket.gradients[0].view(-1))
        else:
            self._average(bucket.buffers[bucket.index].narrow(0, 0, bucket.elements))
        for parameter in bucket.parameters:
            self._take(parameter)
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


class SimulatedZero2Optimizer(Bucketed):
    """With the optimizer on the host."""

    def _partition(self) -> None:
        memory = self.host_memory
        self._norms: list[torch.Tensor] = []
        self._sums_to_come = dict(zip(self._parameters, memory.accumulated, strict=False))  # all, or none
        self._state_to_come = list(memory.state)
        for parameters, image in zip(self.parameter_groups, memory.weights, strict=True):
            group = self._flattened(parameters)
            partition = group.flat.clone()  # on its way to the host
            if self._host_device is not None:
                self._on_host.append(partition.to(self._host_device, torch.float32))
            del partition
            self._keep(image)
            self._groups.append(group)
        (staging,) = memory.staging
        self._keep(staging)
        with memory_named("engine_buffers"):
            self._staging = torch.zeros(staging.elements, dtype=self._dtype, device=self._device.torch)
        for buffer in memory.gradients:
            self._keep(buffer)

    def gradients(self) -> Iterator[torch.Tensor]:
        """On the device: those of a backward pass that is under way, and sums in fp32. The others are on the host."""
        return tensors_in([[parameter.grad for parameter in self._parameters], [group.sums for group in self._groups]])

    def _take(self, parameter: nn.Parameter) -> None:
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

    def _end_backward(self) -> None:
        self._send()
        self._bucket.buffers.clear()
        self._bucket.index = 0
        self._drop_gradients()

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


class SimulatedZero2(Bucketed):
    """With everything on the device."""

    def _partition(self) -> None:
        self._flat_gradients: torch.Tensor | None = None
        self._taken = 0
        """Elements of `_flat_gradients` that are used."""
        self._held: dict[int, list[torch.Tensor]] = {}
        """By group, gradients up to the step."""
        self._masters = []
        for parameters, settings in zip(self.parameter_groups, self._optimizer.param_groups, strict=True):
            group = self._flattened(parameters)
            master = group.flat.clone().to(torch.float32).requires_grad_()
            settings["params"] = [master]
            self._masters.append(master)
            self._groups.append(group)
        [torch.zeros_like(master, requires_grad=False) for master in self._masters]  # initialize_optimizer_states

    def gradients(self) -> Iterator[torch.Tensor]:
        return tensors_in([self._held, self._flat_gradients, [parameter.grad for parameter in self._parameters]])

    def optimizer_state(self) -> Iterator[torch.Tensor]:
        return tensors_in([self._masters, self._optimizer.state])

    def _take(self, parameter: nn.Parameter) -> None:
        if self._sums_on_device:
            return
        gradient = parameter.grad
        assert gradient is not None
        if self._flat_gradients is None:
            elements = sum(each.numel() for each in self._parameters)
            self._flat_gradients = torch.empty(elements, dtype=self._dtype, device=self._device.torch)
            self._taken = 0
        place = self._flat_gradients.narrow(0, self._taken, parameter.numel())
        place.copy_(gradient.view(-1))
        gradient.data = place.data.view_as(gradient)
        self._taken += parameter.numel()

    def _end_backward(self) -> None:
        self._send()
        for number, group in enumerate(self._groups):
            if self._sums_on_device:
                self._held[number] = list(group.sums.values())
                continue
            new = [torch.zeros_like(each) if each.grad is None else each.grad for each in group.parameters]
            if number in self._held:
                for sum_, gradient in zip(self._held[number], new, strict=True):
                    sum_.add_(gradient)
            else:
                self._held[number] = new
        self._bucket.buffers.clear()
        self._bucket.index = 0
        self._flat_gradients = None
        self._drop_gradients()

    def _step(self) -> None:
        """scaled_global_norm and DeepSpeedZeroOptimizer.step."""
        for number in self._held:
            self._norm(number)
        groups = list(self._optimizer.param_groups)
        for number, master in enumerate(self._masters):
            master.grad = self._flat_gradient(number)
            self._optimizer.param_groups = [groups[number]]
            self._optimizer.step()
            master.grad = None
        self._optimizer.param_groups = groups

    def _norm(self, number: int) -> None:
        norms = [torch.linalg.vector_norm(gradient.data.to(NORM_DTYPE)) for gradient in self._held[number]]
        torch.stack(norms).pow(2)

    def _flat_gradient(self, number: int) -> torch.Tensor:
        """All of a group's, in fp32."""
        group, held = self._groups[number], self._held.pop(number)
        if self._sums_on_device:
            flat = held[0]._base
            assert flat is not None
            group.sums.clear()
            return flat
        padding = group.flat.numel() - sum(gradient.numel() for gradient in held)
        flat = _flatten_dense_tensors([*held, *([held[0].new_zeros(padding)] if padding else [])])
        return flat.to(torch.float32)


def flatten(parameters: list[nn.Parameter]) -> torch.Tensor:
    """flatten_dense_tensors_aligned: one after the other, and zeros up to the alignment."""
    tensors = [parameter.detach() for parameter in parameters]
    elements = sum(tensor.numel() for tensor in tensors)
    if padding := aligned(elements) - elements:
        tensors.append(torch.zeros(padding, dtype=tensors[0].dtype, device=tensors[0].device))
    return _flatten_dense_tensors(tensors)
