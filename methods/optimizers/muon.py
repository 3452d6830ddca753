"""Muon by PyTorch: the weight matrices of hidden layers step by an orthogonalised momentum, everything else by AdamW.

torch.optim.Muon takes matrices alone, and asks for AdamW beside it: for embeddings, the output head, norms and biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from vrambench.methods.optimizers import Group, Optimizer
from vrambench.methods.optimizers.targets import Targets, target_weights
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload


class MuonOptions(Options):
    """Names and defaults of torch.optim.Muon, and what AdamW needs beside it."""

    namespace: ClassVar[str] = "muon"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the one moment that matrices keep."""
    nesterov: bool = True
    """Whether a step looks ahead by one more momentum."""
    ns_steps: Annotated[int, Field(ge=1, lt=100)] = 5
    """Newton-Schulz iterations that orthogonalise a step, in bf16."""
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original"
    """How a matrix' shape changes its learning rate: by the root of rows over columns where that is more than 1, or to steps as
    large as AdamW's."""
    target_modules: Targets = "all-linear"
    """Whose matrices: every linear layer's but the output head's, or those of a list of parts of modules' names."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled, as AdamW's; for all weights."""
    adamw_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """The learning rate of what AdamW steps; null is that of the matrices."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's decay rates."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's: added to the root of the second moment."""


class MuonAndAdamW:
    """Two optimizers as one, or one of both where there are parameters for one alone."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self._parts = parts

    @property
    def state(self) -> Mapping[Any, Any]:
        return {key: value for part in self._parts for key, value in part.state.items()}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]

    def step(self) -> None:
        """AdamW's step, then Muon's."""
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        """Frees the gradients of both."""
        for part in self._parts:
            part.zero_grad()


def settings(module: nn.Module, workload: Workload) -> dict[nn.Parameter, dict[str, Any]]:
    """Of the matrices that Muon steps."""
    options: MuonOptions = workload.of(MuonOptions)
    said = options.model_dump(include={"momentum", "nesterov", "ns_steps", "adjust_lr_fn"})
    return dict.fromkeys(target_weights(module, options.target_modules, MuonOptions.namespace), said)


def make(groups: list[Group], module: nn.Module, workload: Workload) -> MuonAndAdamW:
    """AdamW by list kernels, with two moments of the weights' type, and Muon, with one."""
    options: MuonOptions = workload.of(MuonOptions)
    matrices = [group for group in groups if "ns_steps" in group]
    others = [group for group in groups if "ns_steps" not in group]
    rate, decay = workload.learning_rate, options.weight_decay
    assert rate is not None
    parts: list[torch.optim.Optimizer] = []
    if others:
        other_rate = options.adamw_learning_rate or rate
        chosen = options.model_dump(include={"betas", "eps"})
        parts.append(torch.optim.AdamW(others, lr=other_rate, weight_decay=decay, foreach=True, **chosen))
    if matrices:
        parts.append(torch.optim.Muon(matrices, lr=rate, weight_decay=decay))
    return MuonAndAdamW(parts)


MUON = Optimizer(
    summary="orthogonalised momentum for hidden layers' matrices, AdamW for the rest",
    options=MuonOptions,
    make=make,
    settings=settings,
    of_matrices=True,
)
