"""Axis `optimizer`. Names are the `optim` values of transformers' TrainingArguments, and NAME_layerwise for each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from vrambench.methods.errors import ConfigurationError
from vrambench.methods.optimizers.layerwise import Layerwise
from vrambench.methods.registry import AxisValue, Registry

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vrambench.methods.workload import Workload

LAYERWISE = "_layerwise"

PACKAGES = {
    "apollo_torch": "apollo-torch",
    "galore_torch": "galore-torch",
    "optimi": "torch-optimi",
}
"""By the module's name, of those that have another one."""

UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
"""Names of parameters that weight decay leaves alone (Trainer.get_decay_parameter_names)."""

Group = dict[str, Any]
"""As torch.optim has it: `params`, and the settings that these have of their own."""


class Steps(Protocol):
    """What training needs of an optimizer; every torch.optim.Optimizer has it."""

    @property
    def state(self) -> Mapping[Any, Any]: ...

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def step(self) -> Any: ...

    def zero_grad(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Optimizer(AxisValue):
    """`make`: the optimizer over groups of a module's parameters, with the workload's learning rate and options. `settings`: of the
    parameters that have settings of their own, which (GaLore's targets, Muon's matrices).

    `layerwise`: each parameter steps as soon as its gradient is there, inside the backward pass, which frees the gradient.
    `projects_gradients`: it keeps its state in a low-rank projection of the gradient (GaLore, APOLLO). `of_matrices`: what it does
    to a matrix cannot be done to its numbers in a row (Muon). `modes`: its weights while it trains are not those to evaluate, and
    train() and eval() switch (schedule-free). `eight_bit`, `paged`, `factored`: how its state is held. `in_fp32`: it computes in
    fp32, whatever the type of weights and gradients. `one_kernel`: on CUDA it steps each parameter in one kernel, which takes no
    memory, and elsewhere in several operators. `offloaded`: what makes the optimizer that takes its place where state lies on
    the host (DeepSpeed's CPUAdam for AdamW), if there is one. `mark_phases`: given a phase marker and the phase around it, the
    context in which it marks phases of its own (GaLore's svd). `svd_gap`: how many of its steps lie between two of those in which
    it has a phase `svd`, the first of all being one."""

    make: Callable[[list[Group], nn.Module, Workload], Steps]
    settings: Callable[[nn.Module, Workload], Mapping[nn.Parameter, Mapping[str, Any]]] | None = None
    layerwise: bool = False
    projects_gradients: bool = False
    of_matrices: bool = False
    modes: bool = False
    eight_bit: bool = False
    paged: bool = False
    factored: bool = False
    in_fp32: bool = False
    one_kernel: bool = False
    offloaded: Callable[[list[Group], nn.Module, Workload], torch.optim.Optimizer] | None = None
    mark_phases: Callable[[Callable[[str], None], str], AbstractContextManager[None]] | None = None
    svd_gap: Callable[[Workload], int] | None = None

    def build(self, module: nn.Module, workload: Workload) -> Steps:
        """The optimizer over what `module` trains; where it is layerwise, one for each parameter."""
        groups = self.groups(module, workload)
        if not self.layerwise:
            return self.make(groups, module, workload)
        own = {parameter: group for group in groups for parameter in group["params"]}
        return Layerwise(
            trainable(module), lambda parameter: self.make([own[parameter] | {"params": [parameter]}], module, workload)
        )

    def groups(self, module: nn.Module, workload: Workload) -> list[Group]:
        """What `module` trains, by settings: first what has none of its own. Biases and norms are not decayed, as under
        transformers' Trainer, which has two groups always; here there are two where there is a weight decay.

        Raises ConfigurationError where a package that the optimizer needs is not installed."""
        self._check_installed()
        own = self.settings(module, workload) if self.settings else {}
        decay = getattr(workload.of(self.options), "weight_decay", 0.0) if self.options else 0.0
        spared = undecayed(module) if decay else frozenset()
        groups: dict[tuple[bool, bool, str], Group] = {}
        for parameter in trainable(module):
            said = dict(own.get(parameter, {}))
            key = (parameter in own, parameter in spared, repr(said))
            if parameter in spared:
                said["weight_decay"] = 0.0
            groups.setdefault(key, {"params": [], **said})["params"].append(parameter)
        return [groups[key] for key in sorted(groups, key=lambda key: key[:2])]

    def _check_installed(self) -> None:
        for name in self.requires:
            package = name.partition(".")[0]
            if find_spec(package) is None:
                package = PACKAGES.get(package, package)
                raise ConfigurationError(
                    f"optimizer: it needs the package {package}, which is not installed", field="optimizer"
                )


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that `module` trains, each once, in the module's order."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def simulated(groups: list[Group]) -> bool:
    """The parameters are on the simulated device."""
    return any(parameter.is_meta for group in groups for parameter in group["params"])


def undecayed(module: nn.Module) -> frozenset[nn.Parameter]:
    """The parameters of `module` that transformers' Trainer does not decay: biases, and those of norms, told by their names."""
    from torch import nn

    of_norms = {one for part in module.modules() if isinstance(part, nn.LayerNorm) for one in part.parameters()}
    named = {one for name, one in module.named_parameters() if UNDECAYED.search(name.lower())}
    return frozenset(of_norms | named)


class Optimizers(Registry[Optimizer]):
    """Each built-in optimizer, and by its name and `_layerwise` the same one, stepping inside the backward pass."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.removesuffix(LAYERWISE))

    def get(self, name: str) -> Optimizer:
        """As Registry.get."""
        if name in self._found:
            return self._found[name]
        plain = name.removesuffix(LAYERWISE)
        if plain != name and name in self:
            self._found[name] = layerwise(super().get(plain))
        return super().get(name)


def layerwise(value: Optimizer) -> Optimizer:
    """`value`, each parameter stepping as soon as its gradient is there."""
    return replace(value, summary=f"{value.summary}, stepping inside backward", layerwise=True)


OPTIMIZERS = Optimizers(
    "optimizer",
    Optimizer,
    {
        "adamw_torch": "vrambench.methods.optimizers.adamw:ADAMW_TORCH",
        "adamw_torch_fused": "vrambench.methods.optimizers.adamw:ADAMW_TORCH_FUSED",
        "adamw_bnb_8bit": "vrambench.methods.optimizers.bitsandbytes:ADAMW_BNB_8BIT",
        "paged_adamw_8bit": "vrambench.methods.optimizers.bitsandbytes:PAGED_ADAMW_8BIT",
        "paged_adamw_32bit": "vrambench.methods.optimizers.bitsandbytes:PAGED_ADAMW_32BIT",
        "adamw_torch_8bit": "vrambench.methods.optimizers.torchao:ADAMW_TORCH_8BIT",
        "adamw_torch_4bit": "vrambench.methods.optimizers.torchao:ADAMW_TORCH_4BIT",
        "adafactor": "vrambench.methods.optimizers.adafactor:ADAFACTOR",
        "galore_adamw": "vrambench.methods.optimizers.galore:GALORE_ADAMW",
        "galore_adamw_8bit": "vrambench.methods.optimizers.galore:GALORE_ADAMW_8BIT",
        "galore_adafactor": "vrambench.methods.optimizers.galore:GALORE_ADAFACTOR",
        "apollo_adamw": "vrambench.methods.optimizers.apollo:APOLLO_ADAMW",
        "muon": "vrambench.methods.optimizers.muon:MUON",
        "lion_32bit": "vrambench.methods.optimizers.bitsandbytes:LION_32BIT",
        "lion_8bit": "vrambench.methods.optimizers.bitsandbytes:LION_8BIT",
        "paged_lion_32bit": "vrambench.methods.optimizers.bitsandbytes:PAGED_LION_32BIT",
        "paged_lion_8bit": "vrambench.methods.optimizers.bitsandbytes:PAGED_LION_8BIT",
        "ademamix": "vrambench.methods.optimizers.bitsandbytes:ADEMAMIX",
        "ademamix_8bit": "vrambench.methods.optimizers.bitsandbytes:ADEMAMIX_8BIT",
        "paged_ademamix_32bit": "vrambench.methods.optimizers.bitsandbytes:PAGED_ADEMAMIX_32BIT",
        "paged_ademamix_8bit": "vrambench.methods.optimizers.bitsandbytes:PAGED_ADEMAMIX_8BIT",
        "stable_adamw": "vrambench.methods.optimizers.stable_adamw:STABLE_ADAMW",
        "schedule_free_adamw": "vrambench.methods.optimizers.schedule_free:SCHEDULE_FREE_ADAMW",
        "schedule_free_sgd": "vrambench.methods.optimizers.schedule_free:SCHEDULE_FREE_SGD",
        "sgd": "vrambench.methods.optimizers.sgd:SGD",
        "rmsprop": "vrambench.methods.optimizers.sgd:RMSPROP",
        "adagrad": "vrambench.methods.optimizers.sgd:ADAGRAD",
        "rmsprop_bnb": "vrambench.methods.optimizers.bitsandbytes:RMSPROP_BNB",
        "rmsprop_bnb_8bit": "vrambench.methods.optimizers.bitsandbytes:RMSPROP_BNB_8BIT",
        "rmsprop_bnb_32bit": "vrambench.methods.optimizers.bitsandbytes:RMSPROP_BNB",
    },
)
