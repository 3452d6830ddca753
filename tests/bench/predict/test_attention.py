"""How models attend, on the CPU and on the simulated device: the same allocations, the same live bytes as transformers' own, and
on a GPU what each kernel keeps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.bench.predict.traces import traced
from vrambench.bench.measure.meters.storages import StorageTrace
from vrambench.bench.predict.simulate import Simulator
from vrambench.bench.predict.tracing.trace import ALLOC, Trace
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.models.load import load_model

AXES = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "num_hidden_layers": 4, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "mistral": SMALL | {"model_type": "mistral", "sliding_window": 16},
    "gemma3_text": SMALL | {"model_type": "gemma3_text", "sliding_window": 16, "num_hidden_layers": 6},
    "gpt_oss": SMALL | {"model_type": "gpt_oss", "sliding_window": 16, "num_local_experts": 2, "num_experts_per_tok": 2},
    "llama": SMALL | {"model_type": "llama"},
    "bloom": {"model_type": "bloom", "vocab_size": 128, "hidden_size": 64, "n_layer": 4, "n_head": 4},
}  # fmt: skip
SMALLEST = 64
"""Bytes: single numbers, and a few in a row, are made differently here and there."""


def cell_of(folder: Path, model: str, **said: Any) -> Cell:
    folder = folder / model
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODELS[model]))
    axes = {axis: said.pop(axis, usual) for axis, usual in AXES.items()}
    work = {
        "batch_size": 2,
        "rollout_batch": 2,
        "steps": 1,
        "warmup_steps": 0,
    } | ({} if "lengths" in said else {"prompt_tokens": 24, "response_tokens": 8})
    return resolve(axes, {"model": str(folder)} | work | said)


def sizes(trace: Trace) -> list[int]:
    return sorted(
        event.nbytes
        for event in trace.events
        if event.kind == ALLOC
        and event.nbytes >= SMALLEST
        and event.place.step is not None
        and "scaled_dot" not in event.operator
    )


@pytest.mark.parametrize(
    ("model", "kernel"),
    [
        ("mistral", "efficient"), ("mistral", "sdpa"), ("mistral", "eager"), ("gemma3_text", "sdpa"), ("gemma3_text", "eager"),
        ("llama", "sdpa"), ("llama", "eager"), ("bloom", "eager"),
    ],
)  # fmt: skip
def test_the_simulated_job_attends_as_the_real_one(tmp_path: Path, model: str, kernel: str) -> None:
    # The CPU's layer norm keeps sums in half precision, and CUDA's in fp32.
    cell = cell_of(tmp_path, model, attention=kernel, precision="fp32" if model == "bloom" else "bf16")
    real = traced(cell, get_device("cpu"))
    simulated = traced(cell, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    assert abs(simulated.peak_bytes() - real.peak_bytes()) <= 0.002 * real.peak_bytes()
    assert sizes(simulated) == sizes(real)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("model", MODELS)
def test_transformers_own_names_are_transformers_own_attention(tmp_path: Path, model: str, kernel: str) -> None:
    cell = cell_of(tmp_path, model, attention=kernel, precision="fp32")
    if (model, kernel) == ("gpt_oss", "sdpa"):
        pytest.skip("it has sinks")
    kernel = cell.workload.attention
    ours = load_model(cell.setup, get_device("cpu"), seed=0)
    config = AutoConfig.from_pretrained(cell.workload.model)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation=kernel, dtype=torch.float32)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(0, 128, (2, 32), generator=torch.Generator().manual_seed(0))
    logits, peaks = [], []
    for made in 2 * (ours, theirs.train()):  # storages are known from the first time on
        made.zero_grad()
        with get_device("cpu").attention(kernel), StorageTrace("cpu") as trace:
            out = made(input_ids=tokens, use_cache=False).logits
            out.square().mean().backward()
        logits.append(out.tolist())
        del out
        peaks.append(trace.peak_bytes)
    assert logits[0] == logits[1]
    assert peaks[2] == peaks[3] > 0


def peak(folder: Path, model: str, kernel: str, **said: Any) -> int:
    """Of live bytes in the steps, on the simulated device."""
    return Simulator().run(cell_of(folder, model, attention=kernel, **said)).trace.peak_bytes()


LONG: dict[str, Any] = {"prompt_tokens": 1024, "response_tokens": 1024, "batch_size": 1}


def test_a_window_is_no_bytes_to_flash_and_a_mask_to_sdpa(tmp_path: Path) -> None:
    peaks = {
        (model, kernel): peak(tmp_path, model, kernel, **LONG)
        for model in ("llama", "mistral")
        for kernel in ("flash", "flash_attention_2", "sdpa", "efficient", "eager")
    }
    square = 2048**2
    for kernel in ("flash", "flash_attention_2"):
        assert abs(peaks["mistral", kernel] - peaks["llama", kernel]) < square / 4
    assert abs(peaks["llama", "sdpa"] - peaks["llama", "flash"]) < square / 4
    assert abs(peaks["llama", "flash_attention_2"] - peaks["llama", "flash"]) < square / 4
    for kernel in ("sdpa", "efficient"):
        # One mask of bool for all, and of each layer's its own in 16 bits.
        more = peaks["mistral", kernel] - peaks["llama", kernel]
        assert 4 * 2 * square <= more < (1 + 4 * 2 + 3) * square
    # Scores and weights of every head, in bf16 and, for the softmax, in fp32.
    assert peaks["llama", "eager"] > peaks["llama", "sdpa"] + 4 * 4 * 2 * square


@pytest.mark.parametrize("kernel", ["flash", "sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize("algorithm", ["ppo", "remax"])
def test_windows_are_generated_within_on_the_simulated_device(tmp_path: Path, kernel: str, algorithm: str) -> None:
    cell = cell_of(tmp_path, "gemma3_text", attention=kernel, algorithm=algorithm, response_tokens=40)
    trace = Simulator().run(cell).trace
    caches = {ident for ident, owner in trace.owners.items() if owner.kind == "kv_cache"}
    kept = [event for event in trace.events if event.kind == ALLOC and event.ident in caches]
    by_size = {nbytes: sum(event.nbytes == nbytes for event in kept) for nbytes in {event.nbytes for event in kept}}
    one_token = 2 * 2 * 16 * 2  # sequences, heads, size, bytes
    assert by_size.keys() == {16 * one_token, 64 * one_token}
    assert by_size[16 * one_token] == 5 * by_size[64 * one_token]


@pytest.mark.parametrize(
    "said", [{}, {"lengths": {512: 0.5, 2048: 0.5}}, {"lengths": {512: 1}, "packing": "bfd", "max_length": 2048}]
)
def test_flash_attention_goes_with_checkpointing(tmp_path: Path, said: dict[str, Any]) -> None:
    """Which gives what it saved once, and no more."""
    work = {"batch_size": 2} | (said or {"prompt_tokens": 1024, "response_tokens": 1024})
    whole, less = (
        peak(tmp_path, "llama", "flash_attention_2", **work, gradient_checkpointing=checkpointed)
        for checkpointed in (False, True)
    )
    assert 0 < less < whole
