"""Settings of DeepSpeed's ZeRO, as its engine and its stand-ins on the simulated device read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from vrambench.methods.registry import Options

Elements = Annotated[int, Field(ge=0)]
AUTO = "auto"


class ZeroOptions(Options):
    """DeepSpeed's names and defaults, sizes in elements; `auto` is what transformers makes of the model's hidden size. `stage3_*`
    and sub_group_size are of stage 3 alone."""

    namespace: ClassVar[str] = "zero"
    reduce_bucket_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 500_000_000
    """Elements of the bucket that gradients are reduced in, allocated whatever the model's size; `auto`: the square of the hidden
    size."""
    overlap_comm: bool = False
    """Whether gradients are reduced on a second stream, with a second bucket; in stage 3, where DeepSpeed's own default is true,
    parameters are gathered beside the work as well."""
    pin_memory: bool = True
    """Whether the host's memory for what is offloaded is page-locked."""
    stage3_prefetch_bucket_size: Elements | Literal["auto"] = 50_000_000
    """How much of what comes next is gathered before it is needed; `auto`: 0.9 of the hidden size's square."""
    stage3_param_persistence_threshold: Elements | Literal["auto"] = 100_000
    """Parameters up to this size are gathered after each optimizer step and stay; `auto`: ten times the hidden size."""
    stage3_max_live_parameters: Elements = 1_000_000_000
    """Nothing is gathered ahead where this much is gathered already."""
    stage3_max_reuse_distance: Elements = 1_000_000_000
    """A parameter that is needed again before this much else stays gathered."""
    sub_group_size: Elements = 1_000_000_000
    """The optimizer's step goes through parameters in groups of this size; 0: each is a group."""


STAGE_3_ONLY = (
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "sub_group_size",
)


def number_of(size: int | str) -> int:
    """A size of a cell, which leaves none open."""
    assert isinstance(size, int), "resolve decides what is auto"
    return size


def sized(said: Mapping[str, Any], hidden_size: int) -> dict[str, Any]:
    """The options as `said`, with numbers for each `auto` (transformers, integrations/deepspeed.py, trainer_config_finalize)."""
    numbers = {
        "reduce_bucket_size": hidden_size * hidden_size,
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size * hidden_size),
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    return {name: numbers[name] if value == AUTO else value for name, value in said.items()}
