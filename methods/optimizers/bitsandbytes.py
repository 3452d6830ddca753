"""bitsandbytes' optimizers: state in fp32 or in 8 bits, block by block, in ordinary or in paged (managed) memory.

With 8 bits, embeddings and tensors of fewer than 4,096 elements keep 32-bit state; only tensors of 100,000 elements and more are
paged. On the CPU there is nothing to page to: a paged optimizer is the plain one there, as bitsandbytes says itself. All of them
compute in fp32, inside one kernel for each parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from vrambench.methods.optimizers import Group, Optimizer, simulated
from vrambench.methods.optimizers.adamw import AdamWOptions
from vrambench.methods.registry import Options
from vrambench.methods.tensors import shapes_only
from vrambench.methods.workload import Workload

PAGED_FROM = 100_000
"""Elements from which bitsandbytes pages a state (Optimizer8bit.get_state_buffer)."""


class LionOptions(Options):
    """Defaults of transformers' TrainingArguments."""

    namespace: ClassVar[str] = "lion"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """How much of the moment goes into a step's sign, and the moment's decay rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled, as AdamW's."""


class AdEMAMixOptions(Options):
    """Defaults of transformers' TrainingArguments and `optim_args`."""

    namespace: ClassVar[str] = "ademamix"
    betas: tuple[
        Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]
    ] = (0.9, 0.999, 0.9999)
    """Decay rates of the fast first moment, of the second and of the slow first moment."""
    alpha: Annotated[float, Field(ge=0)] = 5.0
    """What the slow moment is multiplied by before it is added to the fast one."""
    t_alpha: Annotated[int, Field(ge=1)] | None = None
    """Steps in which alpha grows to its value; null has it there at once."""
    t_beta3: Annotated[int, Field(ge=1)] | None = None
    """Steps in which the slow moment's decay rate grows to its value; null has it there at once."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled, as AdamW's."""


class RMSpropBnbOptions(Options):
    """Names and defaults of bitsandbytes, whose RMSprop keeps no momentum and is not centered."""

    namespace: ClassVar[str] = "rmsprop_bnb"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Decay rate of the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Added to the gradient: this times the weight."""


def maker(
    kind: str, options: type[Options], bits: int, paged: bool
) -> Callable[[list[Group], nn.Module, Workload], Any]:
    """What makes bitsandbytes' optimizer of that class."""

    def make(groups: list[Group], module: nn.Module, workload: Workload) -> Any:
        import bitsandbytes

        paging = {"is_paged": True} if paged else {}  # RMSprop knows nothing of it
        settings = {"lr": workload.learning_rate, **dict(workload.of(options)), "optim_bits": bits, **paging}
        optimizer = getattr(bitsandbytes.optim, kind)(groups, **settings)
        if kind == "AdEMAMix" and not (paged and any(one.is_cuda for group in groups for one in group["params"])):
            optimizer._get_state_double_buffer = _double_buffer
        if paged and simulated(groups):
            _simulate_paging(optimizer)
        manager = with_own_manager(optimizer)
        if bits == 8:
            _keep_embeddings_in_32_bits(manager, groups, module)
        return optimizer

    return make


def _simulate_paging(optimizer: Any) -> None:
    """Where there is no driver to manage memory: states that would be paged are shapes that are nobody's memory, marked as
    bitsandbytes marks its own."""

    def paged(make: Callable[..., torch.Tensor], *times: int) -> Callable[..., torch.Tensor]:
        def buffer(parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            if parameter.numel() < PAGED_FROM:
                return make(parameter, dtype)
            with shapes_only():
                made: Any = torch.empty((*times, *parameter.shape), dtype=dtype)
            made.is_paged = True
            made.parameter = parameter
            buffer_: torch.Tensor = made
            return buffer_

        return buffer

    optimizer.get_state_buffer = paged(optimizer.get_state_buffer)
    if hasattr(optimizer, "_get_state_double_buffer"):  # AdEMAMix's
        optimizer._get_state_double_buffer = paged(optimizer._get_state_double_buffer, 2)
    optimizer.prefetch_state = lambda parameter: None


def _double_buffer(parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """AdEMAMix' two first moments: plain memory where nothing is paged. bitsandbytes would page them on the CPU too."""
    return parameter.new_zeros((2, *parameter.shape), dtype=dtype)


def with_own_manager(optimizer: Any) -> Any:
    """Gives an optimizer of bitsandbytes a manager of its own, which is returned: the common one holds what other optimizers in
    this process asked for, by the numbers of groups and parameters, and would take this one's for theirs."""
    from bitsandbytes.optim import GlobalOptimManager

    optimizer.mng = GlobalOptimManager.__new__(GlobalOptimManager)
    optimizer.mng.initialize()
    return optimizer.mng


def _keep_embeddings_in_32_bits(manager: Any, groups: list[Group], module: nn.Module) -> None:
    """State of embeddings in 32 bits, as transformers' Trainer sets it for these optimizers: by module, since bitsandbytes before
    0.50 does not look at what is set by parameter after the optimizer was made (pid2config)."""
    stepped = {parameter for group in groups for parameter in group["params"]}
    for part in module.modules():
        if isinstance(part, nn.Embedding) and part.weight in stepped:
            manager.register_module_override(part, "weight", {"optim_bits": 32})


def optimizer(summary: str, kind: str, options: type[Options], bits: int, paged: bool = False) -> Optimizer:
    """The axis value of bitsandbytes' optimizer of that class."""
    return Optimizer(
        summary=summary + (" in paged memory" if paged else ""),
        options=options,
        make=maker(kind, options, bits, paged),
        requires=("bitsandbytes",),
        eight_bit=bits == 8,
        paged=paged,
        in_fp32=True,
    )


ADAMW_BNB_8BIT = optimizer("bitsandbytes' AdamW, 8-bit moments", "AdamW", AdamWOptions, 8)
PAGED_ADAMW_8BIT = optimizer("bitsandbytes' AdamW, 8-bit moments", "AdamW", AdamWOptions, 8, paged=True)
PAGED_ADAMW_32BIT = optimizer("bitsandbytes' AdamW, fp32 moments", "AdamW", AdamWOptions, 32, paged=True)
LION_32BIT = optimizer("steps by a sign, one fp32 moment", "Lion", LionOptions, 32)
LION_8BIT = optimizer("Lion, 8-bit moment", "Lion", LionOptions, 8)
PAGED_LION_32BIT = optimizer("Lion, fp32 moment", "Lion", LionOptions, 32, paged=True)
PAGED_LION_8BIT = optimizer("Lion, 8-bit moment", "Lion", LionOptions, 8, paged=True)
ADEMAMIX = optimizer("AdamW with a slow first moment beside the fast one, in fp32", "AdEMAMix", AdEMAMixOptions, 32)
ADEMAMIX_8BIT = optimizer("AdEMAMix, 8-bit moments", "AdEMAMix", AdEMAMixOptions, 8)
PAGED_ADEMAMIX_32BIT = optimizer("AdEMAMix, fp32 moments", "AdEMAMix", AdEMAMixOptions, 32, paged=True)
PAGED_ADEMAMIX_8BIT = optimizer("AdEMAMix, 8-bit moments", "AdEMAMix", AdEMAMixOptions, 8, paged=True)
RMSPROP_BNB = optimizer("bitsandbytes' RMSprop, second moment in fp32", "RMSprop", RMSpropBnbOptions, 32)
RMSPROP_BNB_8BIT = optimizer("bitsandbytes' RMSprop, 8-bit second moment", "RMSprop", RMSpropBnbOptions, 8)
