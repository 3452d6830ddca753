"""Saving: files that the libraries can read, with what was trained in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vrambench.methods import saving
from vrambench.methods.job import Job

MakeJob = Callable[..., Job]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where everything is saved, and stays."""

    class Folder:
        def __init__(self, **_: Any) -> None:
            pass

        def __enter__(self) -> str:
            return str(tmp_path)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(saving.tempfile, "TemporaryDirectory", Folder)
    return tmp_path


def test_all_weights_are_saved_without_an_adapter(job: MakeJob, folder: Path) -> None:
    made = job(save="model")
    made.step(0)
    made.save()
    model: Any = made.roles["policy"].module.model
    read = load_file(folder / "model.safetensors")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(read[name], tensor)
    assert sum(parameter.nbytes for parameter in made.saved()) == sum(tensor.nbytes for tensor in read.values())


def test_an_adapter_is_saved_alone(job: MakeJob, folder: Path) -> None:
    made = job(adapter="lora", save="model")
    made.save()
    read = load_file(folder / "adapter_model.safetensors")
    assert all("lora_" in name for name in read)
    assert sum(parameter.nbytes for parameter in made.saved()) == sum(tensor.nbytes for tensor in read.values())
    made.step(0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_merged_model_holds_the_adapters_product(precision: str, job: MakeJob, folder: Path) -> None:
    made = job(precision=precision, adapter="lora", save="merged", lora_r=4, lora_alpha=8)
    for index in range(3):
        made.step(index)
    model: Any = made.roles["policy"].module.model
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    factors = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = layer.base_layer.weight.detach() + 2 * factors.detach()
    assert factors.abs().max() > 0
    nbytes = sum(parameter.nbytes for parameter in made.saved())
    made.save()
    read = load_file(folder / "model.safetensors")
    assert not any("lora_" in name for name in read)
    merged = read["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(merged, expected.to(merged.dtype), rtol=1e-2, atol=1e-4)
    assert nbytes == sum(tensor.nbytes for tensor in read.values())


def test_nothing_is_written_on_the_simulated_device(job: MakeJob, folder: Path) -> None:
    job(device="meta", save="model").save()
    assert not list(folder.iterdir())
