"""OFT through PEFT: each target layer's input is rotated in blocks, y = W (R x), where R is orthogonal: the Cayley transform of a
skew matrix Q, (I + Q)^-1 (I - Q), whose entries are trained and zero at the start.

By default the inverse is a sum of a few powers of Q (`use_cayley_neumann`). Inputs are cast to the adapter's type for it, and back.

Source: Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning, arXiv 2306.07280; as OFTv2 does it, arXiv
2506.19847.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from torch import nn

from vrambench.methods.adapters import Adapter
from vrambench.methods.adapters.attaching import FIELDS, adapt
from vrambench.methods.registry import Options
from vrambench.methods.workload import Natural, Share, Workload


class OFTOptions(Options):
    """PEFT's names and defaults (OFTConfig)."""

    namespace: ClassVar[str] = "oft"
    oft_block_size: Natural = 32
    """Width of a block; where it does not divide a layer's input, PEFT takes the nearest width that does. 0: `r` says how many."""
    r: Natural = 0
    """Blocks in each layer; 0: `oft_block_size` says how wide they are."""
    module_dropout: Share = 0.0
    """Share of the blocks that rotate nothing in a training pass."""
    coft: bool = False
    """Whether rotations are kept near the identity, within `eps`."""
    eps: Annotated[float, Field(gt=0)] = 6e-5
    """How far they may go with `coft`."""
    block_share: bool = False
    """Whether all blocks of a layer share one rotation."""
    use_cayley_neumann: bool = True
    """Whether the inverse is a sum of powers, or solved for."""
    num_cayley_neumann_terms: Annotated[int, Field(ge=1, le=100)] = 5
    """Terms of that sum."""

    @model_validator(mode="after")
    def _one_of_both(self) -> OFTOptions:
        if (self.r == 0) == (self.oft_block_size == 0):
            raise ValueError("exactly one of r and oft_block_size must be 0: the other one says how blocks are cut")
        return self


def attach(model: Any, workload: Workload) -> nn.Module:
    """PEFT's model around `model`."""
    from peft import OFTConfig

    options: OFTOptions = workload.of(OFTOptions)
    return adapt(model, workload, OFTConfig, **options.model_dump())


OFT = Adapter(
    summary="each target layer's input rotated in blocks (PEFT)",
    attach=attach,
    trains_base=False,
    trains_linear=False,
    can_switch_off=True,
    requires=("peft",),
    options=OFTOptions,
    fields=FIELDS,
)
