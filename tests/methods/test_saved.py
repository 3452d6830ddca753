"""Cells that start from what others have saved: the three steps of RLHF on a quantised model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vrambench.methods.cell import Cell
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job

MakeCell = Callable[..., Cell]
LORA = {"adapter": "lora", "lora_r": 4, "lora_target_modules": "all-linear"}
REVIEWS = {"data": "reviews", "prompt_tokens": 8, "response_tokens": 8, "batch_size": 8, "learning_rate": 1e-2}


@pytest.fixture
def begun(cell: MakeCell, tmp_path: Path) -> Callable[..., Job]:
    """A loaded job that saves into the test's folder, and reads there."""

    def make(**said: Any) -> Job:
        job = Job(cell(**REVIEWS | said), get_device("cpu"), saved=tmp_path)
        job.load()
        return job

    return make


def trained(job: Job, steps: int = 3) -> Job:
    for index in range(steps):
        job.step(index)
    job.save()
    return job


def logprobs(job: Job, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scores: torch.Tensor = job.roles["policy"].module(tokens, 4).logprobs
    return scores


@pytest.mark.parametrize("precision", ["fp32", "int8", "nf4"])
def test_with_its_adapter_off_the_policy_of_step_three_is_what_step_one_made(
    begun: Callable[..., Job], precision: str
) -> None:
    tokens = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(0))
    trained(begun(save="model", save_as="base"))
    first = begun(precision=precision, **LORA, weights="saved:base", save="model", save_as="sft")
    before = logprobs(first, tokens)
    taught = logprobs(trained(first), tokens)
    assert (taught - before).abs().max() > 0.1, "the adapter has learnt something"

    merging = begun(
        precision="fp32",
        **LORA,
        algorithm="merge",
        weights="saved:base",
        adapter_weights="saved:sft",
        save="merged",
        save_as="merged",
    )
    whole = logprobs(merging, tokens)
    trained(merging, steps=1)
    last = begun(
        precision=precision, **LORA, algorithm="ppo", weights="saved:merged", reference="adapter_off", reward="reviews",
        rollout_batch=8,
    )  # fmt: skip
    last.step(0)
    with torch.no_grad():
        reference = last.trainer.reference.logprobs(tokens, 4)  # type: ignore[attr-defined]
    assert (logprobs(last, tokens) - reference).abs().max() > 1e-4, "the policy has moved on"
    plain = begun(precision=precision, **LORA, weights="saved:merged")
    assert torch.equal(reference, logprobs(plain, tokens)), "the merged weights as they are read, to the bit"
    if precision == "fp32":
        torch.testing.assert_close(reference, taught, atol=1e-4, rtol=0)
        torch.testing.assert_close(whole, taught, atol=1e-4, rtol=0)
    else:  # quantised once more: nearer to what was taught than to what was before
        assert (reference - taught).norm() < 0.5 * (before - taught).norm()


def test_what_nobody_has_saved_is_told(begun: Callable[..., Job]) -> None:
    trained(begun(save="model", save_as="merged"), steps=1)
    with pytest.raises(
        ConfigurationError, match=r"weights: nothing is saved as 'merge' in this run; did you mean 'merged'\?"
    ):
        begun(weights="saved:merge")
    with pytest.raises(
        ConfigurationError, match=r"adapter_weights: 'merged' cannot be read|is no adapter of this cell's kind"
    ):
        begun(**LORA, adapter_weights="saved:merged")


def test_an_adapter_of_another_kind_is_told(begun: Callable[..., Job]) -> None:
    trained(begun(**LORA, save="model", save_as="sft"), steps=1)
    with pytest.raises(ConfigurationError, match=r"adapter_weights: "):
        begun(**LORA | {"lora_r": 8}, adapter_weights="saved:sft")
    with pytest.raises(ConfigurationError, match=r"is no adapter of this cell's kind \(.*k_proj"):
        begun(**LORA | {"lora_target_modules": ["q_proj"]}, adapter_weights="saved:sft")


def test_what_is_saved_again_takes_the_place_of_what_was(begun: Callable[..., Job], tmp_path: Path) -> None:
    trained(begun(save="model", save_as="base"), steps=1)
    (tmp_path / "base" / "more").write_text("of before")
    trained(begun(save="model", save_as="base"), steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert not (tmp_path / "base" / "more").exists()


@pytest.mark.parametrize("value", ["saved:", "saved:a/b", "saved:..", "pretraned", "merged"])
def test_a_wrong_name_is_told(cell: MakeCell, value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"weights: '.*': must be "):
        cell(weights=value)
