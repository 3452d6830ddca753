"""The weight matrices that some optimizers treat in a way of their own: GaLore and APOLLO project their gradients, Muon
orthogonalises their updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from vrambench.methods.errors import ConfigurationError, did_you_mean

Targets = Literal["all-linear"] | tuple[str, ...]
"""Every linear layer but the output head, or a list of parts of modules' names (transformers' `optim_target_modules`)."""


def target_weights(module: nn.Module, asked: Targets, namespace: str) -> list[nn.Parameter]:
    """The weight matrices [out, in], trainable, of linear layers inside the trunk's layers.

    Raises ConfigurationError, about `target_modules` of the options' `namespace`, where a part of a name is in no such layer's.
    """
    linears: dict[str, Any] = {
        name: part.weight
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | Conv1D) and part.weight.requires_grad
    }
    if asked == "all-linear":  # inside a numbered layer
        targets = [weight for name, weight in linears.items() if any(part.isdigit() for part in name.split("."))]
    else:
        _check_known(asked, linears, namespace)
        targets = [weight for name, weight in linears.items() if any(target in name for target in asked)]
    if not targets:
        raise ConfigurationError(
            f"{namespace}.target_modules: {asked!r} names no linear layer that is trained",
            field=f"{namespace}.target_modules",
        )
    return targets


def _check_known(asked: Sequence[str], linears: dict[str, Any], namespace: str) -> None:
    for target in asked:
        if not any(target in name for name in linears):
            known = sorted({name.rpartition(".")[2] for name in linears})
            raise ConfigurationError(
                f"{namespace}.target_modules: {target!r} is in the name of no linear layer that is trained"
                f"{did_you_mean(target, known)} (there are {', '.join(known)})",
                field=f"{namespace}.target_modules",
            )
