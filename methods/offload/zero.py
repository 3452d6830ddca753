"""Settings of DeepSpeed's ZeRO, as its engine and its stand-ins on the simulated device read them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from vrambench.methods.registry import Options

Elements = Annotated[int, Field(ge=0)]


class ZeroOptions(Options):
    """DeepSpeed's names and defaults, sizes in elements. `stage3_*` and sub_group_size are of stage 3 alone."""

    namespace: ClassVar[str] = "zero"
    reduce_bucket_size: Annotated[int, Field(ge=1)] = 500_000_000
    """Elements of the bucket that gradients are reduced in, allocated whatever the model's size; transformers' `auto` sets the
    square of the hidden size."""
    overlap_comm: bool = False
    """Whether gradients are reduced on a second stream, with a second bucket; in stage 3, where DeepSpeed's own default is true,
    parameters are gathered beside the work as well."""
    pin_memory: bool = True
    """Whether the host's memory for what is offloaded is page-locked."""
    stage3_prefetch_bucket_size: Elements = 50_000_000
    """How much of what comes next is gathered before it is needed."""
    stage3_param_persistence_threshold: Elements = 100_000
    """Parameters up to this size are gathered after each optimizer step and stay."""
    stage3_max_live_parameters: Elements = 1_000_000_000
    """Nothing is gathered ahead where this much is gathered already."""
    stage3_max_reuse_distance: Elements = 1_000_000_000
    """A parameter that is needed again before this much else stays gathered."""
    sub_group_size: Annotated[int, Field(ge=1)] = 1_000_000_000
    """The optimizer's step goes through parameters in groups of this size."""


STAGE_3_ONLY = (
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "sub_group_size",
)
