"""Frozen models that are on the host while nobody asks them: the reference and the reward model, as OpenRLHF's ref_reward_offload
and verl's param_offload keep them.

    visitor = Visitor(module, device)
    with visitor.here():
        module(tokens)

Weights are frozen, so they are copied to the host once, into page-locked memory, and nothing is copied back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from vrambench.methods.device import WALKS_PARAMETERS, Device, memory_named
from vrambench.methods.streams import streams_of


class Visitor:
    """`module`, whose parameters are on `device` inside `here()` alone. Its buffers stay."""

    def __init__(self, module: nn.Module, device: Device) -> None:
        self._streams = streams_of(device)
        self._parameters = list(module.parameters())
        self._on_host = []
        with torch.profiler.record_function(WALKS_PARAMETERS):
            for parameter in self._parameters:
                self._on_host.append(self._streams.to_host(parameter.detach().contiguous()))
        for parameter in self._parameters:
            vars(parameter)["ds_numel"] = parameter.numel()  # as DeepSpeed calls it for its own; who counts looks there
        self._go()

    @contextmanager
    def here(self) -> Iterator[None]:
        with memory_named("gathered_weights"), torch.profiler.record_function(WALKS_PARAMETERS):
            for parameter, host in zip(self._parameters, self._on_host, strict=True):
                parameter.data = self._streams.from_host(host, parameter.new_empty(host.shape))
        try:
            yield
        finally:
            self._go()

    def _go(self) -> None:
        with torch.profiler.record_function(WALKS_PARAMETERS):
            for parameter in self._parameters:
                parameter.data = parameter.new_empty(0)
