"""Mixtures of experts: what PEFT and quantisation make of parameters that are stacked, predicted as they run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.predict import NotPredicted
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.many import outcome
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
EXPERTS = 6 * 4 * 3 * 64 * 96
"""Weights of the experts' matrices."""


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("mixtral")
    (folder / "config.json").write_text(json.dumps(MIXTRAL))
    return str(folder)


def cell_of(model: str, **more: Any) -> Cell:
    axes = {"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    work: dict[str, Any] = {"model": model, "prompt_tokens": 24, "response_tokens": 8, "batch_size": 2, "lora_r": 4}
    work |= {"lora_target_modules": "all-linear", "steps": 1, "warmup_steps": 1, "rollout_batch": 2}
    for name, value in more.items():
        (axes if name in axes else work)[name] = value
    return resolve(axes, work)


def forecast(cell: Cell) -> Forecast:
    return Predictor("").forecast(cell)


def test_lora_on_all_linear_layers_is_predicted_with_as_many_parameters_as_the_job_trains(mixtral: str) -> None:
    cell = cell_of(mixtral)
    job = Job(cell, get_device("cpu"), lambda phase: None)
    job.load()
    trained = sum(parameter.numel() for parameter in job.parameters() if parameter.requires_grad)
    assert forecast(cell).parameters.trainable == trained


def test_what_peft_cannot_adapt_is_one_sentence(mixtral: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^adapter: PEFT cannot put it on these layers: .*use_dora"):
        forecast(cell_of(mixtral, adapter="dora"))


def test_a_job_that_fails_when_simulated_is_one_sentence(mixtral: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Job, index: int) -> None:
        raise RuntimeError("no such kernel\nand a second line")

    monkeypatch.setattr(Job, "step", failing)
    cell = cell_of(mixtral)
    words = "cannot be predicted: the simulated job ends in RuntimeError: no such kernel"
    with pytest.raises(NotPredicted, match=f"{words}$"):
        forecast(cell)
    told = outcome(Predictor(""), cell.flat(), None)
    assert told.reason is not None
    assert told.reason.endswith(words)


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_experts_that_stay_in_16_bit_are_told_with_their_bytes(mixtral: str, precision: str) -> None:
    found = forecast(cell_of(mixtral, precision=precision, lora_target_modules=["q_proj"]))
    told = [note for note in found.notes if "experts' weights" in note]
    mebibytes = f"{EXPERTS * 2 / 2**20:,.0f} MiB"
    assert told == [
        f"{mebibytes} of experts' weights stay in bfloat16: {precision} quantises linear layers, and these are stacked parameters"
    ]
    assert found.roles["policy"].weights_bytes > EXPERTS * 2
    plain = forecast(cell_of(mixtral, lora_target_modules=["q_proj"]))
    dense = forecast(cell_of("tiny", precision=precision, lora_target_modules=["q_proj"]))
    assert not [note for note in (*plain.notes, *dense.notes) if "experts" in note]
