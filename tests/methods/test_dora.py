"""DoRA: LoRA's factors and one length for each row, the formula of its paper, the base when it is off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.models.load import load_model
from vrambench.methods.models.parts import head, trunk

CPU, META = get_device("cpu"), get_device("meta")


def cell_of(precision: str = "fp32", **settings: Any) -> Cell:
    axes = {"adapter": "dora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    return resolve(axes | {"precision": precision}, settings)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("device", [CPU, META], ids=lambda device: device.kind)
@pytest.mark.parametrize(
    ("name", "factors", "rows"),
    [("tiny", (64 + 64) + (64 + 32), 64 + 32), ("tiny-gpt2", 64 + 3 * 64, 3 * 64)],
)
def test_it_trains_the_factors_and_a_length_for_each_row(name: str, factors: int, rows: int, device: Any) -> None:
    targets = ("q_proj", "v_proj") if name == "tiny" else "auto"
    model = load_model(cell_of(model=name, lora_r=4, lora_target_modules=targets).setup, device, seed=0)
    assert sum(parameter.numel() for parameter in trained(model).values()) == 2 * (4 * factors + rows)


def test_a_layer_gives_what_the_formula_says() -> None:
    model: Any = load_model(cell_of(model="tiny", lora_r=4, lora_alpha=8).setup, CPU, seed=0)
    layer = next(module for path, module in model.named_modules() if path.endswith("layers.0.self_attn.q_proj"))
    for parameter in trained(layer).values():
        nn.init.normal_(parameter, std=0.3)
    lengths = layer.lora_magnitude_vector["default"].weight
    with torch.no_grad():
        changed = layer.base_layer.weight + 8 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        weight = lengths[:, None] * changed / changed.norm(dim=1, keepdim=True)
        states = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(layer(states), states @ weight.T)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "nf4"])
def test_at_the_start_and_switched_off_it_is_the_base(precision: str) -> None:
    cell = cell_of(precision, model="tiny")
    model: Any = load_model(cell.setup, CPU, seed=0)
    base = load_model(cell.setup, CPU, seed=0, adapter=False)
    tokens = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))

    def logits(of: Any) -> torch.Tensor:
        return head(of)(trunk(of)(input_ids=tokens, use_cache=False).last_hidden_state)

    expected = logits(base)
    close = {"rtol": 0.02, "atol": 0.02} if precision != "fp32" else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(logits(model), expected, **close)
    for parameter in trained(model).values():
        nn.init.normal_(parameter, std=0.3)
    assert not torch.allclose(logits(model), expected, atol=0.05)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), expected)
