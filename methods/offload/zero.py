"""Settings of DeepSpeed's ZeRO, as its engine and its stand-in on the simulated device both read them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from vrambench.methods.registry import Options


class ZeroOptions(Options):
    """DeepSpeed's names and defaults."""

    namespace: ClassVar[str] = "zero"
    reduce_bucket_size: Annotated[int, Field(ge=1)] = 500_000_000
    """Elements of the bucket that gradients are reduced in, allocated whatever the model's size; transformers' `auto` sets the
    square of the hidden size."""
    overlap_comm: bool = False
    """Whether gradients are reduced on a second stream, with a second bucket."""
    pin_memory: bool = True
    """Whether the host's memory for optimizer state is page-locked."""
