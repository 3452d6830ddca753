"""What an algorithm declares whose trainer is another library's, which runs here as it is: rules go by it, and the predictor, which
cannot follow such a trainer where nothing is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vrambench.methods.errors import did_you_mean, shown

if TYPE_CHECKING:
    from vrambench.methods.workload import Workload


@dataclass(frozen=True)
class Foreign:
    """`module`: the library's. `trainer`, `config`: its classes' names there. `same`: our algorithm that does the same.
    `namespace`: under which a workload says more of its settings. `losses`: by the workload's `loss`, what its configuration is
    told; `predicted`: what ours calls it, where that is another word (None: ours has none). `told`: settings that fields of a
    workload say, with these; `kept`: those that a measurement needs as they are. `offloads_activations`: it has a setting for
    that. `takes_virtual_tokens`: it leaves out what the model gives for tokens that an adapter puts before a sequence."""

    library: str
    module: str
    trainer: str
    config: str
    same: str
    namespace: str
    losses: Mapping[str, Mapping[str, Any]] = field(hash=False)
    predicted: Mapping[str, str | None] = field(hash=False)
    told: Mapping[str, str] = field(hash=False)
    kept: tuple[str, ...]
    offloads_activations: bool = True
    takes_virtual_tokens: bool = False

    def load(self, name: str) -> Any:
        """A class of the library."""
        return getattr(import_module(self.module), name)

    @cached_property
    def settings(self) -> frozenset[str]:
        """Names of all that its configuration has."""
        return frozenset(vars(self.load(self.config))["__dataclass_fields__"])

    @property
    def takes(self) -> str:
        """Its losses, as the workload says them."""
        loss, *others = self.losses
        return (
            f"{self.trainer} takes {' or '.join(self.losses) if others else f'{loss} alone'}, as in --set loss={loss}"
        )

    def said(self, workload: Workload) -> Mapping[str, Any]:
        """Settings that the workload says in the library's own names."""
        return workload.options.get(self.namespace, {})

    def mistaken(self, names: Iterable[str]) -> str | None:
        """What is wrong with the first of these settings that cannot be said; None where all can."""
        for name in names:
            if name in self.told:
                return f"{self.namespace}.{name}: say it as {self.told[name]}"
            if name in self.kept:
                return f"{self.namespace}.{name}: a measurement needs it as it is set here"
            if name not in self.settings:
                choices = self.settings - set(self.told) - set(self.kept)
                return (
                    f"{self.namespace}.{name}: {self.config} has no {shown(name)}{did_you_mean(name, sorted(choices))}"
                )
        return None
