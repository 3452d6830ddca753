"""APOLLO (arXiv 2412.05270) by the authors' package: a gradient's rows or columns are scaled as Adam would scale them, which Adam's
moments of a random projection of low rank tell.

The projector is random numbers of the gradient's type, drawn anew every `update_proj_gap` steps: no decomposition, so no phase
`svd`. The package's other projector, by SVD, is left out; so are its types but `std`, which its scaling by channels does not fit.
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
from vrambench.methods.optimizers.targets import Targets, target_weights
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload


class ApolloOptions(Options):
    """Names and defaults of transformers. APOLLO-Mini is rank 1, scale 128, scale_type tensor."""

    namespace: ClassVar[str] = "apollo"
    rank: Annotated[int, Field(ge=1)] = 128
    """Rank of the projected gradient, along its shorter side."""
    update_proj_gap: Annotated[int, Field(ge=1)] = 200
    """Steps from one drawing of the projectors to the next."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """A step is multiplied by its root."""
    scale_type: Literal["channel", "tensor"] = "channel"
    """What is scaled alike: each row or column, or the whole gradient."""
    target_modules: Targets = "all-linear"
    """Every linear layer but the output head, or a list of parts of modules' names (transformers' `optim_target_modules`)."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of the first and the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled, as AdamW's."""


def settings(module: nn.Module, workload: Workload) -> dict[nn.Parameter, dict[str, Any]]:
    """What the package wants to know of a weight whose gradient it projects."""
    options: ApolloOptions = workload.of(ApolloOptions)
    said = options.model_dump(include={"rank", "update_proj_gap", "scale", "scale_type"})
    said |= {"proj": "random", "proj_type": "std"}
    return dict.fromkeys(target_weights(module, options.target_modules, ApolloOptions.namespace), said)


def make(groups: list[Group], module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """APOLLOAdamW: moments [rank, n] or [m, rank] and a projector per target, all of the gradient's type."""
    from apollo_torch import APOLLOAdamW

    chosen = workload.of(ApolloOptions).model_dump(include={"betas", "eps", "weight_decay"})
    optimizer: Any = APOLLOAdamW(groups, lr=workload.learning_rate, **chosen)
    if simulated(groups):
        optimizer.step = functools.partial(_step_without_values, optimizer.step)
    made: torch.optim.Optimizer = optimizer
    return made


def _step_without_values(step: Callable[[], Any]) -> Any:
    """A step on the simulated device, which has no random numbers of a seed and no number to compare: there the norm of a step has
    always grown by more than a hundredth, and is limited. Projectors are made from gradients, so that a tracer knows whose they
    are."""
    from apollo_torch.random_projector import GradientProjector

    draw = GradientProjector.get_orthogonal_matrix

    def drawn(self: Any, gradient: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        def randn(shape: Any, seed: int, device: Any, dtype: torch.dtype) -> torch.Tensor:
            return gradient.new_empty(shape, dtype=dtype)

        with mock.patch("apollo_torch.random_projector.stable_randn", randn):
            made: torch.Tensor = draw(self, gradient, *args, **options)
            return made

    with (
        mock.patch.object(GradientProjector, "get_orthogonal_matrix", drawn),
        mock.patch("apollo_torch.apollo.max", lambda norm, least: norm, create=True),
    ):
        return step()


APOLLO_ADAMW = Optimizer(
    summary="AdamW's scaling of gradients, told by moments of a random projection",
    options=ApolloOptions,
    make=make,
    settings=settings,
    requires=("apollo_torch", "bitsandbytes"),  # apollo_torch imports bitsandbytes
    projects_gradients=True,
)
