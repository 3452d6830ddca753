"""A second adapter on one base, trained by itself: how a value model shares the policy's weights (PEFT's add_adapter, set_adapter).

model = policy.model
second = SecondAdapter(model, "value", workload)
with second.active():
    learner = make_learner(critic)              trains what is active
learner = second.trained_by(learner)            has it active in its forward and backward passes
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vrambench.methods.adapters.attaching import cast_buffers
from vrambench.methods.dtypes import DTYPES
from vrambench.methods.offload.learner import Learner
from vrambench.methods.optimizers import trainable
from vrambench.methods.workload import Workload


class SecondAdapter:
    """Called `name`, on PEFT's `model`, like the one that is there."""

    def __init__(self, model: Any, name: str, workload: Workload) -> None:
        self._model = model
        self._name = name
        self._first = model.active_adapter
        trained = trainable(model)
        with model.device:
            model.add_adapter(name, copy.deepcopy(model.peft_config[self._first]), autocast_adapter_dtype=False)
        model.set_adapter(name)
        dtype = DTYPES[workload.adapter_dtype or "fp32"]
        own = [parameter for parameter in trainable(model) if parameter not in set(trained)]
        for parameter in own:
            parameter.data = parameter.data.to(dtype)
        cast_buffers(model, dtype)
        self._trained: list[nn.Parameter] = [*trained, *own]
        self._set(self._first)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, it is at work in the place of the first, which no optimizer that is made there gets."""
        self._model.set_adapter(self._name)
        try:
            yield
        finally:
            self._set(self._first)

    def _set(self, name: str) -> None:
        """PEFT has only what is active require gradients; both are trained."""
        self._model.set_adapter(name)
        for parameter in self._trained:
            parameter.requires_grad_()

    def trained_by(self, learner: Learner) -> Learner:
        return SecondLearner(learner, self)


class SecondLearner:
    """`learner`, with the second adapter at work. Layers that are checkpointed run once more in the backward pass."""

    def __init__(self, learner: Learner, adapter: SecondAdapter) -> None:
        self.module: Any = learner.module
        self._learner = learner
        self._adapter = adapter

    @contextmanager
    def forward(self) -> Iterator[None]:
        with self._adapter.active(), self._learner.forward():
            yield

    def backward(self, loss: torch.Tensor) -> None:
        with self._adapter.active():
            self._learner.backward(loss)

    def gradients(self) -> Iterator[torch.Tensor]:
        return self._learner.gradients()

    def optimizer_state(self) -> Iterator[torch.Tensor]:
        return self._learner.optimizer_state()

    def train(self, mode: bool = True) -> None:
        self._learner.train(mode)

    def optimizer_steps(self) -> int:
        return self._learner.optimizer_steps()

    def skipped_steps(self) -> int:
        return self._learner.skipped_steps()
