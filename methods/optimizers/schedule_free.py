"""Schedule-free AdamW and SGD (arXiv 2405.15682) by the authors' package, over lists of tensors.

Beside what the optimizer keeps, each weight has a second copy, z, which takes the plain steps. Gradients are taken at a point y
between z and the average x of all z; the weights themselves are y while training and x while evaluating and saving, and train()
and eval() turn one into the other, in place. A step divides gradients in place.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from vrambench.methods.optimizers import Group, Optimizer
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload


class ScheduleOptions(Options):
    """What both have."""

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps in which the learning rate grows to its value."""
    r: float = 0.0
    """In the average, z of step t weighs t^r more."""
    weight_lr_power: float = 2.0
    """In the average, z weighs as the largest learning rate so far, to this power."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Added to what z steps by: this times y."""


class ScheduleFreeAdamWOptions(ScheduleOptions):
    """Defaults of transformers' TrainingArguments."""

    namespace: ClassVar[str] = "schedule_free_adamw"
    betas: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """How near y is to x, and the second moment's decay rate."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""


class ScheduleFreeSGDOptions(ScheduleOptions):
    """Defaults of the package."""

    namespace: ClassVar[str] = "schedule_free_sgd"
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """How near y is to x."""


def make_adamw(groups: list[Group], module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """A second moment and z, of the weights' type."""
    from schedulefree import AdamWScheduleFree

    return _training(AdamWScheduleFree, groups, workload, ScheduleFreeAdamWOptions)


def make_sgd(groups: list[Group], module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """z, of the weights' type."""
    from schedulefree import SGDScheduleFree

    return _training(SGDScheduleFree, groups, workload, ScheduleFreeSGDOptions)


def _training(kind: Any, groups: list[Group], workload: Workload, options: type[Options]) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = kind(groups, lr=workload.learning_rate, foreach=True, **dict(workload.of(options)))
    return made


SCHEDULE_FREE_ADAMW = Optimizer(
    summary="AdamW whose weights are averaged, in place of a learning rate schedule",
    options=ScheduleFreeAdamWOptions,
    make=make_adamw,
    requires=("schedulefree",),
    modes=True,
)
SCHEDULE_FREE_SGD = Optimizer(
    summary="SGD whose weights are averaged, in place of a learning rate schedule",
    options=ScheduleFreeSGDOptions,
    make=make_sgd,
    requires=("schedulefree",),
    modes=True,
)
