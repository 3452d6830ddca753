"""Quantised layers: near the weights they came from, with right gradients, the same in every world."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vrambench.methods.cell import resolve
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.precision import PRECISIONS
from vrambench.methods.precision.int8 import INITIAL_STD, Int8Options, narrowed
from vrambench.methods.workload import Workload

QUANTISED = ("int8", "nf4")
# A round to int8 is off by at most half a step of 1/127 of the row's largest weight; nf4's widest step is 0.30 of the
# block's.
RELATIVE_ERROR = {"int8": 0.02, "nf4": 0.15}


def linear_of(inputs: int = 192, outputs: int = 96, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, dtype=dtype)


def quantized(linear: nn.Linear, precision: str, **settings: Any) -> nn.Module:
    value = PRECISIONS.get(precision)
    assert value.quantize is not None
    return value.quantize(linear, Workload(**settings))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("precision", QUANTISED)
def test_products_and_input_gradients_are_near_those_of_the_weights(precision: str, double: bool) -> None:
    reference = linear_of()
    layer = quantized(linear_of(), precision, compute_dtype="fp32", options={"nf4": {"double_quant": double}})
    x = torch.randn(4, 10, 192, requires_grad=True)
    y = x.detach().clone().requires_grad_(True)
    ours, theirs = layer(x), reference(y)
    assert relative(ours, theirs) < RELATIVE_ERROR[precision]
    upstream = torch.randn_like(ours)
    ours.backward(upstream)
    theirs.backward(upstream)
    assert x.grad is not None
    assert y.grad is not None
    assert relative(x.grad, y.grad) < RELATIVE_ERROR[precision]


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="only there bitsandbytes is wrong")
@pytest.mark.parametrize("width", [64, 96, 100, 128, 176])
def test_where_bitsandbytes_unpacks_nf4_wrongly_on_a_cpu(width: int) -> None:
    """The widths that the rule nf4-cpu-blocks names; once they come out right, it can go."""
    torch.manual_seed(0)
    linear = nn.Linear(width, 96, bias=False)
    nn.init.normal_(linear.weight)
    exact = linear.weight.T.clone()
    layer = quantized(linear, "nf4", compute_dtype="fp32")
    assert (relative(layer(torch.eye(width)), exact) > RELATIVE_ERROR["nf4"]) == (width in (96, 176))


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return ((value - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("precision", QUANTISED)
def test_a_forward_in_eval_mode_leaves_later_gradients_alone(precision: str) -> None:
    """On a CPU with AVX512-BF16, bitsandbytes repacks nf4 weights at the first forward in eval mode."""

    def gradient(after_eval: bool) -> torch.Tensor:
        layer = quantized(linear_of(dtype=torch.bfloat16), precision)
        torch.manual_seed(1)
        x = torch.randn(4, 192, dtype=torch.bfloat16)
        if after_eval:
            with torch.no_grad():
                layer.eval()(x)
            layer.train()
        x.requires_grad_(True)
        layer(x).sum().backward()
        assert x.grad is not None
        return x.grad

    assert torch.equal(gradient(True), gradient(False))


def test_nf4_never_repacks_where_the_cpu_could(monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes as bnb

    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    assert bnb.nn.Linear4bit(64, 64).support_avx512bf16_for_cpu
    assert not quantized(linear_of(), "nf4").support_avx512bf16_for_cpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("precision", QUANTISED)
def test_meta_holds_the_same_bytes_and_gives_the_same_shapes(precision: str, double: bool, dtype: torch.dtype) -> None:
    def run(device: str) -> list[tuple[tuple[int, ...], torch.dtype]]:
        linear = linear_of(dtype=dtype).to(device)
        layer = quantized(linear, precision, compute_dtype="bf16", options={"nf4": {"double_quant": double}})
        x = torch.ones(2, 8, 192, device=device, dtype=dtype, requires_grad=True)
        out = layer(x)
        out.sum().backward()
        assert x.grad is not None
        tensors = [*held(layer), out, x.grad]
        assert {tensor.device.type for tensor in tensors} == {device}
        return [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]

    assert run("meta") == run("cpu")


def held(layer: Any) -> list[torch.Tensor]:
    """Every tensor that a quantised layer keeps, its scales and tables among them."""
    weight, tensors = layer.weight, [layer.weight, layer.bias]
    if hasattr(weight, "quant_state"):
        state = weight.quant_state
        tensors += [state.absmax, state.code]
        if state.nested:
            tensors += [state.offset, state.state2.absmax, state.state2.code]
    else:
        tensors += [layer.state.CB, layer.state.SCB]
    return tensors


def test_bytes_per_weight() -> None:
    count = 4096 * 256
    linear = nn.Linear(4096, 256, bias=False, device="meta")
    int8: Any = quantized(linear, "int8")
    assert int8.weight.nbytes == count
    assert int8.weight.SCB.nbytes == 256 * 4
    nf4: Any = quantized(linear, "nf4")
    assert nf4.weight.nbytes == count // 2
    assert nf4.weight.quant_state.absmax.nbytes == count // 64 * 4
    double: Any = quantized(linear, "nf4", options={"nf4": {"double_quant": True}})
    assert double.weight.quant_state.absmax.nbytes == count // 64
    assert double.weight.quant_state.state2.absmax.nbytes == count // 64 // 256 * 4


def test_quantising_on_meta_first_leaves_the_cpu_its_tables() -> None:
    """bitsandbytes keeps some tables from their first use; one from meta would have no values."""
    import bitsandbytes.functional as bnb_functional

    bnb_functional.name2qmap.pop("dynamic", None)
    options = {"nf4": {"double_quant": True}}
    quantized(nn.Linear(128, 64, device="meta"), "nf4", options=options)
    layer = quantized(linear_of(), "nf4", compute_dtype="fp32", options=options)
    x = torch.randn(3, 192)
    assert relative(layer(x), linear_of()(x)) < RELATIVE_ERROR["nf4"]


def test_outlier_threshold_is_an_option_and_off_where_there_are_no_values() -> None:
    assert quantized(linear_of(), "int8").state.threshold == 6.0  # type: ignore[union-attr]
    assert quantized(linear_of(), "int8", options={"int8": {"threshold": 0.0}}).state.threshold == 0.0  # type: ignore[union-attr]
    assert quantized(linear_of().to("meta"), "int8").state.threshold == 0.0  # type: ignore[union-attr]


def test_products_run_in_compute_dtype() -> None:
    layer: Any = quantized(linear_of(), "nf4", compute_dtype="fp16")
    assert layer.compute_dtype == torch.float16


@pytest.mark.parametrize(("precision", "namespace"), [("int8", {"threshold": 3.0}), ("nf4", {"double_quant": True})])
def test_options_reach_the_cell(precision: str, namespace: dict[str, Any]) -> None:
    axes = {
        "precision": precision,
        "adapter": "lora",
        "optimizer": "adamw_torch",
        "offload": "none",
        "algorithm": "sft",
    }
    cell = resolve(axes, {precision: namespace, "compute_dtype": "fp16"})
    assert cell.workload.options[precision].items() >= namespace.items()
    assert cell.workload.compute_dtype == "fp16"
    with pytest.raises(ConfigurationError, match="no such field"):
        resolve(axes, {precision: {"treshold": 1}})


def test_random_int8_layers_have_few_outliers_however_wide_they_are() -> None:
    """A gated MLP of Llama-2-7B's width: as architectures draw it, nearly every column of what it multiplies has an outlier."""
    torch.manual_seed(0)
    inputs = torch.randn(512, 4096)

    def outliers(narrow: bool) -> int:
        gate, up = (torch.randn(256, 4096) * INITIAL_STD for _ in range(2))
        if narrow:
            gate, up = narrowed(gate), narrowed(up)
        product = torch.nn.functional.silu(inputs @ gate.T) * (inputs @ up.T)
        return int((product.abs() > Int8Options().threshold).any(dim=0).sum())

    assert outliers(narrow=False) > 128
    assert outliers(narrow=True) == 0


def test_narrow_random_weights_of_small_layers_stay_as_they_are_drawn() -> None:
    weight = torch.randn(64, 64)
    assert torch.equal(narrowed(weight.clone()), weight)
