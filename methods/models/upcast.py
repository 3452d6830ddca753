"""Which parts of a quantised model are cast to fp32 before it is trained, as the workload's `fp32_modules` says.

    upcast(model, "all")            every 16-bit parameter that is not quantised: norms, embeddings, head, biases, routers
    upcast(model, ("norms",))       those alone

Source: PEFT's prepare_model_for_kbit_training (`all`), LLaMA-Factory's upcast_layernorm (`norms`). What else PEFT's does is
done elsewhere (adapters freeze the model), or not needed (embeddings' outputs require gradients for reentrant checkpointing).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vrambench.methods.dtypes import HALF
from vrambench.methods.models.modeling import PreTrainedModel

NORM_NAMES = ("norm", "ln")
"""Parameters of one dimension with one of these in their path are norms' (LLaMA-Factory's LAYERNORM_NAMES)."""


def upcast(model: PreTrainedModel, which: str | tuple[str, ...] | None) -> None:
    """Casts `model`'s 16-bit parameters, one by one and in place: none, all, or those of `norms`, `embeddings` and `head`."""
    for parameter in _named(model, which):
        if parameter.dtype in HALF:
            parameter.data = parameter.data.to(torch.float32)


def _named(model: PreTrainedModel, which: str | tuple[str, ...] | None) -> Iterator[nn.Parameter]:
    if which == "all":
        yield from model.parameters()
    elif which not in (None, "none"):
        for name in which:
            yield from PARTS[name](model)


def _norms(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    for path, parameter in model.named_parameters():
        if parameter.dim() == 1 and any(name in path for name in NORM_NAMES):
            yield parameter


def _embeddings(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """Of tokens and, where they are learnt, of positions."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield from module.parameters(recurse=False)


def _head(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """None where there is no output head, as in a trunk that gives values."""
    head: Any = model.get_output_embeddings()
    if head is not None:
        yield from head.parameters(recurse=False)


PARTS = {"norms": _norms, "embeddings": _embeddings, "head": _head}
