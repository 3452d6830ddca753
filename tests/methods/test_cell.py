"""Cells: nothing is left open in them, and their ids depend on what the job does and on nothing else."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrambench.methods.axes import AXES
from vrambench.methods.cards import CAPACITIES
from vrambench.methods.cell import Cell, conditional_fields, from_flat, option_namespaces, resolve
from vrambench.methods.errors import ConfigurationError, UnknownValue, shown
from vrambench.methods.optimizers import OPTIMIZERS
from vrambench.methods.optimizers.galore import GaLoreOptions
from vrambench.methods.workload import AXIS_NAMES, FIELDS, Workload, parse_size

PPO_AXES = {
    "precision": "int8",
    "adapter": "lora",
    "optimizer": "adamw_torch",
    "offload": "zero2_optimizer",
    "algorithm": "ppo",
}
SFT_AXES = {
    "precision": "fp32",
    "adapter": "none",
    "optimizer": "adafactor",
    "offload": "none",
    "algorithm": "sft",
}

# Another value of every field. PPO_AXES with a reward model use all of them.
OTHER: dict[str, Any] = {
    "model": "tiny-gpt2",
    "weights": "pretrained",
    "data": "book.txt",
    "batch_size": 3,
    "prompt_tokens": 7,
    "response_tokens": 7,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "compute_dtype": "fp16",
    "attention": "math",
    "lora_r": 4,
    "lora_alpha": 4.5,
    "lora_dropout": 0.1,
    "lora_target_modules": ["q_proj"],
    "adapter_dtype": "bf16",
    "rollout_batch": 3,
    "value": "separate",
    "reference": "copy",
    "reward": "own:score",
    "reward_model": "tiny-gpt2",
    "learning_rate": 0.5,
    "max_grad_norm": 0.5,
    "steps": 9,
    "warmup_steps": 9,
    "seed": 9,
    "budget": "9GiB",
}


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
}


def test_an_id_is_the_same_in_every_version() -> None:
    """Files of earlier runs are found again by it: it may change only with a field that is new or gone."""
    cell = resolve(SFT_AXES | {"optimizer": "galore_adamw"}, {"model": "llama-2-7b", "galore": {"rank": 64}})
    assert cell.id == "fc711282069e"
    assert cell.name == "fp32 none galore_adamw none sft"


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
    cell = resolve(SFT_AXES, {"lora_r": 4, "value": "separate", "compute_dtype": "fp16", "ppo": {"epochs": 1}})
    empty = {field for field in FIELDS if getattr(cell.workload, field) is None}
    assert empty == conditional_fields()
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


@pytest.mark.parametrize(("algorithm", "rate"), [("sft", 2e-5), ("ppo", 3e-6), ("remax", 1e-6)])
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


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_that_is_used_changes_the_id(field: str) -> None:
    plain = {"reward": "model"}
    assert resolve(PPO_AXES, plain).id != resolve(PPO_AXES, plain | {field: OTHER[field]}).id
    used = field not in conditional_fields()
    assert (resolve(SFT_AXES, {}).id != resolve(SFT_AXES, {field: OTHER[field]}).id) == used


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


@pytest.mark.parametrize("precision", list(AXES["precision"]))
@pytest.mark.parametrize("adapter", list(AXES["adapter"]))
def test_a_cell_comes_back_from_its_file(precision: str, adapter: str) -> None:
    names = itertools.product([precision], [adapter], AXES["optimizer"], AXES["offload"], AXES["algorithm"])
    for axes in (dict(zip(AXES, each, strict=True)) for each in names):
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


def test_a_user_s_own_value_brings_options_and_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_axis.py").write_text(
        "from typing import ClassVar\n"
        "from vrambench.methods.optimizers import Optimizer\n"
        "from vrambench.methods.registry import Options\n"
        "class Mine(Options):\n"
        "    namespace: ClassVar[str] = 'mine'\n"
        "    speed: int = 1\n"
        "SLOW = Optimizer(summary='mine', build=lambda module, cell: None, options=Mine, fields=('lora_r',))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    axes = SFT_AXES | {"optimizer": "own_axis:SLOW"}
    cell = resolve(axes, {"mine": {"speed": 2}, "lora_r": 3})
    assert cell.workload.options == {"mine": {"speed": 2}}
    assert cell.workload.lora_r == 3
    assert from_flat(cell.flat()) == cell
    with pytest.raises(ConfigurationError, match=r"^mine.speed: 'fast': must be a whole number"):
        resolve(axes, {"mine": {"speed": "fast"}})


@pytest.mark.parametrize(
    ("body", "declared", "said"),
    [
        (
            "namespace = 'ppo'",
            "options=Mine",
            "optimizer: the options Mine have the namespace 'ppo', which is that of PPOOptions; give them another",
        ),
        (
            "namespace = 'steps'",
            "options=Mine",
            "optimizer: the options Mine need a namespace of their own, not 'steps'",
        ),
        ("speed: int = 1", "options=Mine", "optimizer: the options Mine need a namespace of their own, not null"),
        ("namespace = 'mine'\n    speed: int", "options=Mine", "mine.speed: lacks a value"),
        ("namespace = 'mine'", "options=Mine()", "optimizer: 'own_axis:MINE' has options that are no class of "),
        (
            "namespace = 'mine'",
            "fields=('lora_rr',)",
            "optimizer: its value declares the field 'lora_rr', which no workload has; did you mean 'lora_r'?",
        ),
    ],
)
def test_what_a_user_s_own_value_declares_is_checked(
    body: str, declared: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_axis.py").write_text(
        "from vrambench.methods.optimizers import Optimizer\n"
        "from vrambench.methods.registry import Options\n"
        f"class Mine(Options):\n    {body}\n"
        f"MINE = Optimizer(summary='mine', build=lambda module, cell: None, {declared})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_axis", raising=False)
    monkeypatch.setattr(OPTIMIZERS, "_found", {})
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        resolve(SFT_AXES | {"optimizer": "own_axis:MINE"}, {})


def test_two_values_may_share_a_class_of_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_ppo.py").write_text(
        "from dataclasses import replace\n"
        "from vrambench.methods.algorithms.ppo import PPO\n"
        "MINE = replace(PPO, learning_rate=1e-4)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        resolve(PPO_AXES | {"algorithm": "own_ppo:MINE"}, {"ppo": {"epochs": 3}}).workload.options["ppo"]["epochs"] == 3
    )


SIZES = f"write 24GiB, 16GB or a card: {', '.join(CAPACITIES)}"
MODULES = "must be auto, all-linear or a list of modules' names (q_proj,v_proj or [q_proj])"
ERRORS: list[tuple[dict[str, Any], str, str]] = [
    ({"batch_sice": 2}, "batch_sice", "workload: unknown field 'batch_sice'; did you mean 'batch_size'?"),
    ({"galor": {}}, "galor", "workload: unknown field 'galor'; did you mean 'galore'?"),
    ({"options": {}}, "options", "workload: unknown field 'options'"),
    (
        {"weights": "randon"},
        "weights",
        "weights: 'randon' is not one of random, pretrained; did you mean 'random'?",
    ),
    (
        {"attention": "flesh"},
        "attention",
        "attention: 'flesh' is not one of auto, flash, efficient, math; did you mean 'flash'?",
    ),
    ({"value": "heads"}, "value", "value: 'heads' is not one of head, separate; did you mean 'head'?"),
    (
        {"budget": "24XB"},
        "budget",
        f"budget: '24XB' is not a size; write 24GiB, 16GB or a card: {', '.join(CAPACITIES)}; did you mean '24GiB'?",
    ),
    ({"budget": "0"}, "budget", "budget: '0' is not a size of at least one byte and less than 1 EiB"),
    ({"batch_size": 0}, "batch_size", "batch_size: 0: must be at least 1"),
    (
        {"batch_size": "two"},
        "batch_size",
        "batch_size: 'two': must be a whole number",
    ),
    ({"batch_size": None}, "batch_size", "batch_size: null: must be a whole number"),
    ({"learning_rate": 0}, "learning_rate", "learning_rate: 0: must be greater than 0"),
    ({"lora_dropout": 1}, "lora_dropout", "lora_dropout: 1: must be less than 1"),
    (
        {"reward": "helpfulness"},
        "reward",
        "reward: 'helpfulness': is not one of tokens, model, a hub id or folder (with a '/'), or module:attribute",
    ),
    *(
        ({field: value}, field, f"{field}: {said}")
        for field, value, said in [
            ("steps", True, "true: must be a whole number"),
            ("steps", "4", "'4': must be a whole number"),
            ("steps", 4.0, "4.0: must be a whole number"),
            ("seed", True, "true: must be a whole number"),
            ("steps", 1_000_001, "1000001: must be at most 1000000"),
            ("warmup_steps", 10**9, "1000000000: must be at most 1000000"),
            ("batch_size", 10**9, "1000000000: must be at most 1000000"),
            ("rollout_batch", 10**9, "1000000000: must be at most 1000000"),
            ("prompt_tokens", 10**9, "1000000000: must be at most 1000000"),
            ("response_tokens", 10**9, "1000000000: must be at most 1000000"),
            ("gradient_accumulation_steps", 10**9, "1000000000: must be at most 1000000"),
            ("lora_r", 65_537, "65537: must be at most 65536"),
            ("learning_rate", math.inf, ".inf: must be a finite number"),
            ("learning_rate", math.nan, ".nan: must be a finite number"),
            ("learning_rate", True, "true: must be a number"),
            ("max_grad_norm", math.inf, ".inf: must be a finite number"),
            ("lora_alpha", -math.inf, "-.inf: must be a finite number"),
            ("gradient_checkpointing", 1, "1: must be true or false"),
            ("gradient_checkpointing", "yes", "'yes': must be true or false"),
            ("model", None, "null: must be text"),
            ("model", 4, "4: must be text"),
            ("weights", None, "null is not one of random, pretrained"),
            ("budget", "rtx4090", f"'rtx4090' is not a size; {SIZES}; did you mean 'rtx-4090'?"),
            ("budget", None, f"null is not a size; {SIZES}"),
            ("lora_target_modules", "q_proj", f"'q_proj': {MODULES}"),
            ("lora_target_modules", "q_proj,", f"'q_proj,': {MODULES}"),
            ("lora_target_modules", [], f"[]: {MODULES}"),
            ("model", "", "'': must not be empty"),
            ("data", "a\0b", "'a\\x00b' has a character that cannot be printed"),
            ("reward", "own:\ud800", "'own:\\ud800' has a character that cannot be printed"),
            ("model", "m" * 5000, f"{'m' * 50!r}...{'m' * 25!r} (5,000 characters) is longer than any name"),
            ("data", "f" * 256, f"{'f' * 50!r}...{'f' * 25!r} (256 characters) is longer than any name"),
            (
                "reward_model",
                "a/" * 501,
                f"{'a/' * 25!r}...{'/' + 'a/' * 12!r} (1,002 characters) is longer than any name",
            ),
            ("steps", "4" * 5000, f"{'4' * 50!r}...{'4' * 25!r} (5,000 characters): must be a whole number"),
            ("budget", "l4", "'l4' is a card whose usable capacity is not known here; write it, as in 22GiB"),
            ("budget", "a10", f"'a10' is not a size; {SIZES}"),
            ("budget", "a100", f"'a100' is not a size; {SIZES}; there are a100-40gb and a100-80gb"),
            ("budget", "4090", "'4090' would be bytes; write its unit, as in 24GiB; did you mean 'rtx-4090'?"),
            ("budget", 3090, "3090 would be bytes; write its unit, as in 24GiB; did you mean 'rtx-3090'?"),
            ("lora_target_modules", [1], f"[1]: {MODULES}"),
        ]
    ),
    ({"ppo": {"epochs": True}}, "ppo.epochs", "ppo.epochs: true: must be a number"),
    ({"ppo": {"kl_coef": math.inf}}, "ppo.kl_coef", "ppo.kl_coef: .inf: must be a finite number"),
    ({"ppo": {"kl_coef": None}}, "ppo.kl_coef", "ppo.kl_coef: null: must be a number"),
    ({"adamw": {"betas": [0.9]}}, "adamw.betas", "adamw.betas: [0.9]: lacks a value"),
    ({"adamw": {"betas": [0.9, 0.9, 0.9]}}, "adamw.betas", "adamw.betas: [0.9, 0.9, 0.9]: must have at most 2 values"),
    ({"adamw": {"betas": 0.9}}, "adamw.betas", "adamw.betas: 0.9: must be a list"),
    (
        {"adafactor": {"decay_rate": math.nan}},
        "adafactor.decay_rate",
        "adafactor.decay_rate: .nan: must be a finite number",
    ),
    ({"ppo": 4}, "ppo", "ppo: 4 is not a mapping of settings"),
    ({"ppo": ["epochs"]}, "ppo", "ppo: ['epochs'] is not a mapping of settings"),
    ({"ppo": {"epochs": 0}}, "ppo.epochs", "ppo.epochs: 0: must be at least 1"),
    (
        {"ppo": {"epoch": 1}},
        "ppo.epoch",
        "ppo.epoch: no such field; did you mean 'epochs'? (there are epochs, kl_coef, cliprange, cliprange_value, "
        "vf_coef, gamma, lam, temperature)",
    ),
    (
        {"remax": {"advantage": "vrl"}},
        "remax.advantage",
        "remax.advantage: 'vrl' is not one of verl, repository; did you mean 'verl'?",
    ),
]


@pytest.mark.parametrize(("settings", "field", "said"), ERRORS)
def test_a_mistake_is_named_whether_the_field_is_used_or_not(settings: dict[str, Any], field: str, said: str) -> None:
    for axes in (PPO_AXES, SFT_AXES):
        with pytest.raises(ConfigurationError) as caught:
            resolve(axes, settings)
        assert str(caught.value) == said
        assert caught.value.field == field


def test_nothing_of_pydantics_own_words_or_pythons_is_left() -> None:
    """Every field and option, given values of every wrong kind."""
    wrong: list[Any] = [None, True, -1, 1.5, 10**30, math.inf, math.nan, "x", "", [], [None], {"a": None}, [[1]]]
    options = {f"{space}.{name}": kind for space, kind in option_namespaces().items() for name in kind.model_fields}
    for name in (*FIELDS, *options):
        namespace, _, option = name.partition(".")
        for value in wrong:
            try:
                resolve(PPO_AXES, {namespace: {option: value}} if option else {name: value})
            except ConfigurationError as error:
                said = str(error)
                assert said.startswith(f"{name}: ")
                assert not re.search(r"[Ii]nput should|valid (integer|number)|None|True|(?<!\.)\b(inf|nan)\b", said)


def test_every_field_has_a_sentence() -> None:
    described = {name: field.description or "" for name, field in Workload.model_fields.items()}
    assert [name for name, words in described.items() if not words.endswith(".")] == []


def test_the_axes_names_are_known_without_torch() -> None:
    assert tuple(AXES) == AXIS_NAMES
    code = "import sys; import vrambench.methods.workload; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_an_unknown_axis_value_is_named() -> None:
    with pytest.raises(UnknownValue, match=r"^algorithm: 'sftt' is not one of .* did you mean 'sft'"):
        resolve(SFT_AXES | {"algorithm": "sftt"}, {})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("24 gib", 24 * 2**30),
        (" 1.5 MiB ", 3 * 2**19),
        ("16GB", 16 * 10**9),
        ("512kb", 512_000),
        ("7000000", 7_000_000),
        ("7b", 7),
        (7_000_000, 7_000_000),
        (7_000_000.9, 7_000_000),
        ("rtx-4090", CAPACITIES["rtx-4090"]),
        ("RTX-3090", CAPACITIES["rtx-3090"]),
        ("1TiB", 2**40),
    ],
)
def test_sizes(text: str | float, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", "GiB", "24 G iB", "-1GiB", "1e9", "24gigs", "0", "0.4", "2000000TiB", "rtx-5"),
        *(0, -3, float("nan"), float("inf"), True, None, [24]),
    ],
)
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size") as caught:
        parse_size(text)
    assert str(caught.value).startswith(shown(text))


@pytest.mark.parametrize("number", [1, 24, "24", 24.5, 2**20 - 1])
def test_a_number_whose_unit_was_forgotten_is_none(number: int | float | str) -> None:
    with pytest.raises(ValueError, match="would be bytes; write its unit, as in 24GiB"):
        parse_size(number)


@given(st.integers(2**20, 2**59), st.sampled_from(["", "B"]))
def test_bytes_are_kept_to_a_double_s_precision(size: int, unit: str) -> None:
    assert parse_size(f"{size}{unit}") == pytest.approx(size, rel=1e-15)


def test_a_cell_is_frozen(cell: Callable[..., Cell]) -> None:
    made = cell()
    with pytest.raises(ValueError, match="frozen"):
        made.precision = "bf16"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        made.workload.steps = 3
