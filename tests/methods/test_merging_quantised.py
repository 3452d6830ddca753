"""Which adapters PEFT merges into int8 and 4-bit weights, as `merges_quantized` says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vrambench.methods.adapters import ADAPTERS
from vrambench.methods.cell import resolve
from vrambench.methods.device import get_device
from vrambench.methods.job import Job

WORK: dict[str, Any] = {"model": "tiny", "batch_size": 2, "prompt_tokens": 8, "response_tokens": 8}
WORK |= {"lora_target_modules": ["q_proj", "k_proj", "v_proj"]}
MERGED: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {},
    "dora": {},
    "oft": {},
    "vera": {},
    "peft:BOFTConfig": {},
    "peft:MissConfig": {},
    "peft:ShiraConfig": {"peft": {"r": 4}},
}
"""With options that the tiny model has room for."""
UNMERGED = ("ia3", "adalora", "peft:FourierFTConfig", "peft:LoHaConfig", "peft:LilyConfig")


def adapted(adapter: str, precision: str, options: dict[str, Any]) -> Any:
    """PEFT's model, whose adapter does something."""
    axes = {"optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    cell = resolve({"precision": precision, "adapter": adapter, **axes}, WORK | options)
    job = Job(cell, get_device("cpu"), lambda phase: None)
    job.load()
    model = job.roles["policy"].module.model.eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return model


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize(("adapter", "options"), MERGED.items(), ids=MERGED)
def test_what_is_merged_does_what_the_adapter_did(adapter: str, options: dict[str, Any], precision: str) -> None:
    """Nearer to it than the base is: merged weights are rounded anew."""
    assert ADAPTERS.get(adapter).merges_quantized
    model = adapted(adapter, precision, options)
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with model.disable_adapter():
            base = model(input_ids=tokens).logits.float()
        beside = model(input_ids=tokens).logits.float()
        merged = model.merge_and_unload()
        inside = merged(input_ids=tokens).logits.float()
    kinds = {type(layer.weight).__name__ for name, layer in merged.named_modules() if name.endswith("q_proj")}
    assert kinds == {"Int8Params" if precision == "int8" else "Params4bit"}
    assert (inside - beside).norm() < 0.5 * (beside - base).norm()


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("adapter", UNMERGED)
def test_what_is_not_merged_fails_in_peft(adapter: str, precision: str) -> None:
    value = ADAPTERS.get(adapter)
    assert not (value.merges and value.merges_quantized)
    with pytest.raises((NotImplementedError, ValueError, RuntimeError)):
        adapted(adapter, precision, {}).merge_and_unload()
