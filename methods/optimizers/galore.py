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

from vrambench.methods.optimizers import Group, Optimizer, simulated
from vrambench.methods.optimizers.bitsandbytes import with_own_manager
from vrambench.methods.optimizers.targets import Targets, target_weights
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload

OVERSAMPLING = 8
POWER_ITERATIONS = 2
"""Of the randomized decomposition: columns beyond the rank, and times that the spectrum is sharpened; both as usual."""

LIBRARY_BYTES = 98 * 2**20
"""cuSOLVER, for the decompositions: seen on an H200 with CUDA 13 (results/nvidia-h200/measured)."""

SYNCHRONISES = "galore_torch's 8-bit optimizer synchronises CUDA after every parameter"


class ProjectionOptions(Options):
    """What every optimizer of galore_torch has; its names and defaults."""

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
    target_modules: Targets = "all-linear"
    """Every linear layer but the output head, or a list of parts of modules' names (transformers' `optim_target_modules`)."""


class GaLoreOptions(ProjectionOptions):
    """Names and defaults of galore_torch."""

    namespace: ClassVar[str] = "galore"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of the first and the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled, as AdamW's."""


class GaLoreAdafactorOptions(ProjectionOptions):
    """Names and defaults of galore_torch."""

    namespace: ClassVar[str] = "galore_adafactor"
    clip_threshold: Annotated[float, Field(gt=0)] = 1.0
    """The root mean square to which an update is clipped, before it is projected back."""
    decay_rate: float = -0.8
    """The second moment's decay rate in step t is 1 - t^decay_rate."""
    beta1: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay rate of a first moment; null keeps none."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled, as AdamW's."""


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


def solver_workspace(kind: type[ProjectionOptions]) -> Callable[[Workload], str | None]:
    """A whole decomposition's; the randomized one was measured, and takes no more than is predicted."""

    def told(workload: Workload) -> str | None:
        whole = workload.of(kind).svd == "full"
        return "the work space of whole decompositions, which cuSOLVER tells on a GPU alone" if whole else None

    return told


def svd_gap(kind: type[ProjectionOptions]) -> Callable[[Workload], int]:
    """Optimizer steps from one decomposition of every target to the next."""

    def gap(workload: Workload) -> int:
        steps: int = workload.of(kind).update_proj_gap
        return steps

    return gap


def target_settings(
    kind: type[ProjectionOptions],
) -> Callable[[nn.Module, Workload], dict[nn.Parameter, dict[str, Any]]]:
    """What the package wants to know of a weight whose gradient it projects: all four, or it projects none."""

    def settings(module: nn.Module, workload: Workload) -> dict[nn.Parameter, dict[str, Any]]:
        options = workload.of(kind)
        said = options.model_dump(include={"rank", "update_proj_gap", "scale", "proj_type"})
        return dict.fromkeys(target_weights(module, options.target_modules, kind.namespace), said)

    return settings


def make_adamw(groups: list[Group], module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """GaLoreAdamW: moments [rank, n] or [m, rank] of the gradient's type, a projector of that type per target."""
    from galore_torch import GaLoreAdamW

    options: GaLoreOptions = workload.of(GaLoreOptions)
    settings = options.model_dump(include={"betas", "eps", "weight_decay"})
    made = GaLoreAdamW(groups, lr=workload.learning_rate, no_deprecation_warning=True, **settings)
    return _with_svd(made, options)


def make_adamw_8bit(groups: list[Group], module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """GaLoreAdamW8bit: moments in 8 bits, projectors in the gradient's type."""
    from galore_torch import GaLoreAdamW8bit

    # galore_torch passes positions that bitsandbytes reads as max_unorm and skip_zeros since 0.50; `args` overrides them
    # all (the last two are read before 0.50 only).
    args = SimpleNamespace(
        optim_bits=8, min_8bit_size=4096, max_unorm=0.0, skip_zeros=False, percentile_clipping=100, block_wise=True
    )
    options: GaLoreOptions = workload.of(GaLoreOptions)
    settings = options.model_dump(include={"betas", "eps", "weight_decay"})
    optimizer: Any = GaLoreAdamW8bit(groups, lr=workload.learning_rate, args=args, **settings)
    with_own_manager(optimizer)
    if simulated(groups):
        optimizer.step = functools.partial(_step_without_waiting, optimizer.step)
    return _with_svd(optimizer, options)


def make_adafactor(groups: list[Group], module: nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """GaLoreAdafactor with a fixed learning rate: rows and columns of the projected gradient, which it has made fp32 first; so its
    projectors are in fp32 too, whatever the weights are."""
    from galore_torch import GaLoreAdafactor

    options: GaLoreAdafactorOptions = workload.of(GaLoreAdafactorOptions)
    settings = options.model_dump(include={"clip_threshold", "decay_rate", "beta1", "weight_decay"})
    made = GaLoreAdafactor(
        groups, lr=workload.learning_rate, scale_parameter=False, relative_step=False, warmup_init=False, **settings
    )
    return _with_svd(made, options)


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


def _with_svd(optimizer: Any, options: ProjectionOptions) -> torch.optim.Optimizer:
    """`optimizer`, decomposing as its options say."""
    if options.svd == "randomized":
        optimizer.step = functools.partial(_with_randomized_svd, options.rank, optimizer.step)
    made: torch.optim.Optimizer = optimizer
    return made


# galore_torch imports bitsandbytes for each of them.
_PROJECTED: dict[str, Any] = {
    "options": GaLoreOptions,
    "settings": target_settings(GaLoreOptions),
    "requires": ("galore_torch", "bitsandbytes"),
    "projects_gradients": True,
    "mark_phases": mark_projections,
    "svd_gap": svd_gap(GaLoreOptions),
    "library_bytes": LIBRARY_BYTES,
    "unmodelled": solver_workspace(GaLoreOptions),
}
GALORE_ADAMW = Optimizer(summary="AdamW in a low-rank projection of the gradient", make=make_adamw, **_PROJECTED)
GALORE_ADAMW_8BIT = Optimizer(
    summary="GaLore with 8-bit moments",
    make=make_adamw_8bit,
    eight_bit=True,
    in_fp32=True,
    cuda_only=SYNCHRONISES,
    **_PROJECTED,
)
GALORE_ADAFACTOR = Optimizer(
    summary="Adafactor in a low-rank projection of the gradient",
    make=make_adafactor,
    factored=True,
    in_fp32=True,
    **_PROJECTED
    | {
        "options": GaLoreAdafactorOptions,
        "settings": target_settings(GaLoreAdafactorOptions),
        "svd_gap": svd_gap(GaLoreAdafactorOptions),
        "unmodelled": solver_workspace(GaLoreAdafactorOptions),
    },
)
