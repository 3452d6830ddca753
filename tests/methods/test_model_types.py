"""Model types that are unlike most: each of these once ended in a traceback, or in a sentence about something else."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny

from vrambench.bench.predict.simulate import Simulator
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.models.config import model_config, shortened
from vrambench.methods.models.load import load_model
from vrambench.methods.models.parts import trunk

CPU, META = get_device("cpu"), get_device("meta")
LARGE = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def written(kind: str, folder: Path, **more: Any) -> str:
    (folder / "config.json").write_text(json.dumps(tiny(kind) | more))
    return str(folder)


def cell_of(model: str, **axes: str) -> Cell:
    return resolve(LARGE | axes, {"model": model, "prompt_tokens": 6, "response_tokens": 2, "batch_size": 2})


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("musicgen", "has an encoder"),
        ("xlnet", "reads in both directions"),
        ("xlm", "reads in both directions"),
        ("cpmant", "does not come out here as in transformers"),
        ("deepseek_v32", "attends to tokens that an indexer picks"),
    ],
)
def test_it_is_refused_for_what_it_is(kind: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"is a {kind}, which {said}"):
        model_config(written(kind, tmp_path))


@pytest.mark.parametrize("kind", ["gpt2", "gemma4"])
def test_a_padding_token_stays_and_nobody_looks_for_it(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = {"pad_token_id": 7} if kind == "gpt2" else {}
    model: Any = load_model(cell_of(written(kind, tmp_path, **more)).setup, CPU, seed=0)
    padding = model.config.get_text_config().pad_token_id
    assert padding is not None
    logging.disable(logging.NOTSET)
    states = trunk(model)(input_ids=torch.full((1, 4), padding), use_cache=False).last_hidden_state
    assert torch.isfinite(states).all()
    assert "attention_mask" not in caplog.text


def test_what_initialises_a_module_s_layers_leaves_quantised_ones_alone(tmp_path: Path) -> None:
    job = Job(cell_of(written("gemma3", tmp_path), precision="nf4"), CPU)
    job.load()
    kinds = {type(module).__name__ for module in job.roles["policy"].module.modules()}
    assert "Linear4bit" in kinds


@pytest.mark.parametrize(
    ("kind", "between"), [("modernbert-decoder", "lm_head"), ("bert", "cls"), ("electra", "generator_predictions")]
)
def test_layers_between_trunk_and_head_are_refused(kind: str, between: str, tmp_path: Path) -> None:
    more = {} if kind == "modernbert-decoder" else {"is_decoder": True}
    said = rf"is a {kind}, which has layers between its last hidden states and its output head \({between}"
    with pytest.raises(ConfigurationError, match=said):
        load_model(cell_of(written(kind, tmp_path, **more)).setup, META, seed=0)


def test_the_trunk_is_below_the_head_where_the_base_has_another_name(tmp_path: Path) -> None:
    model: Any = load_model(cell_of(written("llama4_text", tmp_path)).setup, META, seed=0)
    assert trunk(model) is model.model
    assert trunk(model.model) is model.model


def test_a_limit_without_end_does_not_stop_the_comparison_of_layers(tmp_path: Path) -> None:
    config = model_config(written("granitemoehybrid", tmp_path))
    assert config.time_step_limit[1] == float("inf")
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    assert shortened(config, replace(META, layers=4)).num_hidden_layers == 4


def test_a_model_inside_without_layers_of_its_own_is_no_hindrance(tmp_path: Path) -> None:
    cell = cell_of(written("phi4_multimodal", tmp_path))
    assert Simulator().run(cell).parameters.total > 0
