"""int8: LLM.int8() of bitsandbytes. Weights in one byte with a scale per row, products in int8, outlier columns in 16
bit.

Source: Dettmers et al., LLM.int8(), arXiv 2208.07339.
"""

from __future__ import annotations

import logging
import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from vrambench.methods.precision import Precision
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload

OUTLIER_COLUMNS = 7
"""How many columns of a product's input are taken to be outliers on the simulated device, where there are no values to tell.

The LLM.int8() paper finds at most 7 such features up to 13B parameters (its section 3.2); models with random weights, drawn as
`narrowed` has them, have fewer.
"""

INITIAL_STD, OUTPUT_STD = 0.02, 0.5
"""How widely architectures draw random weights, and how widely a quantised layer's outputs may scatter at most. Wide layers
scatter more as they are drawn, and where their outputs are multiplied nearly every column has an outlier: 10,800 of Llama-2-7B's
11,008 at 1,536 tokens, which its down projections keep for the backward pass (1.06 GB; seen as 1.28 GiB more than predicted on an
H200). No trained model is like that."""

LIBRARY_BYTES = 64 * 2**20
"""cuBLASLt's kernels for int8, beyond what a job without them loads: seen on an H200 with CUDA 13
(results/nvidia-h200/measured)."""


class Int8Options(Options):
    """bitsandbytes' name and default."""

    namespace: ClassVar[str] = "int8"
    threshold: float = Field(default=6.0, ge=0)
    """Columns of the input with a value of at least this size are outliers and computed unquantised; 0 for none."""


def quantize(linear: nn.Linear, workload: Workload) -> nn.Module:
    """bitsandbytes' Linear8bitLt for `linear`: int8 weights [out,in] and fp32 row scales [out], on its weight's
    device."""
    import bitsandbytes as bnb

    from vrambench.methods.tensors import shapes_only

    options = workload.of(Int8Options)
    weight = linear.weight.data
    # How many columns are outliers is known only from values: on meta none are, and WORKSPACES holds what they would take.
    threshold = 0.0 if weight.is_meta else options.threshold
    with shapes_only():
        module = bnb.nn.Linear8bitLt(
            linear.in_features, linear.out_features, bias=False, has_fp16_weights=False, threshold=threshold
        )
    halved = narrowed(weight).to(torch.float16)
    if weight.is_meta:
        # What the operator allocates for a weight, which unlike a product's input is never searched for outliers.
        scales = halved.new_empty(halved.shape[0], dtype=torch.float32)
        quantized = torch.empty_like(halved, dtype=torch.int8)
    else:
        quantized, scales, _ = bnb.functional.int8_vectorwise_quant(halved)
    del halved
    module.weight = bnb.nn.Int8Params(quantized, requires_grad=False, has_fp16_weights=False, CB=quantized, SCB=scales)
    module.bias = linear.bias
    # It warns at every product that inputs are cast to 16 bit, which is what this precision is.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return module


def narrowed(weight: torch.Tensor) -> torch.Tensor:
    """Random weights [out,in], made narrower in place where outputs would scatter more widely than trained models' do."""
    return weight.mul_(min(1.0, OUTPUT_STD / (INITIAL_STD * math.sqrt(weight.shape[1]))))


def _quantised_input(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> tuple[int, ...]:
    """int8_vectorwise_quant of a product's input [M,K] in fp16, searched for outliers: absolute values and their mask.

    bitsandbytes 0.50, backends/cuda/ops.py. On the simulated device the threshold is 0, and this stands for any other one.
    """
    count = args[0].numel()
    return count * 2, count


def _scaled_product(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> tuple[int, ...]:
    """int8_scaled_mm of inputs [M,K] and weights [N,K]: sums in int32, scaled in fp16, before they are cast to the result;
    beside them the outlier columns of both in the result's type. Where K is no multiple of 4, the product is one in fp32.

    bitsandbytes 0.50, backends/default/ops.py: int8_scaled_mm and int8_mixed_scaled_mm, which real devices call with a
    threshold; backends/cuda/ops.py: int8_mm_dequant. Not counted: that the inputs' outlier columns are kept until the
    backward pass (M x OUTLIER_COLUMNS for each layer, under checkpointing too: autograd/_functions.py, MatMul8bitLt, keeps them
    where no hook sees them), and the result that is added to them, which replaces this one.
    """
    width = args[0].shape[-1]
    rows, columns = args[0].numel() // width, args[1].shape[0]
    item = result.element_size()
    halved = () if result.dtype == torch.float16 else (rows * columns * 2,)
    # cuBLASLt has no int8 product of such a width: both sides in fp32, and what comes of it, before it is cast.
    floats = (rows * width * 4, columns * width * 4, rows * columns * 4) if width % 4 else ()
    outliers = (rows * OUTLIER_COLUMNS * item, columns * OUTLIER_COLUMNS * item)
    return *outliers, rows * columns * 4, *(floats or halved)


def _dequantised_product(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> tuple[int, ...]:
    """int8_mm_dequant: the scaled sums in fp16, before they are cast. bitsandbytes 0.50, backends/cuda/ops.py."""
    return () if result.dtype == torch.float16 else (math.prod(args[0].shape) * 2,)


def _dequantised(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> tuple[int, ...]:
    """int8_vectorwise_dequant, when an adapter is merged: the weights times their scales in fp32, before they are divided by 127
    into the result. bitsandbytes 0.50, _ops.py: the implementation of every device."""
    return (result.nbytes,)


WORKSPACES = {
    "bitsandbytes.int8_vectorwise_dequant.default": _dequantised,
    "bitsandbytes.int8_vectorwise_quant.default": _quantised_input,
    "bitsandbytes.int8_scaled_mm.default": _scaled_product,
    "bitsandbytes.int8_mm_dequant.default": _dequantised_product,
}


def quantization_config(workload: Workload) -> Any:
    """The same for a checkpoint that transformers reads."""
    from transformers import BitsAndBytesConfig

    options = workload.of(Int8Options)
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=options.threshold)


INT8 = Precision(
    summary="linear layers in int8 (LLM.int8), the rest in compute_dtype",
    weights=None,
    quantize=quantize,
    quantization_config=quantization_config,
    bits=8,
    options=Int8Options,
    fields=("compute_dtype", "autocast", "fp32_modules"),
    requires=("bitsandbytes",),
    workspaces=WORKSPACES,
    library_bytes=LIBRARY_BYTES,
)
