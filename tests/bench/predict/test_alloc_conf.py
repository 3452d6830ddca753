"""Predictions rest on the allocator's options: those of the environment, or those that are given; and say which."""

from __future__ import annotations

from typing import Any

import pytest

from vrambench.bench.predict.alloc_conf import read
from vrambench.bench.predict.fit import fit
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.many import predict_all
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.errors import ConfigurationError

MIB = 2**20
EXPANDABLE = "expandable_segments:True"


def gpt2(**workload: Any) -> Cell:
    """Full fine-tuning with 834 MiB cached at the peak that no request fits into."""
    axes = {"precision": "fp32", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    work = {
        "model": "gpt2",
        "gradient_checkpointing": False,
        "batch_size": 6,
        "prompt_tokens": 700,
        "response_tokens": 3,
    }
    return resolve(axes, work | workload)


def note(forecast: Forecast) -> str:
    (found,) = (text for text in forecast.notes if text.startswith("allocator: "))
    return found


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.slow
@pytest.mark.usefixtures("predicted_here")
def test_the_environments_options_are_followed_and_told(plain: pytest.MonkeyPatch) -> None:
    cell = gpt2()
    usual = Predictor().forecast(cell)
    assert (usual.alloc_conf, note(usual)) == ("", "allocator: PyTorch's defaults")
    plain.setenv("PYTORCH_ALLOC_CONF", EXPANDABLE)
    expanded = fit(cell).forecast
    assert expanded.alloc_conf == EXPANDABLE
    saved = usual.memory.reserved_bytes - expanded.memory.reserved_bytes
    assert saved > 700 * MIB
    assert (
        note(expanded) == f"allocator: {EXPANDABLE}, {saved / MIB:,.0f} MiB less reserved than with PyTorch's defaults"
    )
    assert expanded.memory.requested_bytes == usual.memory.requested_bytes
    (outcome,) = predict_all([cell]).values()
    assert outcome.forecast is not None
    assert outcome.forecast.memory == expanded.memory
    assert fit(cell, alloc_conf="").forecast.memory == usual.memory, "what is given comes before the environment"


def test_an_option_that_changes_nothing_says_so(plain: pytest.MonkeyPatch) -> None:
    found = Predictor("large_segment_size_mb:22,pinned_use_background_threads:True").forecast(gpt2(model="tiny"))
    assert note(found).startswith("allocator: large_segment_size_mb:22")
    assert "PYTORCH_ALLOC_CONF: pinned_use_background_threads moves no device memory" in found.notes
    same = Predictor("max_split_size_mb:4096").forecast(gpt2(model="tiny"))
    assert note(same) == "allocator: max_split_size_mb:4096, as with PyTorch's defaults"


def test_an_option_that_the_model_cannot_follow_is_told() -> None:
    conf = read("per_process_memory_fraction:0.5,garbage_collection_threshold:0.8")
    assert [text.split(":")[1].split()[0] for text in conf.notes] == ["the", "garbage_collection_threshold"]
    assert conf.settings.text() == ""
    Predictor("garbage_collection_threshold:0.8").forecast(gpt2(model="tiny"), 2**20)


@pytest.mark.parametrize("wrong", ["backend:cudaMallocAsync", "expandable_segment:True", "max_split_size_mb"])
def test_a_mistake_is_one_sentence_before_anything_is_predicted(wrong: str, plain: pytest.MonkeyPatch) -> None:
    plain.setenv("PYTORCH_ALLOC_CONF", wrong)
    for ask in (Predictor, lambda: predict_all([gpt2()]), lambda: fit(gpt2())):
        with pytest.raises(ConfigurationError, match=r"^PYTORCH_ALLOC_CONF"):
            ask()


def test_a_mistake_names_where_it_was_written(plain: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"^--alloc-conf max_split_size_mb: 'abc' is not"):
        Predictor("max_split_size_mb:abc")
    plain.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:Treu")
    with pytest.raises(ConfigurationError, match=r"^PYTORCH_CUDA_ALLOC_CONF expandable_segments: 'Treu' is not"):
        Predictor()
