"""Cells: nothing is left open in them, and their ids depend on what the job does and on nothing else."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.methods.usual import PPO_AXES, SFT_AXES
from vrambench.methods.axes import AXES
from vrambench.methods.cell import Cell, conditional_fields, from_flat, option_namespaces, resolve
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.optimizers.galore import GaLoreOptions
from vrambench.methods.workload import FIELDS

GRPO_AXES = PPO_AXES | {"algorithm": "grpo"}

# Another value of every field.
OTHER: dict[str, Any] = {
    "model": "tiny-gpt2",
    "weights": "pretrained",
    "data": "book.txt",
    "batch_size": 3,
    "prompt_tokens": 1,
    "response_tokens": 299,
    "max_length": 300,
    "lengths": {7: 0.5, 9: 0.5},
    "pad_to_multiple_of": 8,
    "padding_free": True,
    "packing": "wrapped",
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "use_reentrant": True,
    "activation_offloading": True,
    "torch_empty_cache_steps": 2,
    "compute_dtype": "fp16",
    "autocast": "bf16",
    "fp32_modules": ["norms"],
    "attention": "math",
    "loss": "nll",
    "lora_r": 4,
    "lora_alpha": 4.5,
    "use_rslora": True,
    "lora_dropout": 0.1,
    "lora_target_modules": ["q_proj"],
    "lora_target_parameters": ["mlp.experts.down_proj"],
    "lora_modules_to_save": ["embed_tokens"],
    "adapter_dtype": "bf16",
    "adapter_weights": "saved:mine",
    "rollout_batch": 3,
    "group_size": 3,
    "micro_rollout_batch_size": 3,
    "value": "separate",
    "reference": "copy",
    "reference_dtype": "fp32",
    "reward": "own:score",
    "reward_model": "tiny-gpt2",
    "eval_batch_size": 3,
    "max_eval_samples": 5,
    "prediction_loss_only": False,
    "eval_accumulation_steps": 2,
    "save": "model",
    "save_as": "mine",
    "learning_rate": 0.5,
    "max_grad_norm": 0.5,
    "steps": 9,
    "warmup_steps": 9,
    "seed": 9,
    "budget": "9GiB",
    "reserved_elsewhere": "1GiB",
    "ref_reward_offload": True,
    "empty_cache_between_phases": True,
}


def unused(axes: dict[str, str]) -> set[str]:
    """Fields that only other axis values use."""
    return conditional_fields() - {name for axis in axes for name in AXES[axis].get(axes[axis]).fields}


def another(value: object) -> object:
    """A value of the same kind, valid wherever the options' are."""
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else 0.5


OTHER_OPTIONS: dict[str, dict[str, object]] = {
    space: next(
        {name: another(field.default)}
        for name, field in kind.model_fields.items()
        if isinstance(field.default, bool | int | float)
    )
    for space, kind in option_namespaces().items()
    if kind.model_fields and space != "ia3"
} | {"trl": {"beta": 0.5}, "ia3": {"feedforward_modules": ["up_proj"]}}


def test_an_id_is_the_same_in_every_version() -> None:
    """Files of earlier runs are found again by it, whatever fields came later."""
    cell = resolve(SFT_AXES | {"optimizer": "galore_adamw"}, {"model": "llama-2-7b", "galore": {"rank": 64}})
    assert cell.id == "31f03395ab6d"
    assert cell.name == "fp32 none galore_adamw none sft"


def test_what_is_said_as_by_default_changes_no_id() -> None:
    axes = SFT_AXES | {"optimizer": "galore_adamw"}
    options = GaLoreOptions().model_dump(mode="json")
    plain = resolve(axes, {"model": "llama-2-7b"})
    assert resolve(axes, {"model": "llama-2-7b", "batch_size": 1, "seed": 0, "galore": options}).id == plain.id
    assert resolve(axes, {"model": "llama-2-7b", "galore": options | {"rank": options["rank"] + 1}}).id != plain.id


def test_nothing_is_left_open() -> None:
    cell = resolve(PPO_AXES, {})
    assert cell.workload.attention == "flash"
    assert cell.workload.reference == "adapter_off"
    assert cell.workload.learning_rate == 3e-6
    assert cell.workload.reward_model is None
    assert set(cell.workload.options) == {"ppo", "adamw", "zero", "int8"}
    assert cell.workload.options["ppo"]["kl_coef"] == 0.05
    assert cell.values == {axis: AXES[axis].get(name) for axis, name in PPO_AXES.items()}


def test_what_no_axis_value_uses_is_empty() -> None:
    settings = {"lora_r": 4, "value": "separate", "compute_dtype": "fp16", "ppo": {"epochs": 1}, "eval_batch_size": 1}
    cell = resolve(SFT_AXES, settings)
    empty = {field for field in FIELDS if getattr(cell.workload, field) is None}
    assert (
        empty - {"eval_accumulation_steps", "lengths", "pad_to_multiple_of", "reserved_elsewhere", "save_as"}
        == unused(SFT_AXES)
        == conditional_fields() - set(AXES["algorithm"].get("sft").fields)
    )
    assert set(cell.workload.options) == {"adafactor"}


@pytest.mark.parametrize(
    ("precision", "settings", "kernel"),
    [
        ("fp32", {}, "efficient"),
        ("bf16", {}, "flash"),
        ("fp16", {}, "flash"),
        ("bf16_amp", {}, "flash"),
        ("fp16_amp", {}, "flash"),
        ("int8", {}, "flash"),
        ("nf4", {"compute_dtype": "fp16"}, "flash"),
        ("nf4", {"compute_dtype": "fp32"}, "efficient"),
        ("nf4", {"fp32_modules": "all"}, "efficient"),
        ("nf4", {"fp32_modules": "all", "autocast": "bf16"}, "flash"),
        ("fp32", {"autocast": "bf16", "fp32_modules": "all"}, "efficient"),
        ("bf16", {"fp32_modules": "all"}, "flash"),
        ("bf16", {"attention": "math"}, "math"),
        ("fp32", {"compute_dtype": "bf16"}, "efficient"),
    ],
)
def test_automatic_attention(precision: str, settings: dict[str, Any], kernel: str) -> None:
    assert resolve(SFT_AXES | {"precision": precision}, settings).workload.attention == kernel


@pytest.mark.parametrize(
    ("adapter", "asked", "reference"),
    [
        ("lora", "auto", "adapter_off"),
        ("none", "auto", "copy"),
        ("lora", "copy", "copy"),
        ("none", "none", "none"),
    ],
)
def test_automatic_reference(adapter: str, asked: str, reference: str) -> None:
    assert resolve(PPO_AXES | {"adapter": adapter}, {"reference": asked}).workload.reference == reference


@pytest.mark.parametrize(
    ("algorithm", "settings", "reference"),
    [
        ("grpo", {}, "none"),
        ("grpo", {"grpo": {"beta": 0.04}}, "adapter_off"),
        ("grpo", {"reference": "copy"}, "copy"),
        ("rloo", {}, "adapter_off"),
        ("rloo", {"rloo": {"beta": 0}}, "none"),
        ("reinforce", {}, "adapter_off"),
    ],
)
def test_what_has_no_part_in_the_loss_is_no_role(algorithm: str, settings: dict[str, Any], reference: str) -> None:
    assert resolve(PPO_AXES | {"algorithm": algorithm}, settings).workload.reference == reference


@pytest.mark.parametrize(
    ("algorithm", "size"), [("sft", None), ("ppo", None), ("reinforce", None), ("rloo", 2), ("grpo", 8)]
)
def test_each_algorithm_has_its_group_size(algorithm: str, size: int | None) -> None:
    axes = PPO_AXES | {"algorithm": algorithm}
    usual = resolve(axes, {})
    assert usual.workload.group_size == size
    assert resolve(axes, {"group_size": 3}).workload.group_size == (3 if size else None)
    assert usual.algorithm_value.sequences_per_prompt(usual.workload) == (size or 1)
    assert usual.id == resolve(axes, {"group_size": size}).id


@pytest.mark.parametrize(
    ("algorithm", "rate"),
    [("sft", 2e-5), ("ppo", 3e-6), ("remax", 1e-6), ("reinforce", 1e-6), ("rloo", 1e-6), ("grpo", 1e-6)],
)
def test_each_algorithm_has_its_learning_rate(algorithm: str, rate: float) -> None:
    axes = PPO_AXES | {"algorithm": algorithm}
    assert resolve(axes, {}).workload.learning_rate == rate
    assert resolve(axes, {"learning_rate": 1}).workload.learning_rate == 1.0


@pytest.mark.parametrize(
    ("axes", "one", "same"),
    [
        (SFT_AXES, {}, {"learning_rate": 2e-5}),
        (SFT_AXES, {}, {"attention": "efficient"}),
        (SFT_AXES, {}, {"max_grad_norm": 1}),
        (SFT_AXES, {}, {"budget": 24 * 2**30}),
        (SFT_AXES, {"budget": "24GB"}, {"budget": "24000 mb"}),
        (SFT_AXES, {}, {"lora_r": 3, "ppo": {"epochs": 9}, "rollout_batch": 3, "compute_dtype": "fp32"}),
        (SFT_AXES, {}, {"adafactor": {}}),
        (SFT_AXES, {}, {"adafactor": None}),
        (SFT_AXES, {}, {"adafactor": {"clip_threshold": 1}}),
        (PPO_AXES, {}, {"reference": "adapter_off"}),
        (PPO_AXES, {}, {"lora_alpha": 32}),
        (PPO_AXES, {}, {"reward_model": "tiny-gpt2"}),
        (PPO_AXES, {}, {"adamw": {"betas": [0.9, 0.999]}}),
        (PPO_AXES, {"lora_target_modules": ["a", "b"]}, {"lora_target_modules": ("a", "b")}),
        (PPO_AXES | {"adapter": "lora"}, {"lora_target_modules": ["a", "b"]}, {"lora_target_modules": "a, b"}),
        (PPO_AXES, {}, {"int8": {"threshold": 6}, "nf4": {"double_quant": True}}),
        (PPO_AXES, {}, {"lora_r": None, "rollout_batch": None, "learning_rate": None}),
        (PPO_AXES, {}, {"max_length": 9}),
        (SFT_AXES, {}, {"max_length": 512}),
        (SFT_AXES, {"prompt_tokens": 96, "response_tokens": 4000}, {"prompt_tokens": 96, "max_length": 4096}),
        (SFT_AXES, {"max_length": 256}, {"prompt_tokens": 128, "response_tokens": 128}),
        (SFT_AXES, {"prompt_tokens": 7}, {"prompt_tokens": 7, "response_tokens": 256, "max_length": 263}),
        (SFT_AXES, {}, {"lengths": None, "packing": "none", "padding_free": False}),
        (
            SFT_AXES,
            {"lengths": {8: 0.5, 4: 0.5}},
            {"lengths": {"4": 0.5, "8": 0.5}, "max_length": 9, "prompt_tokens": 1, "response_tokens": 7},
        ),
        (SFT_AXES, {"lengths": {4: 0.5, 6: 0.5}}, {"lengths": {4: 0.5, 7: 0.25, 9: 0.25}, "max_length": 6}),
    ],
)
def test_two_ways_to_ask_for_the_same_work_are_one_cell(
    axes: dict[str, str], one: dict[str, Any], same: dict[str, Any]
) -> None:
    assert resolve(axes, one) == resolve(axes, same)
    assert resolve(axes, one).id == resolve(axes, same).id


def test_the_order_of_settings_does_not_matter() -> None:
    settings = OTHER | OTHER_OPTIONS
    ids = set()
    for seed in range(5):
        shuffled = list(settings.items())
        random.Random(seed).shuffle(shuffled)
        ids.add(resolve(dict(reversed(PPO_AXES.items())), dict(shuffled)).id)
    assert len(ids) == 1


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"ppo": {"epochs": 1}}, {"galore": {"rank": 1}}])
def test_what_is_nearly_what_was_said_before_is_checked_anew(settings: dict[str, Any]) -> None:
    """Python takes True, 1 and 1.0 for the same."""
    ((name, value),) = settings.items()
    resolve(PPO_AXES, settings)
    for wrong in (True, 1.5):
        asked = {name: dict.fromkeys(value, wrong) if isinstance(value, dict) else wrong}
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=f"{name}.*: {wrong}".replace("True", "true")):
                resolve(PPO_AXES, asked)


def test_a_file_of_lengths_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "lengths.txt"
    for tokens in (7, 9):
        path.write_text(f"{tokens}\n")
        assert resolve(SFT_AXES, {"lengths": str(path)}).workload.lengths == {tokens: 1.0}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_that_is_used_changes_the_id(field: str) -> None:
    plain = {"reward": "model", "eval_batch_size": 2}
    for axes in (PPO_AXES, SFT_AXES, GRPO_AXES):
        changed = resolve(axes, plain).id != resolve(axes, plain | {field: OTHER[field]}).id
        assert changed == (field not in unused(axes))
    assert field not in unused(PPO_AXES) & unused(SFT_AXES) & unused(GRPO_AXES)


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_changes_the_id(axis: str) -> None:
    ids = {resolve(SFT_AXES | {axis: name}, {}).id for name in AXES[axis]}
    assert len(ids) == len(list(AXES[axis]))


@pytest.mark.parametrize("namespace", option_namespaces())
def test_every_namespace_changes_the_id_where_it_is_used(namespace: str) -> None:
    settings = {namespace: OTHER_OPTIONS[namespace]}
    for axis, registry in AXES.items():
        for name, value in registry.values().items():
            axes = {"optimizer": "galore_adamw"} | {axis: name}
            axes = {"precision": "fp32", "adapter": "none", "offload": "none", "algorithm": "sft"} | axes
            changed = resolve(axes, {}).id != resolve(axes, settings).id
            used = {AXES[a].get(n).options for a, n in axes.items()}
            assert changed == any(kind is not None and kind.namespace == namespace for kind in used), (axis, value)


VALUES = {axis: list(registry) for axis, registry in AXES.items()}
VALUES["optimizer"] = list({value.options: name for name, value in AXES["optimizer"].values().items()}.values())
"""By axis; of optimizers, one of each kind of options."""


@pytest.mark.parametrize(("one", "other"), itertools.combinations(AXES, 2))
def test_a_cell_comes_back_from_its_file(one: str, other: str) -> None:
    """Whichever two values it has."""
    for values in itertools.product(VALUES[one], VALUES[other]):
        axes = PPO_AXES | dict(zip((one, other), values, strict=True))
        for settings in ({}, OTHER | OTHER_OPTIONS | {"reward": "model"}):
            cell = resolve(axes, settings)
            read = from_flat(json.loads(json.dumps(cell.flat())))
            assert read == cell
            assert read.id == cell.id
            assert read.workload.of(GaLoreOptions) == cell.workload.of(GaLoreOptions)


def test_a_cell_of_a_file_can_be_given_other_axis_values() -> None:
    """What the first cell left empty gets its default."""
    flat = resolve(SFT_AXES, {"batch_size": 3}).flat()
    assert from_flat(flat | {"algorithm": "ppo", "adapter": "lora", "learning_rate": None}) == resolve(
        SFT_AXES | {"algorithm": "ppo", "adapter": "lora"}, {"batch_size": 3, "attention": "efficient"}
    )


def test_a_changed_copy_has_an_id_of_its_own() -> None:
    cell = resolve(SFT_AXES, {"batch_size": 3})
    work = cell.workload.model_copy(update={"batch_size": 4})
    assert cell.id != cell.model_copy(update={"workload": work}).id == resolve(SFT_AXES, {"batch_size": 4}).id


def test_a_cell_is_frozen(cell: Callable[..., Cell]) -> None:
    made = cell()
    with pytest.raises(ValueError, match="frozen"):
        made.precision = "bf16"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        made.workload.steps = 3


def test_an_axis_that_is_lacking_or_unknown_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^axes: adapter, optimizer, offload, algorithm must be named too$"):
        resolve({"precision": "bf16"}, {})
    with pytest.raises(ConfigurationError, match=r"^axes: 'precison' is not one of .*; did you mean 'precision'\?$"):
        resolve(SFT_AXES | {"precison": "bf16"}, {})


@pytest.mark.parametrize(("model", "targets"), [("llama-2-7b", "all-linear"), ("gpt2", "auto")])
def test_a_result_of_before_has_the_adapter_that_it_had(model: str, targets: str) -> None:
    """`auto` was all linear layers of Llama and its kin, before parameters could be named."""
    flat = resolve(SFT_AXES | {"adapter": "lora"}, {"model": model}).flat()
    assert from_flat(flat).workload.lora_target_modules == "auto"
    del flat["lora_target_parameters"]
    assert from_flat(flat).workload.lora_target_modules == targets
