"""AdaLoRA through PEFT: three factors beside each target layer, y = W x + (alpha / r) B diag(e) A x with e = 0 at the start, and a
budget of ranks for the whole model, which falls from `init_r` to `target_r` for each layer: the least important entries of e
are set to 0.

Importance is a moving average of weight times gradient, and of how far it strays: three tensors beside each factor, which stay for
the whole reduction. They are brought up to date after each optimizer step, before gradients are dropped, as a TrainerCallback's
on_optimizer_step does it with update_and_allocate. Nothing is made smaller: what has no rank left is zero.

To the loss on labels comes what keeps A and B orthogonal, as PEFT's AdaLoraModel.forward adds it. Losses that an algorithm makes of
log-probabilities go without, as in TRL's trainers, which call that forward pass without labels.

Source: Zhang et al., Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, arXiv 2303.10512.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.overrides import TorchFunctionMode

from vrambench.methods.adapters import Adapter
from vrambench.methods.adapters.attaching import FIELDS, adapt
from vrambench.methods.registry import Options
from vrambench.methods.workload import Count, Natural, Number, Rank, Workload

WALK = "Optimizer.step#update_and_allocate"
"""A profiler's name such as torch gives to optimizers' steps, which go through parameters one by one as well."""

Decay = Annotated[float, Field(gt=0, lt=1)]


class AdaLoraOptions(Options):
    """PEFT's names and defaults (AdaLoraConfig), which has none for total_step."""

    namespace: ClassVar[str] = "adalora"
    init_r: Rank = 12
    """Rank of every layer's factors at the start, and their size to the end."""
    target_r: Rank = 8
    """Rank of a layer at the end, on average."""
    total_step: Count = 1000
    """Optimizer steps of the whole training, of which the job may be the beginning."""
    tinit: Natural = 0
    """Optimizer steps before the budget begins to fall."""
    tfinal: Natural = 0
    """Optimizer steps after it has fallen."""
    deltaT: Count = 1
    """Optimizer steps from one allocation of ranks to the next."""
    beta1: Decay = 0.85
    """Decay of the average of importance."""
    beta2: Decay = 0.85
    """Decay of the average of its uncertainty."""
    orth_reg_weight: Number = 0.5
    """Weight of the term that keeps the factors orthogonal."""

    @model_validator(mode="after")
    def _falls(self) -> AdaLoraOptions:
        if self.target_r >= self.init_r:
            raise ValueError(f"target_r ({self.target_r}) must be less than init_r ({self.init_r})")
        if self.tinit + self.tfinal >= self.total_step:
            raise ValueError(
                f"tinit and tfinal ({self.tinit} and {self.tfinal}) leave none of total_step ({self.total_step})"
            )
        return self


def attach(model: Any, workload: Workload) -> nn.Module:
    """PEFT's model around `model`. The number by which each layer's product is divided is trained as well, as PEFT 0.21 does
    wherever it moves it to a GPU or to another type: what it puts in its place is no longer frozen (tuners_utils.py:
    _move_adapter_to_device_of_base_layer)."""
    from peft import AdaLoraConfig
    from peft.tuners.adalora import AdaLoraLayer

    options: AdaLoraOptions = workload.of(AdaLoraOptions)
    shared: dict[str, Any] = {"lora_alpha": workload.lora_alpha, "lora_dropout": workload.lora_dropout}
    adapted = adapt(model, workload, AdaLoraConfig, **shared, **options.model_dump())
    for layer in adapted.modules():
        if isinstance(layer, AdaLoraLayer):
            layer.ranknum.requires_grad_(True)
    return adapted


class Allocation:
    """The ranks' budget of one trained module (a Schedule)."""

    def __init__(self, module: nn.Module) -> None:
        from peft.tuners.adalora import AdaLoraModel

        self._model: Any = next(part for part in module.modules() if isinstance(part, AdaLoraModel))

    def stepped(self, step: int) -> None:
        with torch.profiler.record_function(WALK), self._reading():
            self._model.update_and_allocate(step)

    def state(self) -> Iterator[torch.Tensor]:
        allocator = self._model.rankallocator
        for held in (allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc):
            yield from held.values()

    def _reading(self) -> AbstractContextManager[Any]:
        simulated = any(parameter.is_meta for parameter in self._model.parameters())
        return _NothingToRead() if simulated else nullcontext()


class _NothingToRead(TorchFunctionMode):
    """On the simulated device, thresholds and masks that are read back are zeros."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item and args[0].is_meta:
            return 0.0
        if func is torch.Tensor.tolist and args[0].is_meta:
            with torch.profiler.record_function(
                WALK
            ):  # one matrix is done, and what was made for all goes after the last
                pass
            return [0.0] * args[0].numel()
        return func(*args, **(kwargs or {}))


def orthogonality(model: Any) -> torch.Tensor:
    """What AdaLoraModel.forward adds to the loss (PEFT 0.21, tuners/adalora/model.py): the mean over all factors of how far A A^T
    and B^T B are from the identity, by `orth_reg_weight`."""
    total: Any = 0
    factors = [(name, each) for name, each in model.named_parameters() if "lora_A" in name or "lora_B" in name]
    with torch.profiler.record_function(WALK):
        for name, factor in factors:
            covariance = factor @ factor.T if "lora_A" in name else factor.T @ factor
            identity = torch.eye(*covariance.size(), out=torch.empty_like(covariance))
            total += torch.norm(covariance - identity, p="fro")
    weighted: torch.Tensor = model.active_peft_config.orth_reg_weight * (total / len(factors))
    return weighted


ADALORA = Adapter(
    summary="LoRA with a budget of ranks that falls, and goes where it is needed (PEFT)",
    attach=attach,
    trains_base=False,
    can_switch_off=True,
    bare_parameters=True,
    trains_linear=False,
    widens=frozenset({8}),
    merges_quantized=False,
    schedule=Allocation,
    penalty=orthogonality,
    requires=("peft",),
    options=AdaLoraOptions,
    fields=(*FIELDS, "lora_alpha", "lora_dropout"),
)
