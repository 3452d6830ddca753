"""int8: LLM.int8() of bitsandbytes. Weights in one byte with a scale per row, products in int8, outlier columns in 16
bit.

Source: Dettmers et al., LLM.int8(), arXiv 2208.07339.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from vrambench.methods.precision import Precision
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload


class Int8Options(Options):
    """`threshold`: columns of the input with a value of at least this size are outliers and computed unquantised; 0 for
    none."""

    namespace: ClassVar[str] = "int8"
    threshold: float = Field(default=6.0, ge=0)


def quantize(linear: nn.Linear, workload: Workload) -> nn.Module:
    """bitsandbytes' Linear8bitLt for `linear`: int8 weights [out,in] and fp32 row scales [out], on its weight's
    device."""
    import bitsandbytes as bnb

    from vrambench.methods.fill import shapes_only

    options = Int8Options(**workload.options.get(Int8Options.namespace, {}))
    weight = linear.weight.data
    # How many columns are outliers is known only from values: on meta there are none, and none are modelled here.
    threshold = 0.0 if weight.is_meta else options.threshold
    with shapes_only():
        module = bnb.nn.Linear8bitLt(
            linear.in_features, linear.out_features, bias=False, has_fp16_weights=False, threshold=threshold
        )
    quantized, scales, _ = bnb.functional.int8_vectorwise_quant(weight.to(torch.float16))
    module.weight = bnb.nn.Int8Params(quantized, requires_grad=False, has_fp16_weights=False, CB=quantized, SCB=scales)
    module.bias = linear.bias
    # It warns at every product that inputs are cast to 16 bit, which is what this precision is.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return module


def quantization_config(workload: Workload) -> Any:
    """The same for a checkpoint that transformers reads."""
    from transformers import BitsAndBytesConfig

    options = Int8Options(**workload.options.get(Int8Options.namespace, {}))
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=options.threshold)


INT8 = Precision(
    summary="linear layers in int8 (LLM.int8), the rest in compute_dtype",
    weights=None,
    quantize=quantize,
    quantization_config=quantization_config,
    bits=8,
    options=Int8Options,
    fields=("compute_dtype",),
)
