"""nf4: QLoRA's four-bit normal float by bitsandbytes. Blocks of 64 weights with an fp32 scale each, products in
compute_dtype.

Source: Dettmers et al., QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from vrambench.methods.precision import DTYPES, Precision
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload


class Nf4Options(Options):
    """`double_quant`: the blocks' scales are quantised to 8 bit in their turn, which saves about 0.37 bit per
    weight."""

    namespace: ClassVar[str] = "nf4"
    double_quant: bool = False


def quantize(linear: nn.Linear, workload: Workload) -> nn.Module:
    """bitsandbytes' Linear4bit for `linear`: two weights to a byte, uint8 [out*in/2, 1], on its weight's device."""
    import bitsandbytes as bnb

    from vrambench.methods.fill import shapes_only

    if linear.weight.is_meta:
        _keep_code_on_cpu()
    options = Nf4Options(**workload.options.get(Nf4Options.namespace, {}))
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


def quantization_config(workload: Workload) -> Any:
    """The same for a checkpoint that transformers reads."""
    from transformers import BitsAndBytesConfig

    options = Nf4Options(**workload.options.get(Nf4Options.namespace, {}))
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
    quantization_config=quantization_config,
    bits=4,
    options=Nf4Options,
    fields=("compute_dtype",),
)
