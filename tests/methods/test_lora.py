"""LoRA: exactly the factors that the formula counts, the base when it is off, gradients in every precision and
world."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.models.config import model_config
from vrambench.methods.models.load import load_model
from vrambench.methods.models.parts import head, trunk

CPU, META = get_device("cpu"), get_device("meta")
ARCHITECTURES = ("tiny", "tiny-gpt2", "tiny-opt", "tiny-neox", "tiny-mistral")
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "nf4")


def cell_of(precision: str = "fp32", adapter: str = "lora", **settings: Any) -> Cell:
    axes = {
        "precision": precision,
        "adapter": adapter,
        "optimizer": "adamw_torch",
        "offload": "none",
        "algorithm": "sft",
    }
    return resolve(axes, settings)


def logits_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return head(model)(trunk(model)(input_ids=tokens, use_cache=False).last_hidden_state)


def tokens_of() -> torch.Tensor:
    return torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("device", [CPU, META], ids=lambda device: device.kind)
@pytest.mark.parametrize(
    ("name", "targets", "per_layer"),
    [
        # r (in + out) for each target of a layer: hidden 64, intermediate 176, and half as many key and value heads.
        ("tiny", "auto", (64 + 64) + (64 + 32)),
        ("tiny", "all-linear", 2 * (64 + 64) + 2 * (64 + 32) + 2 * (64 + 176) + (176 + 64)),
        ("tiny-mistral", "auto", (64 + 64) + (64 + 32)),
        ("tiny-neox", "auto", 64 + 3 * 64),
        ("tiny-gpt2", "auto", 64 + 3 * 64),
        ("tiny-opt", "auto", 2 * (64 + 64)),
        ("tiny", ("q_proj", "v_proj"), (64 + 64) + (64 + 32)),
        ("tiny-neox", "all-linear", (64 + 3 * 64) + (64 + 64) + 2 * (64 + 256)),
        ("tiny-gpt2", "all-linear", (64 + 3 * 64) + (64 + 64) + 2 * (64 + 256)),
        ("tiny", ("self_attn.q_proj",), 64 + 64),
        ("tiny", r".*\.(q|v)_proj", (64 + 64) + (64 + 32)),
    ],
)
def test_trained_parameters_are_those_of_the_formula(
    name: str, targets: Any, per_layer: int, device: Any, rank: int
) -> None:
    model = load_model(cell_of(model=name, lora_r=rank, lora_target_modules=targets).setup, device, seed=0)
    assert sum(parameter.numel() for parameter in trained(model).values()) == 2 * rank * per_layer
    assert all(".lora_A." in label or ".lora_B." in label for label in trained(model))


def test_llama_2_7b_with_rank_16_trains_the_published_number() -> None:
    """39,976,960: what PEFT prints for rank 16 on all seven projections of Llama-2-7B."""
    cell = cell_of("bf16", model="llama-2-7b", lora_r=16, lora_target_modules="all-linear")
    model = load_model(cell.setup, META, seed=0)
    assert sum(parameter.numel() for parameter in trained(model).values()) == 39_976_960


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_switched_off_it_is_the_base_and_trained_it_is_not(name: str, precision: str) -> None:
    cell = cell_of(precision, model=name)
    model: Any = load_model(cell.setup, CPU, seed=0)
    base = load_model(cell.setup, CPU, seed=0, adapter=False)
    tokens = tokens_of()
    expected = logits_of(base, tokens)
    torch.testing.assert_close(logits_of(model, tokens), expected)  # B starts at zero
    for parameter in trained(model).values():
        nn.init.normal_(parameter, std=0.3)
    assert not torch.allclose(logits_of(model, tokens), expected, atol=0.05)
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model, tokens), expected)


@pytest.mark.parametrize("device", [CPU, META], ids=lambda device: device.kind)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("name", "checkpointing"), [*((name, False) for name in ARCHITECTURES), ("tiny", True), ("tiny-neox", True)]
)
def test_gradients_reach_every_factor(name: str, precision: str, device: Any, checkpointing: bool) -> None:
    cell = cell_of(precision, model=name, gradient_checkpointing=checkpointing)
    model = load_model(cell.setup, device, seed=0)
    for parameter in trained(model).values():
        nn.init.normal_(parameter, std=0.1)
    logits_of(model, tokens_of().to(device.torch)).float().square().mean().backward()
    for label, parameter in trained(model).items():
        assert parameter.grad is not None, label
        assert parameter.grad.device == device.torch
        if device is CPU:
            assert torch.isfinite(parameter.grad).all(), label
            assert parameter.grad.abs().max() > 0, label
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_gradients_under_quantised_layers_are_near_the_exact_ones(precision: str) -> None:
    """The first layer's factors get their gradients through every quantised layer above them."""
    grads = []
    for kind in ("fp32", precision):
        model = load_model(cell_of(kind, model="tiny-neox", compute_dtype="fp32").setup, CPU, seed=0)
        torch.manual_seed(2)
        for parameter in trained(model).values():
            nn.init.normal_(parameter, std=0.1)
        logits_of(model, tokens_of()).square().mean().backward()
        first = next(p for label, p in trained(model).items() if "layers.0" in label and "lora_A" in label)
        assert first.grad is not None
        grads.append(first.grad.flatten())
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.97


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("device", [CPU, META], ids=lambda device: device.kind)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_factors_are_of_the_adapters_type(precision: str, device: Any, dtype: str) -> None:
    model = load_model(cell_of(precision, adapter_dtype=dtype).setup, device, seed=0)
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert {parameter.dtype for parameter in trained(model).values()} == {expected}
    assert {parameter.device for parameter in model.parameters()} == {device.torch}
    assert logits_of(model, tokens_of().to(device.torch)).shape == (2, 12, 256)


def test_a_seed_gives_the_same_factors_again() -> None:
    first, again, other = (trained(load_model(cell_of().setup, CPU, seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[label], again[label]) for label in first)
    assert all(not torch.equal(first[label], other[label]) for label in first if "lora_A" in label)
    assert all(not first[label].any() for label in first if "lora_B" in label)


def test_scale_and_dropout_reach_peft() -> None:
    model: Any = load_model(cell_of(lora_r=4, lora_alpha=12, lora_dropout=0.25).setup, CPU, seed=0)
    layer = trunk(model).layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 3.0
    assert layer.lora_dropout["default"].p == 0.25


@pytest.mark.parametrize("precision", ["fp32", "int8", "nf4"])
def test_all_linear_leaves_the_head_out(precision: str) -> None:
    model = load_model(cell_of(precision, lora_target_modules="all-linear").setup, CPU, seed=0)
    assert type(head(model)) is nn.Linear
    assert len(trained(model)) == 2 * 7 * model_config("tiny").num_hidden_layers
