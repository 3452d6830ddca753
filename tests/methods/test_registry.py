"""Axis values by name: the built-in ones, a user's own, and what is said where there is neither."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from vrambench.methods.algorithms import ALGORITHMS, Algorithm
from vrambench.methods.axes import AXES
from vrambench.methods.cards import CAPACITIES
from vrambench.methods.errors import FEW, ConfigurationError, UnknownValue, did_you_mean, most_alike, nearest
from vrambench.methods.models.presets import PRESETS
from vrambench.methods.optimizers import OPTIMIZERS
from vrambench.methods.registry import Registry, load_attribute
from vrambench.methods.workload import FIELDS

BUILTIN = [(axis, name) for axis, registry in AXES.items() for name in registry]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def test_axes_are_in_the_order_in_which_a_cell_is_named() -> None:
    assert list(AXES) == ["precision", "adapter", "optimizer", "offload", "algorithm"]


@pytest.mark.parametrize(("axis", "name"), BUILTIN)
def test_every_builtin_value_is_of_its_axis_kind(axis: str, name: str) -> None:
    registry = AXES[axis]
    value = registry.get(name)
    assert type(value) is registry.kind
    assert value.summary
    assert set(value.fields) <= set(FIELDS)
    assert name in registry


@pytest.mark.parametrize(("axis", "name"), BUILTIN)
def test_options_hold_their_own_defaults(axis: str, name: str) -> None:
    kind = AXES[axis].get(name).options
    if kind is None:
        return
    assert kind.namespace not in FIELDS
    defaults = kind()
    assert kind(**defaults.model_dump(mode="json")) == defaults


def test_no_two_classes_of_options_share_a_namespace() -> None:
    kinds = {value.options for registry in AXES.values() for value in registry.values().values() if value.options}
    assert len({kind.namespace for kind in kinds}) == len(kinds)


def test_values_keep_the_table_s_order() -> None:
    table = {name: f"vrambench.methods.algorithms.{name}:{name.upper()}" for name in ("remax", "sft", "ppo")}
    registry = Registry("algorithm", Algorithm, table)
    assert list(registry) == list(registry.values()) == ["remax", "sft", "ppo"]
    assert registry.get("ppo") is ALGORITHMS.get("ppo")


@pytest.mark.parametrize(
    ("axis", "name", "hint"),
    [
        ("algorithm", "ppoo", "; did you mean 'ppo'?"),
        ("precision", "bf17", "; did you mean 'bf16'?"),
        ("precision", "BF16", "; did you mean 'bf16'?"),
        ("optimizer", "adamw_tourch", "; did you mean 'adamw_torch'?"),
        ("offload", "quux", ""),
        ("optimizer", "adamw", "; did you mean 'adamw_torch'?"),
        ("precision", "4bit", "; did you mean 'nf4'?"),
        (
            "precision",
            "int4",
            "; integers of 4 bits (torchao, GPTQ, AWQ) are not here; nf4 has as many bits, with adapter lora",
        ),
        ("adapter", "qlora", "; QLoRA is precision nf4 with adapter lora"),
        ("algorithm", "simpo", "; it is algorithm dpo with dpo: {loss_type: simpo}"),
        (
            "optimizer",
            "schedule_free_radam",
            "; transformers has it, and it is not here; it keeps what schedule_free_adamw keeps",
        ),
        ("offload", "zero3_offload", "; did you mean 'zero3_all'?"),
        (
            "offload",
            "zero3",
            "; on one GPU ZeRO-3 divides nothing; zero3_optimizer and zero3_all say what is on the host",
        ),
    ],
)
def test_an_unknown_value_is_answered_with_the_nearest(axis: str, name: str, hint: str) -> None:
    with pytest.raises(UnknownValue) as caught:
        AXES[axis].get(name)
    if axis == "optimizer":  # of a long list the nearest are told
        told = f"{axis}: {name!r} is unknown{hint}{'' if hint[-1] == '?' else '.'} Nearest are "
        assert str(caught.value).startswith(told + nearest(name, AXES[axis]))
        assert str(caught.value).endswith(f"; vrambench list values tells all {len(list(AXES[axis]))}")
    else:
        assert str(caught.value) == f"{axis}: {name!r} is not one of {', '.join(AXES[axis])}{hint}"
    assert caught.value.field == axis


LETTERS = [f"{one}{two}" for one in "abcdef" for two in "uvwxyz"]


@pytest.mark.parametrize(
    ("value", "choices", "told_by", "said"),
    [
        (
            "uu",
            LETTERS,
            "",
            f"x: 'uu' is unknown; it is one of fu, eu, du, cu, bu, au, {', '.join(LETTERS[1:6])}, bv, ",
        ),
        ("1", LETTERS, "", f"x: '1' is unknown; it is one of {', '.join(LETTERS)}"),
        ("1", LETTERS, "docs", "x: '1' is unknown; docs tells all 36"),
        ("AU", LETTERS, "docs", "x: 'AU' is unknown; did you mean 'au'? Nearest are au, "),
        (
            "qlora",
            LETTERS,
            "docs",
            "x: 'qlora' is unknown; QLoRA is precision nf4 with adapter lora. docs tells all 36",
        ),
        ("zz", LETTERS[:20], "docs", f"x: 'zz' is not one of {', '.join(LETTERS[:20])}"),
    ],
)
def test_a_long_list_is_cut_where_something_tells_all_of_it(
    value: str, choices: list[str], told_by: str, said: str
) -> None:
    message = str(UnknownValue("x", value, choices, told_by=told_by))
    assert message.startswith(said)
    if len(choices) > FEW and not told_by:
        assert sorted(re.findall(r"\b[a-f][u-z]\b", message)) == sorted(choices), "none is left out, none named twice"


@pytest.mark.parametrize(
    ("value", "choices", "meant"),
    [
        ("trl", ("trl-sft", "trl-dpo", "deepspeed"), "; did you mean 'trl-sft' or 'trl-dpo'?"),
        ("eval", FIELDS, "; did you mean 'eval_batch_size' or 'eval_accumulation_steps'?"),
        ("group_size", ("group_sizes",), "; did you mean 'group_sizes'?"),
        ("on", ("one", "once"), "; did you mean 'one'?"),
        ("quux", FIELDS, ""),
    ],
)
def test_what_several_begin_with_may_be_any_of_them(value: str, choices: tuple[str, ...], meant: str) -> None:
    assert did_you_mean(value, choices) == meant


def test_a_preset_s_nearest_begin_as_it_was_typed() -> None:
    assert most_alike("mistral", PRESETS, 2) == ["mistral-7b", "mistral-7b-v0.1"]
    assert most_alike("qwen3-9b", PRESETS, 2) == ["qwen3-8b", "qwen3-4b"]
    assert most_alike("zzz", PRESETS) == []


def test_a_user_s_own_value_comes_from_the_current_directory(here: Path) -> None:
    (here / "own_values.py").write_text(
        "from vrambench.methods.algorithms.sft import SFT\n"
        "import dataclasses\n"
        "MINE = dataclasses.replace(SFT, summary='mine')\n"
        "class Shelf:\n"
        "    other = MINE\n"
    )
    value = ALGORITHMS.get("own_values:MINE")
    assert value.summary == "mine"
    assert ALGORITHMS.get("own_values:Shelf.other") is value
    assert "own_values:MINE" not in ALGORITHMS
    assert list(ALGORITHMS.values()) == list(ALGORITHMS)


def test_the_current_directory_is_searched_last_and_entered_once(here: Path) -> None:
    for module in ("json", "colorsys", "torch"):
        (here / f"{module}.py").write_text("raise AssertionError('a file of the user hides an installed module')\n")
    sys.modules.pop("colorsys", None)  # not imported yet, so that the search itself is seen
    assert load_attribute("colorsys:rgb_to_hsv", field="reward")(0.5, 0.5, 0.5) == (0.0, 0.0, 0.5)
    import json

    import torch

    assert load_attribute("json:loads", field="reward") is json.loads
    assert load_attribute("torch:Tensor", field="reward") is torch.Tensor
    assert sys.path.count(str(here)) == 1
    assert sys.path[-1] == str(here)


def test_a_built_in_value_does_not_look_into_the_current_directory(here: Path) -> None:
    load_attribute("vrambench.methods.algorithms.sft:SFT", field="algorithm")
    assert str(here) not in sys.path


@pytest.mark.parametrize(
    ("source", "reference", "said"),
    [
        ("", "nowhere_at_all:x", "reward: 'nowhere_at_all:x' cannot be imported: No module named 'nowhere_at_all'"),
        ("import gone_gone", "own_score:x", "reward: 'own_score:x' cannot be imported: No module named 'gone_gone'"),
        ("1 / 0", "own_score:x", "reward: 'own_score:x' cannot be imported: ZeroDivisionError: division by zero"),
        (
            "def f(:",
            "own_score:f",
            "reward: 'own_score:f' cannot be imported: SyntaxError: invalid syntax (own_score.py, line 1)",
        ),
        ("", ":score", "reward: ':score' cannot be imported: ValueError: Empty module name"),
        (
            "def score(): ...\n_score = 1",
            "own_score:scor",
            "reward: 'own_score:scor': there is no 'scor'; did you mean 'score'?",
        ),
        ("x = 1", "own_score:x.imagg", "reward: 'own_score:x.imagg': there is no 'imagg'; did you mean 'imag'?"),
        ("x = 1", "own_score:", "reward: 'own_score:': there is no ''"),
    ],
)
def test_what_cannot_be_found_is_said_in_one_line(here: Path, source: str, reference: str, said: str) -> None:
    (here / "own_score.py").write_text(source)
    with pytest.raises(ConfigurationError) as caught:
        load_attribute(reference, field="reward")
    assert str(caught.value) == said
    assert caught.value.field == "reward"


@pytest.mark.parametrize("value", ["1", "print", "AxisValue(summary='of no axis')", "SFT"])
def test_a_value_of_another_kind_is_refused(here: Path, value: str) -> None:
    (here / "own_kind.py").write_text(
        "from vrambench.methods.registry import AxisValue\n"
        "from vrambench.methods.algorithms.sft import SFT\n"
        f"MINE = {value}\n"
    )
    found: Any = load_attribute("own_kind:MINE", field="optimizer")
    with pytest.raises(ConfigurationError) as caught:
        OPTIMIZERS.get("own_kind:MINE")
    assert str(caught.value) == f"optimizer: 'own_kind:MINE' is of type {type(found).__name__}, not Optimizer"
    assert caught.value.field == "optimizer"


@pytest.mark.parametrize(
    ("value", "choices", "meant"),
    [
        ("llama-3.1-8b", ("llama-3.2-3b", "llama-2-7b"), None),
        ("llama-2-7b-chat", ("llama-3.2-3b", "llama-2-7b"), "llama-2-7b"),
        ("cpu:1", ("auto", "cpu", "cuda:N"), "cpu"),
        ("algo", ("adapter", "algorithm"), "algorithm"),
        ("num_generations", FIELDS, "group_size"),
        ("torch_compile", FIELDS, None),
        ("loss_type", FIELDS, None),
        ("max_new_tokens", FIELDS, "response_tokens"),
        ("max_seq_length", FIELDS, "max_length"),
        ("sequence_tokens", FIELDS, "max_length"),
        ("cutoff_len", FIELDS, "max_length"),
        ("batch", FIELDS, "batch_size"),
        ("qwen3-9b", PRESETS, "qwen3-8b"),
        ("qwen2.5-70b", PRESETS, None),
        ("llama-3.1-7b", PRESETS, "llama-3.1-8b"),
        ("rtx-409", CAPACITIES, "rtx-4090"),
        ("rtx4090ti", CAPACITIES, "rtx-4090"),
        ("rtx-3070", CAPACITIES, None),
        ("nf44", ("nf4", "int8"), None),
        ("nf5", ("nf4", "int8"), "nf4"),
        ("nf8", ("nf4", "int8"), None),
    ],
)
def test_nothing_else_is_taken_for_what_was_meant(value: str, choices: tuple[str, ...], meant: str | None) -> None:
    assert nearest(value, choices) == meant
