"""Configurations: what people mistype in a config.json is one sentence, and nothing is built of what no model has."""

from __future__ import annotations

import json
import logging
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.models import config as config_module
from vrambench.methods.models.attention import head_sizes
from vrambench.methods.models.config import model_config
from vrambench.methods.models.kernels import efficient
from vrambench.methods.models.load import load_model

SHAPE: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
MLA = {name: value for name, value in SHAPE.items() if name != "head_dim"} | {
    "model_type": "deepseek_v3", "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
HOSTILE: tuple[Any, ...] = (
    "64", "", None, True, -1, 0, 1.5, 10**9, 10**30, [], [1, 2], {}, {"a": 1}, "nan", [[[]]], "\x00", 7, {"rope_type": "new"},
)  # fmt: skip
MUTATIONS = 300


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def written(folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def cell_of(model: str, **more: Any) -> Cell:
    axes = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    work: dict[str, Any] = {"model": model, "prompt_tokens": 6, "response_tokens": 2, "batch_size": 2, "steps": 1}
    return resolve(axes, work | more)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_attention_heads", "64", "num_attention_heads in its config.json is '64', and must be a whole number from 1 to 4096"),
        ("num_hidden_layers", 10**9,
            "num_hidden_layers in its config.json is 1000000000, and must be a whole number from 1 to 2048"),
        ("hidden_size", 0, "hidden_size in its config.json is 0, and must be a whole number from 1 to 262144"),
        ("vocab_size", True, "vocab_size in its config.json is true, and must be a whole number from 1 to 16777216"),
    ],
)  # fmt: skip
def test_a_size_that_no_model_has_is_named_with_its_bounds(tmp_path: Path, name: str, value: Any, said: str) -> None:
    model = written(tmp_path / "odd", SHAPE | {"model_type": "llama", name: value})
    with pytest.raises(ConfigurationError) as error:
        model_config(model)
    assert error.value.message == f"model: {model!r}: {said}"


def refusal(model: str) -> str | None:
    """Why no model is made of its config.json, None where one is. Every other exception goes through."""
    try:
        load_model(cell_of(model).setup, get_device("meta"), seed=0)
    except ConfigurationError as error:
        return error.message
    return None


def test_hostile_configurations_are_models_or_one_sentence(tmp_path: Path) -> None:
    draw, refused = random.Random(0), 0
    bases = [SHAPE | {"model_type": kind} for kind in ("llama", "qwen3_moe", "gemma3_text", "gpt2", "opt")] + [MLA]
    for number in range(MUTATIONS):
        base = draw.choice(bases)
        complete = json.loads(CONFIG_MAPPING[base["model_type"]](**base).to_json_string())
        config = complete | {draw.choice(sorted(complete)): draw.choice(HOSTILE) for _ in range(draw.choice((1, 1, 2)))}
        model = written(tmp_path / str(number), config)
        said = refusal(model)
        refused += said is not None
        if said is not None:
            assert (said[:7], "\n" in said, len(said) < 1000) == ("model: ", False, True), config
    assert 200 < refused < MUTATIONS


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '{"model_type": 7}', "[" * 100_000, '"llama"', "{}", '{"model_type": "x"}']
)
def test_a_file_that_is_no_configuration_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"^model: ") as error:
        model_config(str(tmp_path))
    assert "\n" not in error.value.message


def test_a_hub_that_cannot_be_reached_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    waits: list[float] = []
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(config_module, "getproxies", dict)
    monkeypatch.setattr(time, "sleep", waits.append)
    config_module._hub_is_out_of_reach.cache_clear()
    try:
        with pytest.raises(ConfigurationError, match=r"^model: 'nobody/nothing' cannot be read: .*connect") as caught:
            model_config("nobody/nothing")
    finally:
        config_module._hub_is_out_of_reach.cache_clear()
    assert caught.value.field == "model"
    assert waits == []


def test_auto_is_the_efficient_kernel_where_heads_differ_in_size(tmp_path: Path) -> None:
    latent, equal = written(tmp_path / "mla", MLA), written(tmp_path / "equal", MLA | {"v_head_dim": 24})
    sizes = [head_sizes(model_config(name)) for name in (latent, equal, "llama-2-7b")]
    assert sizes == [(24, 16), (24, 24), (128, 128)]
    assert cell_of(latent).workload.attention == "efficient"
    assert cell_of("deepseek-v2-lite").workload.attention == "efficient"
    assert cell_of(equal).workload.attention == "flash"
    job = Job(cell_of(latent, attention="flash"), get_device("cpu"), lambda phase: None)
    job.load()
    with pytest.raises(ConfigurationError, match="query heads of 24 and value heads of 16"):
        job.step(0)


@pytest.mark.parametrize("algorithm", ["sft", "ppo"])
def test_heads_of_two_sizes_run_on_the_cpu(tmp_path: Path, algorithm: str) -> None:
    cell = resolve(
        cell_of("tiny").axes | {"algorithm": algorithm},
        {
            "model": written(tmp_path / "mla", MLA),
            "prompt_tokens": 6,
            "response_tokens": 3,
            "batch_size": 2,
            "rollout_batch": 2,
        },
    )
    job = Job(cell, get_device("cpu"), lambda phase: None)
    job.load()
    assert torch.isfinite(torch.tensor(job.step(0)["loss"]))


def test_values_narrower_than_queries_are_those_of_plain_products() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 5, size, generator=draw) for size in (24, 24, 16))
    out, _ = efficient(torch.nn.Module(), query, key, value, None)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    scores = (query @ key.transpose(-2, -1) * 24**-0.5).masked_fill(later, float("-inf"))
    torch.testing.assert_close(out, (scores.softmax(-1) @ value).transpose(1, 2), rtol=1e-5, atol=1e-6)
