"""Other work than the usual, on the CPU and on the simulated device: pairs, sequences of several lengths, and what generates."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench.predict.test_equality import differences, peak_of_the_same
from tests.bench.predict.traces import traced
from vrambench.methods.cell import resolve
from vrambench.methods.device import get_device
from vrambench.methods.models.losses import LOSSES

AXES = {"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
# Few enough sequences that the simulated device leaves none out.
EVALUATION: dict[str, Any] = {"eval_batch_size": 2, "max_eval_samples": 3}


PHASES: tuple[tuple[dict[str, str], dict[str, Any]], ...] = (
    ({"adapter": "none"}, EVALUATION | {"save": "model"}),
    ({}, EVALUATION | {"save": "model"}),
    ({"precision": "fp32"}, EVALUATION | {"prediction_loss_only": False, "max_eval_samples": 7}),
    ({"precision": "bf16_amp"}, EVALUATION | {"prediction_loss_only": False, "gradient_checkpointing": True}),
    ({"precision": "nf4"}, EVALUATION | {"eval_accumulation_steps": 1, "save": "merged"}),
    ({"precision": "int8"}, EVALUATION | {"save": "merged"}),
    ({}, {"save": "merged"}),
    ({"adapter": "dora"}, {"save": "merged"}),
)


@pytest.mark.parametrize(("axes", "more"), PHASES, ids=lambda given: "-".join(map(str, given.values())))
def test_evaluating_and_saving_are_simulated(axes: dict[str, str], more: dict[str, Any]) -> None:
    """Known differences: nf4's table of 16 values is read there and computed here, and int8's CPU code is another."""
    cell = resolve(
        AXES | axes, {"model": "tiny", "prompt_tokens": 8, "max_length": 16, "batch_size": 2, "lora_r": 4} | more
    )
    real = traced(cell, get_device("cpu"))
    simulated = traced(cell, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    assert simulated.peak_bytes() == pytest.approx(real.peak_bytes(), rel=0.05 if cell.precision == "int8" else 0.002)
    for phase in ("evaluate", "save"):
        peaks = [
            max((live for event, live in trace.live() if event.place.phase == phase), default=0)
            for trace in (real, simulated)
        ]
        assert peaks[1] == pytest.approx(peaks[0], rel=0.05 if cell.precision == "int8" else 0.002)
        assert bool(peaks[0]) == (("eval_batch_size" if phase == "evaluate" else "save") in more)
    if cell.precision != "int8":
        assert not differences(cell, real, simulated)


OF_PAIRS: tuple[tuple[dict[str, str], dict[str, Any]], ...] = (
    ({"algorithm": "dpo", "adapter": "none"}, {"reference_dtype": "fp32", "autocast": "bf16", "loss": "nll"}),
    ({"algorithm": "dpo", "adapter": "none"}, {"reference": "precomputed", "loss": "nll"}),
    ({"algorithm": "dpo"}, {"reference": "precomputed", "gradient_accumulation_steps": 2} | EVALUATION),
    ({"algorithm": "dpo"}, {"reference": "precomputed", "attention": "sdpa"}),
    ({"algorithm": "dpo"}, {"reference": "precomputed", "attention": "eager"}),
    ({"algorithm": "dpo"}, EVALUATION | {"save": "merged", "gradient_checkpointing": True}),
    ({"algorithm": "dpo"}, {"dpo": {"concatenated": False}, "loss": "nll"}),
    ({"algorithm": "dpo"}, {"dpo": {"loss_type": "simpo"}, "gradient_accumulation_steps": 2}),
    ({"algorithm": "dpo", "precision": "fp32"}, {"dpo": {"loss_type": "orpo"}, "loss": "chunked_nll"}),
    ({"algorithm": "reward"}, EVALUATION | {"save": "model"}),
    (
        {"algorithm": "reward", "precision": "nf4"},
        {"save": "merged", "autocast": "bf16", "gradient_checkpointing": True},
    ),
    (
        {"algorithm": "reward", "adapter": "none", "precision": "fp32"},
        {"model": "tiny-gpt2", "gradient_accumulation_steps": 2},
    ),
    ({"algorithm": "reward", "precision": "fp32"}, {"model": "tiny-opt", "rm": {"center_rewards_coefficient": 0.01}}),
)


@pytest.mark.parametrize(("axes", "more"), OF_PAIRS, ids=lambda given: "-".join(map(str, given.values())))
def test_what_learns_from_pairs_is_simulated(axes: dict[str, str], more: dict[str, Any]) -> None:
    """A merged nf4 layer's table of 16 values is read there and computed here."""
    cell = resolve(
        AXES | axes, {"model": "tiny", "max_length": 24, "prompt_tokens": 8, "batch_size": 2, "lora_r": 4} | more
    )
    real = traced(cell, get_device("cpu"))
    simulated = traced(cell, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    assert simulated.peak_bytes() == pytest.approx(real.peak_bytes(), rel=0.002)
    assert peak_of_the_same(simulated) == pytest.approx(peak_of_the_same(real), rel=0.0002)
    assert not differences(cell, real, simulated)
    if cell.workload.reference == "precomputed":
        for trace in (real, simulated):
            assert {event.place.phase for event in trace.events} >= {"load", "precompute", "learn"}


@pytest.mark.parametrize("attention", ["sdpa", "flash", "efficient", "flash_attention_2"])
def test_a_reference_is_precomputed_by_the_kernel_that_trains(attention: str) -> None:
    axes = AXES | {"algorithm": "dpo", "precision": "bf16"}
    work = {"model": "tiny", "max_length": 24, "prompt_tokens": 8, "reference": "precomputed", "attention": attention}
    kernels: dict[str | None, set[str]] = {"precompute": set(), "learn": set()}
    for event in traced(resolve(axes, work), get_device("meta")).events:
        if "attention" in event.operator and "backward" not in event.operator:
            kernels.setdefault(event.place.phase, set()).add(event.operator)
    assert kernels["precompute"] == kernels["learn"]
    assert len(kernels["learn"]) == 1


# Multiples of eight: a GPU's kernel copies a mask of other widths. Evaluated are few enough sequences that all are simulated.
LENGTHS: dict[str, Any] = {"model": "tiny", "batch_size": 3, "lora_r": 4, "lengths": {16: 0.5, 48: 0.3, 104: 0.2}}


PADDED = {"padded": {}, "to a multiple": {"pad_to_multiple_of": 32}}


FLAT = {
    "padding-free": {"padding_free": True, "pad_to_multiple_of": 32},
    "bfd": {"packing": "bfd", "max_length": 120},
    "wrapped": {"packing": "wrapped", "max_length": 120},
}


OF_LENGTHS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    **{
        f"{name} {attention}": ({}, more | {"attention": attention})
        for name, more in (PADDED | FLAT).items()
        for attention in ("sdpa", "efficient", "eager")
    },
    **{f"padded {loss}": ({}, {"loss": loss}) for loss in LOSSES},
    **{f"bfd {loss}": ({}, FLAT["bfd"] | {"loss": loss}) for loss in LOSSES},
    "padded full bf16, accumulated": ({"adapter": "none"}, {"gradient_accumulation_steps": 2}),
    "padded checkpointed": ({}, {"gradient_checkpointing": True}),
    "bfd checkpointed under autocast": ({"precision": "bf16_amp"}, FLAT["bfd"] | {"gradient_checkpointing": True}),
    "padded evaluated": (
        {"precision": "bf16_amp"},
        EVALUATION | {"prediction_loss_only": False, "max_eval_samples": 5},
    ),
    "bfd evaluated": ({}, FLAT["bfd"] | EVALUATION),
}


@pytest.mark.parametrize(("axes", "more"), OF_LENGTHS.values(), ids=OF_LENGTHS)
def test_batches_of_several_lengths_are_simulated(axes: dict[str, str], more: dict[str, Any]) -> None:
    cell = resolve(AXES | axes, LENGTHS | more)
    real = traced(cell, get_device("cpu"))
    simulated = traced(cell, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    assert simulated.peak_bytes() == pytest.approx(real.peak_bytes(), rel=0.002)
    assert not differences(cell, real, simulated)


ROLLOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "one update": ("grpo", {"gradient_accumulation_steps": 2}),
    "several updates": ("grpo", {"batch_size": 4, "grpo": {"num_iterations": 2}}),
    "a reference": ("grpo", {"adapter": "none", "grpo": {"beta": 0.1}}),
    "ratios of responses": (
        "grpo",
        {"grpo": {"importance_sampling_level": "sequence", "loss_type": "grpo", "delta": 3}},
    ),
    "another scale": ("grpo", {"grpo": {"scale_rewards": "batch", "loss_type": "dr_grpo", "top_p": 0.9}}),
    "no reference": ("rloo", {"rloo": {"beta": 0}}),
    "clipped and normalised": ("rloo", {"rloo": {"reward_clip_range": [0, 1], "normalize_advantages": True}}),
    "k3 in the loss": ("reinforce", {"reinforce": {"kl_estimator": "k3", "use_kl_loss": True}}),
    "whitened": ("reinforce", {"reinforce": {"kl_estimator": "k2", "whiten_advantages": True}}),
    "ppo's": ("ppo", {"ppo": {"epochs": 1, "use_kl_loss": True, "kl_estimator": "k3", "clip_ratio_c": 3}}),
    "ppo's rewards": ("ppo", {"ppo": {"epochs": 1, "whiten_rewards": True}}),
    "remax's": ("remax", {"remax": {"use_kl_loss": True, "kl_estimator": "k3", "whiten_advantages": True}}),
    "remax's repository": ("remax", {"remax": {"advantage": "repository", "kl_estimator": "k2"}}),
    **{
        f"{name}, in batches": (name, {"micro_rollout_batch_size": 2, "ppo": {"epochs": 1}})
        for name in ("ppo", "remax", "reinforce", "rloo", "grpo")
    },
}


SEVERAL = {"batch_size", "gradient_accumulation_steps", "micro_rollout_batch_size"}
"""Fields that say how a rollout is cut into several parts; all else is shown by one of two samples."""


@pytest.mark.parametrize(("algorithm", "more"), ROLLOUTS.values(), ids=ROLLOUTS)
def test_options_of_algorithms_that_generate_are_simulated(algorithm: str, more: dict[str, Any]) -> None:
    work: dict[str, Any] = {"model": "tiny", "prompt_tokens": 16, "response_tokens": 2, "batch_size": 2, "lora_r": 4}
    each = 1 if algorithm in ("ppo", "remax", "reinforce") else 2
    axes = AXES | {"algorithm": algorithm} | ({"adapter": more["adapter"]} if "adapter" in more else {})
    settings = {name: value for name, value in more.items() if name not in axes}
    samples = 4 if SEVERAL & more.keys() else 2
    cell = resolve(axes, work | {"rollout_batch": samples // each, "group_size": 2} | settings)
    real = traced(cell, get_device("cpu"))
    simulated = traced(cell, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    assert simulated.peak_bytes() == pytest.approx(real.peak_bytes(), rel=0.002)
    assert not differences(cell, real, simulated)


LAYERS: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


KINDS: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]},
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "mamba_d_state": 16,
        "mamba_chunk_size": 16,
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["padded", "bfd"])
def test_layers_that_read_masks_in_their_own_way_are_simulated(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind} | LAYERS | KINDS[kind]))
    cell = resolve(AXES | {"adapter": "none"}, LENGTHS | (PADDED | FLAT)[name] | {"model": str(tmp_path)})
    real = traced(cell, get_device("cpu"))
    simulated = traced(cell, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    assert simulated.peak_bytes() == pytest.approx(real.peak_bytes(), rel=0.002)
    assert not differences(cell, real, simulated)
