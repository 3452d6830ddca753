"""No adapter: full fine-tuning."""

from __future__ import annotations

from torch import nn

from vrambench.methods.adapters import Adapter
from vrambench.methods.workload import Workload


def attach(model: nn.Module, workload: Workload) -> nn.Module:
    """The model as it is, every floating-point weight trained."""
    return model


NONE = Adapter(summary="full fine-tuning", attach=attach, trains_base=True)
