"""Everything that autograd saves in a forward pass is kept on the host, as torch.autograd.graph.save_on_cpu does it.

The workload's field `activation_offloading` does the same for less: TRL's way leaves weights, small tensors and the output head's
on the device, and copies on a stream of its own, while this copies everything, weights too, and the work waits for each copy.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from vrambench.methods.device import Device, memory_named
from vrambench.methods.offload import Offload
from vrambench.methods.offload.learner import PlainLearner
from vrambench.methods.setup import Setup
from vrambench.methods.streams import OnHost, Streams, streams_of


class SaveOnCpu:
    """On CUDA, host memory is page-locked. On the CPU, what is saved is there already."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def forward(self) -> AbstractContextManager[Any]:
        """Around a forward pass."""
        if self._device.simulated:
            return SimulatedSaveOnCpu(self._device) if self._device.stands_for == "cuda" else nullcontext()
        return save_on_cpu(pin_memory=self._device.kind == "cuda", device_type=self._device.kind)

    def backward(self) -> AbstractContextManager[Any]:
        """Around a backward pass."""
        return nullcontext()


class Packed:
    """What is on the host instead of a tensor, until nobody holds this any more."""

    def __init__(self, host: OnHost, streams: Streams) -> None:
        self.host = host
        self._streams = streams

    def __del__(self) -> None:
        self._streams.let_go(self.host)


class SimulatedSaveOnCpu(saved_tensors_hooks):
    """What save_on_cpu does to the device's memory, in torch 2.11 to 2.14: a tensor with gaps is made contiguous there to be copied
    (aten/src/ATen/native/cuda/Copy.cu, copy_requires_temporaries), and comes back into memory of its own."""

    def __init__(self, device: Device) -> None:
        streams = streams_of(device)
        host_is_here = device.stands_for == "cpu"

        def pack(tensor: torch.Tensor) -> Packed:
            if not host_is_here:
                tensor.contiguous()
            return Packed(streams.empty_on_host(tuple(tensor.shape), tensor.dtype), streams)

        def unpack(packed: Packed) -> torch.Tensor:
            if isinstance(packed.host, torch.Tensor):
                return packed.host
            with memory_named("activations"):
                return streams.from_host(packed.host)

        super().__init__(pack, unpack)


class SavingLearner(PlainLearner):
    """PyTorch alone, with what autograd saves on the host."""

    def _offloading(self, module: nn.Module, setup: Setup, device: Device) -> SaveOnCpu:
        return SaveOnCpu(device)


ACTIVATIONS = Offload(
    summary="what autograd saves is on the host (torch's save_on_cpu), weights that products need again too",
    learner=SavingLearner,
    activations_on_host=True,
)
