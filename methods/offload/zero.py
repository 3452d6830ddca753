"""Settings of DeepSpeed's ZeRO, as its engine and its stand-in on the simulated device both read them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from vrambench.methods.registry import Options


class ZeroOptions(Options):
    """DeepSpeed's names and defaults. The bucket, `reduce_bucket_size` elements, is allocated whatever the model's size;
    transformers' `auto` sets it to the square of the hidden size."""

    namespace: ClassVar[str] = "zero"
    reduce_bucket_size: Annotated[int, Field(ge=1)] = 500_000_000
    overlap_comm: bool = False
    pin_memory: bool = True
