"""nf4: QLoRA's four-bit normal float by bitsandbytes. Blocks of 64 weights with an fp32 scale each, products in
compute_dtype.

Source: Dettmers et al., QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import nn

from vrambench.methods.dtypes import DTYPES
from vrambench.methods.precision import Precision
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload


class Nf4Options(Options):
    """bitsandbytes' bnb_4bit_use_double_quant, and what it does not reach by itself."""

    namespace: ClassVar[str] = "nf4"
    double_quant: bool = False
    """Whether the blocks' scales are quantised to 8 bits in their turn, which saves about 0.37 bit per weight."""
    quantize_moe_experts: bool = False
    """axolotl's: whether experts that are stacked in one parameter, which bitsandbytes leaves in 16 bit, are quantised too."""


def quantize(linear: nn.Linear, workload: Workload) -> nn.Module:
    """bitsandbytes' Linear4bit for `linear`: two weights to a byte, uint8 [out*in/2, 1], on its weight's device."""
    import bitsandbytes as bnb

    from vrambench.methods.tensors import shapes_only

    if linear.weight.is_meta:
        _keep_code_on_cpu()
    options = workload.of(Nf4Options)
    with shapes_only():
        module = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=DTYPES[workload.compute_dtype or "bf16"],
            compress_statistics=options.double_quant,
            quant_type="nf4",
        )
    packed, state = bnb.functional.quantize_4bit(
        linear.weight.data, blocksize=64, compress_statistics=options.double_quant, quant_type="nf4"
    )
    module.weight = bnb.nn.Params4bit(
        packed,
        requires_grad=False,
        quant_state=state,
        blocksize=64,
        compress_statistics=options.double_quant,
        quant_type="nf4",
        module=module,
        bnb_quantized=True,
    )
    module.quant_state = state
    module.bias = linear.bias
    forbid_repacking(module)
    return module


def quantize_experts(module: Any, name: str, workload: Workload) -> None:
    """Packs the stack of matrices `name` of `module` as linear layers are, where the options say so: uint8, from which every
    forward pass makes the whole stack anew in its type, as bitsandbytes' parametrization does."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    options = workload.of(Nf4Options)
    if not options.quantize_moe_experts:
        return
    if getattr(module, name).is_meta:
        _keep_code_on_cpu()
    replace_parameter_4bit(module, name, compress_statistics=options.double_quant, quant_type="nf4", blocksize=64)
    (unpacking,) = module.parametrizations[name]
    module.parametrizations[name].original.quant_state = unpacking.quant_state


def forbid_repacking(model: nn.Module) -> None:
    """Keeps the weights of every Linear4bit in `model` as they are: on a CPU with AVX512-BF16 one forward in eval mode
    would repack them for inference, and every later gradient through them would be silently wrong."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - no attribute of nn.Module


def _keep_code_on_cpu() -> None:
    """bitsandbytes keeps the table of its 8-bit type where it was first used; from meta it could never come back with
    values."""
    import bitsandbytes.functional as bnb_functional

    if "dynamic" not in bnb_functional.name2qmap:
        bnb_functional.name2qmap["dynamic"] = bnb_functional.create_dynamic_map()


FUSED_ROWS = 4
"""Products of up to so many rows are always fused (bitsandbytes 0.50, backends/cuda/ops.py)."""


def _product(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> tuple[int, ...]:
    """gemm_4bit of inputs [M,K] and weights [N,K]: the weights in the inputs' type, K*N items, and with double quantisation
    the blocks' scales in fp32 twice, 4*K*N/64 bytes each.

    bitsandbytes 0.50, backends/cuda/ops.py: _dequant_linear_fallback. Small products run fused and need none of it. Up to 4
    rows they always do, beyond 1536 and where K does not divide by the block never; between, it depends on the GPU, and
    this assumes not, which errs on the high side.
    """
    inputs, weight_shape, block = args[0], args[2], args[4]
    depth = inputs.shape[-1]
    if inputs.numel() // depth <= FUSED_ROWS and depth % block == 0:
        return ()
    nested = args[7] if len(args) > 7 else kwargs.get("absmax_8bit")
    scales = () if nested is None else 2 * (nested.numel() * torch.float32.itemsize,)
    return *scales, math.prod(weight_shape) * inputs.element_size()


WORKSPACES = {"bitsandbytes.gemm_4bit.default": _product}
"""Its other operators on CUDA (quantize_4bit, dequantize_4bit, dequantize_blockwise) allocate their results alone."""


def quantization_config(workload: Workload) -> Any:
    """The same for a checkpoint that transformers reads."""
    from transformers import BitsAndBytesConfig

    options = workload.of(Nf4Options)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=options.double_quant,
        bnb_4bit_compute_dtype=DTYPES[workload.compute_dtype or "bf16"],
    )


NF4 = Precision(
    summary="linear layers in nf4 (QLoRA), the rest in compute_dtype",
    weights=None,
    quantize=quantize,
    quantize_experts=quantize_experts,
    quantization_config=quantization_config,
    bits=4,
    options=Nf4Options,
    fields=("compute_dtype", "autocast", "fp32_modules"),
    requires=("bitsandbytes",),
    workspaces=WORKSPACES,
)
