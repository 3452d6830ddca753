"""SGD, RMSprop and Adagrad by PyTorch, over lists of tensors (foreach), which is asked for by name: PyTorch's own choice differs
between devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from vrambench.methods.optimizers import Group, Optimizer
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload

# As all three read it. Not decoupled.
Decay = Annotated[float, Field(ge=0)]


class SGDOptions(Options):
    """Names and defaults of torch.optim.SGD."""

    namespace: ClassVar[str] = "sgd"
    momentum: Annotated[float, Field(ge=0)] = 0.0
    """Decay rate of a sum of gradients; 0 keeps none, and no state at all."""
    dampening: float = 0.0
    """How much less than whole a gradient goes into that sum."""
    nesterov: bool = False
    """Whether a step looks ahead by one more momentum."""
    weight_decay: Decay = 0.0
    """Added to the gradient: this times the weight."""


class RMSpropOptions(Options):
    """Names and defaults of torch.optim.RMSprop."""

    namespace: ClassVar[str] = "rmsprop"
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay rate of the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    momentum: Annotated[float, Field(ge=0)] = 0.0
    """Decay rate of a sum of steps; 0 keeps none."""
    centered: bool = False
    """Whether the first moment is kept too, and its square taken off the second."""
    weight_decay: Decay = 0.0
    """Added to the gradient: this times the weight."""


class AdagradOptions(Options):
    """Names and defaults of torch.optim.Adagrad."""

    namespace: ClassVar[str] = "adagrad"
    lr_decay: Annotated[float, Field(ge=0)] = 0.0
    """In step t the learning rate is divided by 1 + (t - 1) lr_decay."""
    eps: Annotated[float, Field(gt=0)] = 1e-10
    """Added to the root of the sum of squares."""
    weight_decay: Decay = 0.0
    """Added to the gradient: this times the weight."""


def maker(
    kind: type[torch.optim.Optimizer], options: type[Options]
) -> Callable[[list[Group], nn.Module, Workload], torch.optim.Optimizer]:
    """What makes PyTorch's optimizer of that class."""

    def make(groups: list[Group], module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
        return kind(groups, lr=workload.learning_rate, foreach=True, **dict(workload.of(options)))  # type: ignore[call-arg]

    return make


SGD = Optimizer(
    summary="PyTorch's SGD, no state without momentum", options=SGDOptions, make=maker(torch.optim.SGD, SGDOptions)
)
RMSPROP = Optimizer(
    summary="PyTorch's RMSprop, a second moment",
    options=RMSpropOptions,
    make=maker(torch.optim.RMSprop, RMSpropOptions),
)
ADAGRAD = Optimizer(
    summary="PyTorch's Adagrad, a sum of squares",
    options=AdagradOptions,
    make=maker(torch.optim.Adagrad, AdagradOptions),
)
