"""PEFT's adapters on the simulated device, where weights have no values: what their code reads back there is answered in its place.

Every answer is the one that training gives on every device, and takes the memory that reading takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from vrambench.methods.registry import Workspace

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "Frod": "PEFT makes its factors from decompositions of all layers' weights on the host, and there are none then",
        "Shira": "its update is a sparse tensor, and torch adds none to a weight where nothing is computed",
    }
)
"""Types that cannot be simulated, and why, as words that follow `cannot be predicted: `."""


def answered(adapted: nn.Module, stem: str) -> None:
    """`adapted`, with adapters of the type `stem`, on meta alone, and able to run there."""
    for module in adapted.modules():
        # PEFT takes what several layers share to their device with the first of them, where it has one.
        if any(parameter.device.type == "cpu" for parameter in module.parameters(recurse=False)):
            module.to("meta")
    subclass = _SUBCLASSES.get(stem)
    if subclass is not None:
        kind, its = subclass()
        for module in adapted.modules():
            if type(module) is kind:
                module.__class__ = its


def _vblora() -> tuple[type, type]:
    """It looks for infinities among its logits, which only trained ones that were saved in part have."""
    from peft.tuners.vblora.layer import Linear

    class Finite(Linear):
        training: bool

        def _get_lora_matrices(self, adapter: str, cast_to_fp32: bool = False) -> Any:
            training = self.training
            if training:
                self.vblora_logits_A[adapter][0, 0].isinf().any()
            self.training = False  # it asks for this alone; dropout is a module of its own
            try:
                return super()._get_lora_matrices(adapter, cast_to_fp32)
            finally:
                self.training = training

    return Linear, Finite


def _waveft() -> tuple[type, type]:
    """It takes those of its places that lie within the padded weight, which is all of them."""
    from peft.tuners.waveft.layer import WaveFTLinear
    from torch.fx.experimental import _config

    class Within(WaveFTLinear):
        def get_delta_weight(self, adapter: str) -> torch.Tensor:
            with _config.patch(meta_nonzero_assume_all_nonzero=True):  # type: ignore[attr-defined] # torch installs it there
                weight: torch.Tensor = super().get_delta_weight(adapter)
            return weight

    return WaveFTLinear, Within


_SUBCLASSES: Mapping[str, Callable[[], tuple[type, type]]] = MappingProxyType({"VBLoRA": _vblora, "WaveFT": _waveft})
"""By type: its layers' class, and the one that they have where there are no values."""


def _places(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> tuple[int, ...]:
    """The places of a mask that is true everywhere, int64. cuda/IndexingUtils.h: expandTensors; cub's buffers are left out."""
    masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
    return tuple(mask.numel() * mask.dim() * 8 for mask in masks)


WORKSPACES: Mapping[str, Mapping[str, Workspace]] = MappingProxyType({"WaveFT": {"aten.index.Tensor": _places}})
"""By type: what its operators take inside themselves on CUDA."""


def unmodelled(stem: str, settings: Mapping[str, Any]) -> str | None:
    """What an adapter of the type `stem` takes there that nobody can tell beforehand."""
    if stem == "WaveFT" and settings.get("use_idwt", True):
        return "the work space of transposed convolutions, which cuDNN tells on a GPU alone"
    if stem == "TinyLora":
        return "the work space of whole decompositions while the adapter is made, which cuSOLVER tells on a GPU alone"
    return None
