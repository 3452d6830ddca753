"""One optimizer per parameter, stepping inside the backward pass as soon as that parameter's gradient is complete.

The gradient is freed on the spot, so no more than a layer's gradients are ever held. In return there can be one backward
pass per step only: no accumulation, no clipping by a global norm, no loss scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


class Layerwise:
    """`make(parameter)` gives the optimizer of one parameter. `step` and `zero_grad` have nothing left to do."""

    def __init__(self, parameters: list[nn.Parameter], make: Callable[[nn.Parameter], Any]) -> None:
        self._optimizers = {parameter: make(parameter) for parameter in parameters}
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._step)

    def _step(self, parameter: torch.Tensor) -> None:
        optimizer = self._optimizers[parameter]  # type: ignore[index]
        optimizer.step()
        optimizer.zero_grad()

    @property
    def state(self) -> Mapping[Any, Any]:
        # No ChainMap: optimizers' states are defaultdicts, and the first would answer for every parameter.
        return {key: value for optimizer in self._optimizers.values() for key, value in optimizer.state.items()}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers.values() for group in optimizer.param_groups]

    def step(self) -> None:
        """Nothing: every parameter has stepped during the backward pass."""

    def zero_grad(self) -> None:
        """Nothing: every gradient is gone already."""

    def train(self) -> None:
        """Each optimizer's weights are those to train, where that makes a difference."""
        for optimizer in self._optimizers.values():
            optimizer.train()

    def eval(self) -> None:
        """Each optimizer's weights are those to evaluate, where that makes a difference."""
        for optimizer in self._optimizers.values():
            optimizer.eval()
