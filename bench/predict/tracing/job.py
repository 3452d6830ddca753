"""The job that a tracer follows: the same job as is measured, which also tells the tracer whose memory is whose.

tracer = Tracer("meta")
job = TracedJob(cell, device, tracer)
"""

from __future__ import annotations

from torch import nn

from vrambench.bench.measure.ledger import unpaged, weights
from vrambench.bench.predict.tracing.trace import Owner
from vrambench.bench.predict.tracing.tracer import Tracer
from vrambench.methods.algorithms import Metrics
from vrambench.methods.cell import Cell
from vrambench.methods.device import Device
from vrambench.methods.job import Context, Job
from vrambench.methods.offload.learner import Learner, LearnerFactory

STEPPING = ("optimizer_step", "svd")
"""Phases of an optimizer's step."""


class TracedJob(Job):
    """A job that tells its tracer of its roles (before optimizers are built on their weights), its steps, and of what is whose."""

    def __init__(self, cell: Cell, device: Device, tracer: Tracer) -> None:
        super().__init__(cell, device, self._enter)
        self._tracer = tracer
        self._optimizer_steps = 0
        self._looks = 0
        self._phase = ""

    def load(self) -> None:
        super().load()
        for name, role in self.roles.items():
            self._tracer.watch(name, role.module)
            self._tracer.own(weights(role.module), Owner(name, "weights"))

    def _own_states(self) -> None:
        """What the optimizers keep, and weights that they have put in the place of others."""
        self._looks += 1
        for name, role in self.roles.items():
            self._tracer.own(weights(role.module), Owner(name, "weights", self._looks))
            if role.learner:
                self._tracer.own(unpaged(role.learner.optimizer_state()), Owner(name, "optimizer"))

    def _own_replaced(self) -> None:
        """Weights that an optimizer's step has put in the place of others, which the next one may replace in turn."""
        self._looks += 1
        for name, role in self.roles.items():
            if role.learner:
                self._tracer.own(weights(role.module), Owner(name, "weights", self._looks))

    def _enter(self, phase: str) -> None:
        if self._phase in STEPPING and phase not in STEPPING:
            self._own_replaced()
        if phase == "optimizer_step" and self._phase != "svd":
            for name, role in self.roles.items():
                if role.learner:
                    self._tracer.own(role.learner.gradients(), Owner(name, "gradients", self._optimizer_steps))
            self._optimizer_steps += 1
        self._phase = phase
        self._tracer.enter(phase)

    def step(self, index: int) -> Metrics:
        self._tracer.step(index)
        metrics = super().step(index)
        self._own_states()
        return metrics

    def _visiting(self, module: nn.Module) -> Context:
        for name, role in self.roles.items():
            if role.module is module:  # before its weights go to the host
                self._tracer.watch(name, module)
        return super()._visiting(module)

    def _trained(self, name: str, module: nn.Module, factory: LearnerFactory | None = None) -> Learner:
        self._tracer.watch(name, module)
        with self._tracer.building(name):
            return super()._trained(name, module, factory)
