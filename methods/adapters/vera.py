"""VeRA through PEFT: two random matrices that all target layers share and nobody trains, and two vectors for each layer,
y = W x + b * (B (d * (A x))), with b = 0 at the start.

A [r, widest input] and B [widest output, r] are buffers, once for the whole model; a layer takes as much of them as it is wide.

Source: Kopiczko et al., VeRA: Vector-based Random Matrix Adaptation, arXiv 2310.11454.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from vrambench.methods.adapters import Adapter
from vrambench.methods.adapters.attaching import FIELDS, adapt
from vrambench.methods.registry import Options
from vrambench.methods.workload import Rank, Share, Workload


class VeraOptions(Options):
    """PEFT's names and defaults (VeraConfig)."""

    namespace: ClassVar[str] = "vera"
    r: Rank = 256
    """Rank of the shared projections."""
    d_initial: Annotated[float, Field(allow_inf_nan=False)] = 0.1
    """What each layer's vector between the projections begins with."""
    vera_dropout: Share = 0.0
    """Share of the adapter's inputs that is dropped in training."""
    save_projection: bool = True
    """Whether the projections are saved with the vectors; else they are made again from their seed."""


def attach(model: Any, workload: Workload) -> nn.Module:
    """PEFT's model around `model`."""
    from peft import VeraConfig

    options: VeraOptions = workload.of(VeraOptions)
    return adapt(model, workload, VeraConfig, **options.model_dump())


VERA = Adapter(
    summary="two vectors for each target layer, between random projections that all share (PEFT)",
    attach=attach,
    trains_base=False,
    can_switch_off=True,
    bare_parameters=True,
    trains_linear=False,
    projects_by_buffers=True,
    requires=("peft",),
    options=VeraOptions,
    fields=FIELDS,
)
