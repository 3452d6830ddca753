"""GaLore (arXiv 2403.03507) by the authors' package: Adam's moments in a low-rank projection of each matrix' gradient.

The projector of every target is computed anew by an SVD every `update_proj_gap` steps, all of them at the same step: a
large part of the time (arXiv 2407.08296), and the reason for `svd: randomized`, as GaLore 2 has it.
The package ignores the betas, eps and weight decay of transformers' arguments; here they are options, set for real.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal
from unittest import mock

import torch
from pydantic import Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from vrambench.methods.errors import ConfigurationError, did_you_mean
from vrambench.methods.optimizers import Optimizer, trainable
from vrambench.methods.optimizers.bitsandbytes import with_own_manager
from vrambench.methods.optimizers.layerwise import Layerwise
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload

OVERSAMPLING = 8
POWER_ITERATIONS = 2
"""Of the randomized decomposition: columns beyond the rank, and times that the spectrum is sharpened; both as usual."""

LIBRARY_BYTES = 98 * 2**20
"""cuSOLVER, for the decompositions: seen on an H200 with CUDA 13 (results/nvidia-h200/measured)."""

SYNCHRONISES = "galore_torch's 8-bit optimizer synchronises CUDA after every parameter"


class GaLoreOptions(Options):
    """Names and defaults of galore_torch."""

    namespace: ClassVar[str] = "galore"
    rank: Annotated[int, Field(ge=1)] = 128
    """Rank of the projected gradient."""
    update_proj_gap: Annotated[int, Field(ge=1)] = 200
    """Steps from one computation of the projectors to the next."""
    scale: Annotated[float, Field(gt=0)] = 0.25
    """What an update is multiplied by when it is projected back."""
    proj_type: Literal["std", "reverse_std", "right", "left"] = "std"
    """The side that is projected: `std` the shorter one, `reverse_std` the longer one."""
    svd: Literal["full", "randomized"] = "full"
    """The whole decomposition, as the package has it, or a randomized one of the rank alone (arXiv 2504.20437)."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Every linear layer but the output head, or a list of parts of modules' names (transformers' `optim_target_modules`)."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of the first and the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled, as AdamW's."""


def target_weights(module: nn.Module, options: GaLoreOptions) -> list[nn.Parameter]:
    """The weight matrices whose gradients are projected: [out, in], trainable, of linear layers inside the trunk's layers.

    Raises ConfigurationError, about `galore.target_modules`, where a part of a name is in no such layer's.
    """
    linears: dict[str, Any] = {
        name: part.weight
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | Conv1D) and part.weight.requires_grad
    }
    asked = options.target_modules
    if asked == "all-linear":  # inside a numbered layer
        targets = [weight for name, weight in linears.items() if any(part.isdigit() for part in name.split("."))]
    else:
        for target in asked:
            if not any(target in name for name in linears):
                known = sorted({name.rpartition(".")[2] for name in linears})
                raise ConfigurationError(
                    f"galore.target_modules: {target!r} is in the name of no linear layer that is trained"
                    f"{did_you_mean(target, known)} (there are {', '.join(known)})",
                    field="galore.target_modules",
                )
        targets = [weight for name, weight in linears.items() if any(target in name for target in asked)]
    if not targets:
        raise ConfigurationError(
            f"galore.target_modules: {asked!r} names no linear layer that is trained",
            field="galore.target_modules",
        )
    return targets


@contextmanager
def mark_projections(phase: Callable[[str], None], around: str) -> Iterator[None]:
    """Each SVD that computes a projector is in phase `svd`, and what follows it in phase `around` again."""
    from galore_torch.galore_projector import GaLoreProjector

    compute = GaLoreProjector.get_orthogonal_matrix

    def marked(self: Any, *arguments: Any, **options: Any) -> Any:
        phase("svd")
        try:
            return compute(self, *arguments, **options)
        finally:
            phase(around)

    GaLoreProjector.get_orthogonal_matrix = marked
    try:
        yield
    finally:
        GaLoreProjector.get_orthogonal_matrix = compute


def solver_workspace(workload: Workload) -> str | None:
    """A whole decomposition's; the randomized one was measured, and takes no more than is predicted."""
    whole = workload.of(GaLoreOptions).svd == "full"
    return "the work space of whole decompositions, which cuSOLVER tells on a GPU alone" if whole else None


def svd_gap(workload: Workload) -> int:
    """Optimizer steps from one decomposition of every target to the next."""
    options: GaLoreOptions = workload.of(GaLoreOptions)
    return options.update_proj_gap


def _group(parameters: list[nn.Parameter], options: GaLoreOptions, projected: bool) -> dict[str, Any]:
    group: dict[str, Any] = {"params": parameters}
    if projected:
        group |= options.model_dump(include={"rank", "update_proj_gap", "scale", "proj_type"})
    return group


def _adamw(groups: list[dict[str, Any]], workload: Workload, options: GaLoreOptions) -> torch.optim.Optimizer:
    from galore_torch import GaLoreAdamW

    settings = options.model_dump(include={"betas", "eps", "weight_decay"})
    return GaLoreAdamW(groups, lr=workload.learning_rate, no_deprecation_warning=True, **settings)


def _adamw_8bit(groups: list[dict[str, Any]], workload: Workload, options: GaLoreOptions) -> torch.optim.Optimizer:
    from galore_torch import GaLoreAdamW8bit

    # galore_torch passes positions that bitsandbytes reads as max_unorm and skip_zeros since 0.50; `args` overrides them
    # all (the last two are read before 0.50 only).
    args = SimpleNamespace(
        optim_bits=8, min_8bit_size=4096, max_unorm=0.0, skip_zeros=False, percentile_clipping=100, block_wise=True
    )
    settings = options.model_dump(include={"betas", "eps", "weight_decay"})
    optimizer: Any = GaLoreAdamW8bit(groups, lr=workload.learning_rate, args=args, **settings)
    with_own_manager(optimizer)
    if any(parameter.is_meta for group in groups for parameter in group["params"]):
        optimizer.step = functools.partial(_step_without_waiting, optimizer.step)
    return optimizer


def _step_without_waiting(step: Callable[[], Any]) -> Any:
    """A step on the simulated device, which is never waited for: the package waits for CUDA after every parameter."""
    with mock.patch.object(torch.cuda, "synchronize"):
        return step()


def randomized_svd(
    matrix: torch.Tensor, rank: int, svd: Callable[..., Any] = torch.linalg.svd
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U [m, k], S [k] and Vh [k, n] of the largest k singular values of `matrix` [m, n], approximately: k is the rank and a
    few more, as far as there are so many. Halko, Martinsson, Tropp (arXiv 0909.4061), algorithms 4.4 and 5.1, on the longer
    side, with `svd` for the small matrix that is left. The same for the same matrix; torch's global generator is left alone.
    """
    if matrix.shape[0] < matrix.shape[1]:
        u, s, vh = randomized_svd(matrix.mT, rank, svd)
        return vh.mT, s, u.mT
    width = min(rank + OVERSAMPLING, matrix.shape[1])
    chance = None if matrix.is_meta else torch.Generator(matrix.device).manual_seed(0)
    probe = torch.randn(matrix.shape[1], width, dtype=matrix.dtype, device=matrix.device, generator=chance)
    basis = torch.linalg.qr(matrix @ probe).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix.mT @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    u, s, vh = svd(basis.mT @ matrix, full_matrices=False)
    return basis @ u, s, vh


def _with_randomized_svd(rank: int, step: Callable[[], Any]) -> Any:
    """A step in which the package's decompositions are randomized ones: it calls torch's by its full name."""
    svd = torch.linalg.svd

    def decompose(matrix: torch.Tensor, full_matrices: bool = False) -> Any:
        return randomized_svd(matrix, rank, svd)

    with mock.patch.object(torch.linalg, "svd", decompose):
        return step()


def _build(module: nn.Module, workload: Workload, make: Any, layerwise: bool) -> Any:
    options: GaLoreOptions = workload.of(GaLoreOptions)
    if options.svd == "randomized":
        make = functools.partial(_made_randomized, make)
    targets = set(target_weights(module, options))
    if layerwise:
        return Layerwise(trainable(module), lambda p: make([_group([p], options, p in targets)], workload, options))
    everything = trainable(module)
    plain = [parameter for parameter in everything if parameter not in targets]
    projected = [parameter for parameter in everything if parameter in targets]
    groups = [_group(plain, options, False), _group(projected, options, True)]
    return make([group for group in groups if group["params"]], workload, options)


def _made_randomized(make: Any, groups: list[dict[str, Any]], workload: Workload, options: GaLoreOptions) -> Any:
    optimizer: Any = make(groups, workload, options)
    optimizer.step = functools.partial(_with_randomized_svd, options.rank, optimizer.step)
    return optimizer


def build_adamw(module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """GaLoreAdamW: moments [rank, n] or [m, rank] of the gradient's type, a projector of that type per target."""
    return _build(module, workload, _adamw, layerwise=False)


def build_adamw_layerwise(module: nn.Module, workload: Workload) -> Layerwise:
    """GaLoreAdamW, one per parameter."""
    return _build(module, workload, _adamw, layerwise=True)


def build_adamw_8bit(module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """GaLoreAdamW8bit: moments in 8 bits, projectors in the gradient's type."""
    return _build(module, workload, _adamw_8bit, layerwise=False)


def build_adamw_8bit_layerwise(module: nn.Module, workload: Workload) -> Layerwise:
    """GaLoreAdamW8bit, one per parameter."""
    return _build(module, workload, _adamw_8bit, layerwise=True)


GALORE_ADAMW = Optimizer(
    summary="AdamW in a low-rank projection of the gradient",
    options=GaLoreOptions,
    build=build_adamw,
    requires=("galore_torch",),
    projects_gradients=True,
    mark_phases=mark_projections,
    svd_gap=svd_gap,
    library_bytes=LIBRARY_BYTES,
    unmodelled=solver_workspace,
)
GALORE_ADAMW_LAYERWISE = Optimizer(
    summary="GaLore, stepping layer by layer inside backward",
    options=GaLoreOptions,
    build=build_adamw_layerwise,
    requires=("galore_torch",),
    projects_gradients=True,
    mark_phases=mark_projections,
    svd_gap=svd_gap,
    library_bytes=LIBRARY_BYTES,
    unmodelled=solver_workspace,
    layerwise=True,
)
GALORE_ADAMW_8BIT = Optimizer(
    summary="GaLore with 8-bit moments",
    options=GaLoreOptions,
    build=build_adamw_8bit,
    requires=("galore_torch", "bitsandbytes"),
    projects_gradients=True,
    mark_phases=mark_projections,
    svd_gap=svd_gap,
    library_bytes=LIBRARY_BYTES,
    unmodelled=solver_workspace,
    eight_bit=True,
    cuda_only=SYNCHRONISES,
)
GALORE_ADAMW_8BIT_LAYERWISE = Optimizer(
    summary="GaLore with 8-bit moments, stepping layer by layer",
    options=GaLoreOptions,
    build=build_adamw_8bit_layerwise,
    requires=("galore_torch", "bitsandbytes"),
    projects_gradients=True,
    mark_phases=mark_projections,
    svd_gap=svd_gap,
    library_bytes=LIBRARY_BYTES,
    unmodelled=solver_workspace,
    eight_bit=True,
    layerwise=True,
    cuda_only=SYNCHRONISES,
)
