"""The tables of keys against the classes that have them: every field is there, in one kind, and no other."""

from __future__ import annotations

import dataclasses

import pytest

from vrambench.bench.plan.configs import FORMATS, torchtune_keys
from vrambench.bench.plan.configs.trl import MODEL, SCRIPT
from vrambench.methods.models.presets import PRESETS
from vrambench.methods.optimizers import OPTIMIZERS

TABLES = {one.name: one.table for one in FORMATS}


def fields(*kinds: type) -> set[str]:
    return {one.name for kind in kinds for one in dataclasses.fields(kind)}


def test_training_arguments() -> None:
    from transformers import TrainingArguments

    assert TABLES["transformers"].names == fields(TrainingArguments)


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "reward", "grpo", "rloo"])
def test_trl(algorithm: str) -> None:
    trl = pytest.importorskip("trl")
    from trl.scripts.grpo import GRPOScriptArguments
    from trl.scripts.rloo import RLOOScriptArguments
    from trl.scripts.utils import DatasetMixtureConfig

    config = {"sft": "SFT", "dpo": "DPO", "reward": "Reward", "grpo": "GRPO", "rloo": "RLOO"}[algorithm]
    script = {"grpo": GRPOScriptArguments, "rloo": RLOOScriptArguments}.get(algorithm, trl.ScriptArguments)
    own = fields(getattr(trl, f"{config}Config"), script, trl.ModelConfig, DatasetMixtureConfig)
    assert TABLES[f"trl-{algorithm}"].names ^ own == set()


def test_trl_s_models_and_scripts() -> None:
    trl = pytest.importorskip("trl")
    assert MODEL.names == fields(trl.ModelConfig)
    assert SCRIPT.names >= fields(trl.ScriptArguments)


def test_deepspeed_s_zero() -> None:
    """What offload_optimizer and offload_param hold is a class of its own each."""
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    inner = {"offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig, "offload_param": DeepSpeedZeroOffloadParamConfig}
    zero = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()} - inner.keys()
    zero |= {f"{section}.{name}" for section, kind in inner.items() for name in kind.model_fields}
    own = {key.partition(".")[2] for key in TABLES["deepspeed"].names if key.startswith("zero_optimization.")}
    assert own ^ zero == set()


def test_keys_of_other_versions_are_no_keys_of_this_one() -> None:
    for table in TABLES.values():
        assert not (table.renamed.keys() | table.old) & table.names
        assert set(table.renamed.values()) <= table.names | {"max_length"}


def test_what_torchtune_names_is_here() -> None:
    nearest = {preset for preset, _ in torchtune_keys.NEAREST.values()}
    assert {*torchtune_keys.MODELS.values(), *nearest} <= PRESETS.keys()
    assert set(torchtune_keys.OPTIMIZERS.values()) <= set(OPTIMIZERS)
    assert not torchtune_keys.MODELS.keys() & torchtune_keys.NEAREST.keys()


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("tokenizer.max_seq_length", "tokenizer.max_seq_len"),
        ("dataset.pack", "dataset.packed"),
        ("model.lora_r", "model.lora_rank"),
        ("lora_rank", "model.lora_rank"),
        ("gradient_accumulation", "gradient_accumulation_steps"),
        ("optimizer_in_bckwd", "optimizer_in_bwd"),
    ],
)
def test_a_slip_in_torchtune_s_sections_is_told_from_what_components_take(key: str, meant: str) -> None:
    table = TABLES["torchtune"]
    assert not table.knows(key)
    assert table.meant(key) == meant
    assert all(
        table.knows(one) for one in ("dataset.source", "dataset.path", "tokenizer.merges_file", "optimizer.foreach")
    )
