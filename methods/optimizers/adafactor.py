"""Adafactor as transformers has it, with a fixed learning rate: the second moment is kept in factors, rows and columns.

torch.optim.Adafactor reads numbers back from the device in every step, so it cannot run where nothing is computed.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from vrambench.methods.optimizers import Group, Optimizer
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload


class AdafactorOptions(Options):
    """Names and defaults of transformers' Adafactor."""

    namespace: ClassVar[str] = "adafactor"
    clip_threshold: Annotated[float, Field(gt=0)] = 1.0
    """The root mean square to which an update is clipped."""
    decay_rate: float = -0.8
    """The second moment's decay rate in step t is 1 - t^decay_rate."""
    beta1: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay rate of a first moment; null keeps none."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled, as AdamW's."""


def make(groups: list[Group], module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """transformers.optimization.Adafactor, `scale_parameter` and `relative_step` off as TrainingArguments set them."""
    from transformers.optimization import Adafactor

    return Adafactor(
        groups,
        lr=workload.learning_rate,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
        **dict(workload.of(AdafactorOptions)),
    )


ADAFACTOR = Optimizer(
    summary="factored second moment, no first",
    options=AdafactorOptions,
    make=make,
    requires=("transformers.optimization",),
    factored=True,
)
