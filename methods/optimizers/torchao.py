"""torchao's AdamW: moments in 8 or in 4 bits, block by block, and a step that torch.compile makes one kernel of.

Tensors of fewer than 4,096 elements, or of a number that blocks do not divide, keep moments of the weights' type. On the CPU the
step is not compiled, which would take tens of seconds for each shape; the numbers are the same. On the simulated device it takes
nothing beside its state, as one kernel does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal
from unittest import mock

import torch
from pydantic import Field
from torch import nn

from vrambench.methods.optimizers import Group, Optimizer, simulated
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload

Kind = Literal["AdamW8bit", "AdamW4bit"]
"""torchao's names."""


class TorchAOOptions(Options):
    """Defaults of transformers' TrainingArguments and `optim_args`."""

    namespace: ClassVar[str] = "torchao"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of the first and the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled: this times the learning rate is taken off each weight in each step."""
    block_size: Annotated[int, Field(ge=2, multiple_of=2)] = 256
    """Elements that have one scale."""
    bf16_stochastic_round: bool = False
    """Whether bf16 weights are rounded up or down by chance."""


def maker(kind: Kind) -> Callable[[list[Group], nn.Module, Workload], Any]:
    """What makes torchao's optimizer of that class."""

    def make(groups: list[Group], module: nn.Module, workload: Workload) -> Any:
        import torchao.optim

        optimizer = getattr(torchao.optim, kind)(groups, lr=workload.learning_rate, **dict(workload.of(TorchAOOptions)))
        if simulated(groups):
            optimizer._subclass_zeros = _zeros(kind)
            optimizer.step = functools.partial(_step_without_kernels, optimizer.step)
        elif not any(parameter.is_cuda for group in groups for parameter in group["params"]):
            optimizer.step = functools.partial(_step_uncompiled, optimizer.step)
        return optimizer

    return make


def _step_uncompiled(step: Callable[[], Any]) -> Any:
    with mock.patch.object(torch, "compile", lambda function, **_: function):
        return step()


def _nothing(*_: Any) -> None:
    """No mock: that would keep what it is called with."""


def _step_without_kernels(step: Callable[[], Any]) -> Any:
    """A step on the simulated device: state comes into being as for the kernel, which takes no memory and is left out."""
    with mock.patch("torchao.optim.adam.single_param_adam", _nothing):
        return _step_uncompiled(step)


def _zeros(kind: Kind) -> Callable[[torch.Tensor, bool, int], torch.Tensor]:
    """As torchao makes a moment (OptimState8bit.zeros, OptimState4bit.zeros), but from its parameter, so that whoever traces the
    simulated device knows whose it is."""

    def zeros(parameter: torch.Tensor, signed: bool, block_size: int) -> torch.Tensor:
        from torchao.optim.subclass_4bit import OptimState4bit
        from torchao.optim.subclass_8bit import OptimState8bit

        elements = parameter.numel()
        four = kind == "AdamW4bit"
        codes = parameter.new_zeros(elements // 2 if four else parameter.shape, dtype=torch.uint8)
        scale = parameter.new_zeros(elements // block_size, dtype=torch.float32)
        table = parameter.new_empty(16 if four else 256, dtype=torch.float32)
        made: torch.Tensor = (
            OptimState4bit(codes, scale, table, signed, parameter.shape, dtype=parameter.dtype)
            if four
            else OptimState8bit(codes, scale, table, signed, dtype=parameter.dtype)
        )
        return made

    return zeros


def uncertain(workload: Workload) -> str:
    """Whether what inductor makes of the step is one kernel is decided on a GPU."""
    return (
        "what torch.compile's step may keep beside its state, at most a copy of the largest weight, of its gradient and of "
        "both moments in fp32 (16 bytes an element), and nothing where all is one kernel"
    )


def optimizer(summary: str, kind: Kind) -> Optimizer:
    """The axis value of torchao's optimizer of that class."""
    return Optimizer(
        summary=summary,
        options=TorchAOOptions,
        make=maker(kind),
        requires=("torchao.optim",),
        eight_bit=True,
        one_kernel=True,
        unmodelled=uncertain,
    )


ADAMW_TORCH_8BIT = optimizer("torchao's AdamW, 8-bit moments", "AdamW8bit")
ADAMW_TORCH_4BIT = optimizer("torchao's AdamW, 4-bit moments", "AdamW4bit")
