"""ZeRO-3 for the simulated device: what DeepSpeed's engine allocates and frees there, in order.

It follows runtime/zero/stage3.py and partition_parameters.py, one rank, with its usual settings and the optimizer on the host:

  load      every parameter, frozen ones too, goes to memory of its own: on the host where parameters are offloaded. Those that
            are trained and not offloaded go through the host into one flat buffer. A bucket of `reduce_bucket_size` elements is
            made and stays.
  forward,  a module's parameters come when it runs, and go (gathering.py). With one rank nothing is gathered from anywhere: what
  backward  is on the device is used where it lies, and what is on the host is copied, each parameter by itself.
  backward  gradients are copied into the bucket. When it is full, and at the end, they are put together once more, added to what
            earlier micro-batches left on the host, and sent there in fp32, after their norm in fp64. A parameter larger than the
            bucket has its gradient left where it is.
  step      all parameters go, the host steps, and small ones come back.

With `overlap_comm` the engine gathers and reduces on further streams, whose memory a caching allocator keeps apart; no stream is
named here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property

import torch
from torch import nn

from vrambench.methods.device import memory_named
from vrambench.methods.offload.gathering import Gathering, Partition
from vrambench.methods.offload.host import HostBuffer, HostMemory
from vrambench.methods.offload.linear import efficient_linear
from vrambench.methods.offload.simulated import NORM_DTYPE, SimulatedEngine
from vrambench.methods.offload.zero import number_of

LARGEST_NORM = 250_000_000
"""Elements whose norm is taken at once (_constant_buffered_norm2)."""


class SimulatedZero3(SimulatedEngine):
    """With the optimizer on the host, and the parameters as well where the offload says so."""

    def host_memory_of(self, groups: Sequence[Sequence[nn.Parameter]]) -> HostMemory:
        memory = super().host_memory_of(groups)
        return replace(memory, weights=(*memory.weights, *self._frozen))

    @cached_property
    def _frozen(self) -> tuple[HostBuffer, ...]:
        """On the host, of frozen parameters, which are in no flat buffer. Asked for first when all are gathered."""
        if not self._setup.parameters_on_host:
            return ()
        trained = set(self._parameters)
        frozen = [parameter for parameter in self.module.parameters() if parameter not in trained]
        return tuple(HostBuffer(each.numel(), each.dtype, self._options.pin_memory) for each in frozen)

    def _load(self) -> None:
        self._bucket: list[nn.Parameter] = []
        self._bucket_size = number_of(self._options.reduce_bucket_size)
        self._in_bucket = 0
        self._norms: list[torch.Tensor] = []
        self._state_to_come = list(self.host_memory.state)
        self._homes: dict[nn.Parameter, torch.Tensor] = {}
        """Where each lies, flat, that is not on a host apart."""
        self._partitions = {
            parameter: self._moved_home(parameter, number) for number, parameter in enumerate(self.module.parameters())
        }
        self._gathering = Gathering(self.module, self._partitions, self._options, self._device.torch)
        if self._setup.parameters_on_host:
            self._flatten_on_host()
        else:
            self._flatten()
        self._move_optimizer()
        for parameter in self._parameters:  # create_reduce_and_remove_grad_hooks
            self._partitions[parameter].gather_alone()
            self._partitions[parameter].free()

    def _moved_home(self, parameter: nn.Parameter, number: int) -> Partition:
        """Init._zero_init_param."""
        shape, elements, dtype = parameter.shape, parameter.numel(), parameter.dtype
        nothing = torch.empty(0, dtype=dtype, device=self._device.torch)
        if self._host_is_here or not self._setup.parameters_on_host:
            self._homes[parameter] = torch.empty(elements, dtype=dtype, device=self._device.torch)

        def gather() -> None:
            home = self._homes.get(parameter)
            with memory_named("gathered_weights"):
                parameter.data = nothing.new_empty(shape) if home is None else self._arrived(home).view(shape)

        def gather_alone() -> None:
            """_allgather_params_sequential: into a buffer of its own, from the device."""
            with memory_named("gathered_weights"):
                flat = nothing.new_empty(elements)
                if parameter not in self._homes:
                    torch.empty_like(flat)
                parameter.data = flat.view(shape)

        def free() -> None:
            parameter.data = nothing

        free()
        vars(parameter)["ds_numel"] = elements  # as DeepSpeed calls it, and so who counts
        _at_home(parameter, self._homes.get(parameter))
        persistent = elements <= number_of(self._options.stage3_param_persistence_threshold)
        return Partition(parameter, number, gather, gather_alone, free, elements, persistent=persistent)

    def _arrived(self, home: torch.Tensor) -> torch.Tensor:
        """What comes of a parameter that lies on the device."""
        return home

    @property
    def _host_is_here(self) -> bool:
        """Host and device are one: what moves between them stays where it is."""
        return self._host_device is not None

    def _flatten(self) -> None:
        """defragment: through the host into one buffer."""
        elements = sum(self._homes[parameter].numel() for parameter in self._parameters)
        flat = self._flat(elements) if self._host_is_here else None
        for parameter in self._parameters:
            del self._homes[parameter]
            _at_home(parameter, None)
        self._device.empty_cache()
        self._lay_out(self._parameters, self._flat(elements) if flat is None else flat)

    def _flatten_on_host(self) -> None:
        """_create_param_groups_fp16_flat_cpu_memory, _move_to_flat_buffer."""
        for group in self.parameter_groups if self._host_is_here else ():
            self._lay_out(group, self._flat(sum(self._partitions[parameter].numel for parameter in group)))

    def _flat(self, elements: int) -> torch.Tensor:
        return torch.empty(elements, dtype=self._dtype, device=self._device.torch)

    def _lay_out(self, parameters: Sequence[nn.Parameter], flat: torch.Tensor) -> None:
        start = 0
        for parameter in parameters:
            elements = self._partitions[parameter].numel
            self._homes[parameter] = flat.narrow(0, start, elements)
            _at_home(parameter, self._homes[parameter])
            start += elements

    def _move_optimizer(self) -> None:
        """_create_fp32_partitions, initialize_optimizer_states, and the bucket."""
        memory = self.host_memory
        converted = None
        for master in memory.masters if self._host_is_here else ():
            if self._dtype != torch.float32:
                converted = torch.empty(master.elements, dtype=torch.float32, device=self._host_device)
            self._keep(master)
        del converted
        largest = None
        if self._host_is_here:
            largest = torch.zeros(max(master.elements for master in memory.masters), device=self._host_device)
        for gradients in memory.gradients:
            self._keep(gradients)
        del largest
        with memory_named("engine_buffers"):
            self._buffer = torch.empty(self._bucket_size, dtype=self._engine_dtype, device=self._device.torch)
        for sums in memory.accumulated:
            self._keep(sums)

    def _collect(self, parameter: nn.Parameter) -> None:
        """reduce_independent_p_g_buckets_and_remove_grads."""
        gradient, elements = parameter.grad, self._partitions[parameter].numel
        assert gradient is not None
        if self._in_bucket and self._in_bucket + elements > self._bucket_size:
            self._send()
        if self._in_bucket + elements <= self._bucket_size:
            place = self._buffer.narrow(0, self._in_bucket, elements).view_as(gradient)
            place.copy_(gradient)
            gradient.data = place
        self._bucket.append(parameter)
        self._in_bucket += elements

    def _send(self) -> None:
        """__reduce_and_partition_ipg_grads, reduce_scatter_coalesced: what the bucket holds goes to the host."""
        parameters = sorted(self._bucket, key=lambda parameter: self._partitions[parameter].number)
        if not parameters:
            return
        gradients = [
            parameter.grad.to(self._engine_dtype).view(-1) for parameter in parameters if parameter.grad is not None
        ]
        flat = torch.cat(gradients) if len(gradients) > 1 else gradients[0]
        self._reduce(flat)
        start = 0
        for parameter in parameters:
            elements = self._partitions[parameter].numel
            self._to_host(flat.narrow(0, start, elements))
            parameter.grad = None
            start += elements
        self._bucket.clear()
        self._in_bucket = 0

    def _reduce(self, flat: torch.Tensor) -> None:
        flat.div_(1)

    def _to_host(self, gradient: torch.Tensor) -> None:
        """partition_grads, _offload_grad_partition_at_boundary: it comes back from the host, where the sum is."""
        if not self._host_is_here:
            gradient = torch.empty_like(gradient)
        if not self._step_is_due:
            return
        norm = None
        for part in gradient.split(LARGEST_NORM):
            squared = part.to(NORM_DTYPE).norm(2) ** 2.0
            norm = squared if norm is None else norm.add_(squared)
        assert norm is not None
        self._norms.append(norm**0.5)
        gradient.to(torch.float32)

    def forward(self) -> AbstractContextManager[None]:
        return efficient_linear()

    def _engine_backward(self, loss: torch.Tensor) -> None:
        with efficient_linear():  # of what checkpoints compute once more
            super()._engine_backward(loss)

    def _end_backward(self) -> None:
        self._send()
        self._gathering.end_backward()

    def consolidate(self) -> None:
        """What saving takes on the device."""
        self._gathering.gather_one_by_one()

    def _step(self) -> None:
        self._gathering.release_all()
        if self._host_is_here:  # combine_grad_norm_groups
            norms = torch.empty(len(self.host_memory.masters), device=self._host_device)
            torch.isfinite(norms).logical_not().logical_or(norms < 0)
        while self._state_to_come:
            self._keep(self._state_to_come.pop())
        self._norms.clear()
        self._gathering.gather_persistent()


def _at_home(parameter: nn.Parameter, home: torch.Tensor | None) -> None:
    """Says where `parameter` lies on the device while it is not gathered, by DeepSpeed's name."""
    vars(parameter)["ds_tensor"] = home
