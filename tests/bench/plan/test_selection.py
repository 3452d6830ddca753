"""What the command line selects, and every mistake in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from vrambench.bench.plan.matrix import Matrix
from vrambench.bench.plan.plan import Plan, select
from vrambench.bench.plan.selection import Selection
from vrambench.methods.axes import AXES
from vrambench.methods.errors import ConfigurationError, UnknownValue
from vrambench.methods.texts import LOOKED_AT

Make = Callable[..., Plan]


def names(plan: Plan) -> list[str]:
    return [planned.name for planned in plan.cells]


class TestSelectors:
    def test_an_axis_by_name_replaces_its_values(self, small: Make) -> None:
        plan = small(axes={"precision": "fp16_amp, bf16_amp"})
        assert {planned.cell.precision for planned in plan.cells} == {"fp16_amp", "bf16_amp"}

    def test_only_keeps_cells(self, small: Make) -> None:
        plan = small(only=("precision=bf16", "algorithm=sft,ppo"))
        assert {planned.cell.precision for planned in plan.cells} == {"bf16"}
        assert len(plan.cells) == 4

    def test_values_are_typed_as_in_yaml(self, small: Make) -> None:
        plan = small(
            set=("learning_rate=1e-3", "gradient_checkpointing=true", "lora_target_modules=[q_proj, v_proj]"),
            budget="24GiB",
            only=("adapter=lora",),
        )
        work = plan.cells[0].cell.workload
        assert (work.learning_rate, work.gradient_checkpointing) == (0.001, True)
        assert work.lora_target_modules == ("q_proj", "v_proj")
        assert work.budget == 24 * 2**30

    def test_sweeps_multiply_and_are_named(self, small: Make) -> None:
        plan = small(
            sweep=("seed=0,1", "lora_target_modules=[q_proj],all-linear"), only=("adapter=lora", "precision=bf16")
        )
        assert names(plan)[:2] == [
            "bf16 lora adamw_torch none sft seed=0 lora_target_modules=[q_proj]",
            "bf16 lora adamw_torch none ppo seed=0 lora_target_modules=[q_proj]",
        ]
        assert len(plan.cells) == 8

    def test_cells_that_do_the_same_work_are_kept_once(self, small: Make) -> None:
        plan = small(sweep=("lora_r=4,8",), only=("precision=bf16", "algorithm=sft"))
        assert names(plan) == [
            "bf16 none adamw_torch none sft",
            "bf16 lora adamw_torch none sft lora_r=4",
            "bf16 lora adamw_torch none sft lora_r=8",
        ]

    def test_repeat_and_coverage(self, small: Make) -> None:
        plan = small("repeat: 2\n", repeat=3, coverage="pairwise")
        assert (plan.repeat, plan.coverage) == (3, "pairwise")
        assert (small("repeat: 2\n").repeat, small().repeat) == (2, 1)

    def test_an_axis_by_name_leaves_out_includes_about_other_values(self, small: Make) -> None:
        more = """
include:
  - {algorithm: ppo, steps: 9}
  - {precision: fp16, adapter: lora, optimizer: adamw_torch, offload: none, algorithm: ppo}
  - {precision: fp16, adapter: lora, optimizer: adamw_torch, offload: none, algorithm: sft, seed: 4}
"""
        plan = small(more, axes={"algorithm": "sft"})
        assert {planned.cell.algorithm for planned in plan.cells} == {"sft"}
        assert names(plan)[-1] == "fp16 lora adamw_torch none sft seed=4"

    def test_a_users_own_value(self, small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        text = "from vrambench.methods.optimizers.adamw import ADAMW_TORCH\nMINE = ADAMW_TORCH\n"
        (tmp_path / "own_optimizers.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        plan = small(axes={"optimizer": "adamw_torch,own_optimizers:MINE"})
        assert {planned.cell.optimizer for planned in plan.cells} == {"adamw_torch", "own_optimizers:MINE"}

    def test_the_default_profile_is_the_devices(self, shipped: Matrix) -> None:
        assert select(shipped, Selection(), "cpu").profile == "smoke"
        assert select(shipped, Selection(), "cuda").profile == "24gb"
        assert select(shipped, Selection(profile="20b"), "cpu").profile == "20b"


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        ({"only": ("algorithm=ppoo",)}, "--only algorithm: 'ppoo' is not one of sft, ppo; did you mean 'ppo'?"),
        ({"only": ("algorithm=remax",)}, "--only algorithm: 'remax' is not one of sft, ppo"),
        (
            {"only": ("algo=ppo",)},
            "--only algo=ppo: 'algo' is not one of precision, adapter, optimizer, offload, algorithm; did you mean ",
        ),
        ({"only": ("ppo",)}, "--only ppo: write --only AXIS=VALUE,VALUE"),
        (
            {"only": ("adapter=lora", "adapter=none")},
            "--only adapter=none: adapter is given already; write all its values in one --only",
        ),
        (
            {"only": ("adapter=lora,,none",)},
            "--only adapter=lora,,none: an empty value; separate values by single commas",
        ),
        ({"only": ("adapter=lora,lora",)}, "--only adapter=lora,lora: 'lora' is named twice"),
        (
            {"axes": {"optimizer": "adamw"}},
            "--optimizer adamw: optimizer: 'adamw' is unknown; did you mean 'adamw_torch'? ",
        ),
        ({"axes": {"precision": ""}}, "--precision : an empty value"),
        ({"set": ("steps",)}, "--set steps: write --set FIELD=VALUE"),
        ({"set": ("=4",)}, "--set =4: write --set FIELD=VALUE"),
        ({"set": ("steps=",)}, "--set steps=: no value after '=' (null is written null)"),
        (
            {"set": ("steps=[1",)},
            "--set steps=[1: '[1' is not a YAML value (expected ',' or ']', but got '<stream end>')",
        ),
        ({"set": ("steps=0",)}, "--set steps=0: steps: 0: must be at least 1"),
        ({"set": ("stepz=4",)}, "--set stepz=4: unknown field 'stepz'; did you mean 'steps'?"),
        ({"set": ("ppo.epoch=4",)}, "--set ppo.epoch=4: ppo.epoch: no such field; did you mean 'ppo.epochs'?"),
        ({"set": ("algorithm=ppo",)}, "--set algorithm=ppo: algorithm is an axis; write --algorithm ppo"),
        ({"set": ("seed=1", "seed=2")}, "--set seed=2: seed is set already, by --set seed=1"),
        (
            {"set": ("galore={rank: 4}", "galore.rank=8")},
            "--set galore.rank=8: galore.rank is set already, by --set galore={rank: 4}",
        ),
        ({"set": ("ppo={epochs: 0}",)}, "--set ppo={epochs: 0}: ppo.epochs: 0: must be at least 1"),
        ({"set": ("model=tiny",), "model": "gpt2"}, "--set model=tiny: model is set already, by --model gpt2"),
        ({"set": ("seed=1",), "sweep": ("seed=1,2",)}, "--sweep seed=1,2: seed is set as well, by --set seed=1"),
        (
            {"sweep": ("seed=1,2", "seed=3")},
            "--sweep seed=3: seed is swept already; write all its values in one --sweep",
        ),
        ({"sweep": ("seed=1,1",)}, "--sweep seed=1,1: 1 is named twice"),
        ({"sweep": ("seed",)}, "--sweep seed: write --sweep FIELD=VALUE,VALUE"),
        ({"sweep": ("seed=1,x",)}, "--sweep seed=1,x: seed: 'x': must be a whole number"),
        ({"sweep": ("seed={1",)}, "--sweep seed={1: '{1' is not a YAML value"),
        (
            {"set": ("galore.rank=4",)},
            "--set galore.rank=4: galore.rank: no cell here uses it (optimizer galore_adamw, ",
        ),
        (
            {"sweep": ("lora_r=4,8",), "axes": {"adapter": "none"}},
            "--sweep lora_r=4,8: lora_r: no cell here uses it (adapter lora, adapter dora, adapter rslora do)",
        ),
        (
            {"set": ("reward_model=gpt2",)},
            "--set reward_model=gpt2: reward_model: no cell here uses it (it is used where reward is 'model')",
        ),
        ({"model": "gpt3"}, "--model gpt3: model: 'gpt3' is neither a preset ("),
        ({"budget": "24Gx"}, "--budget 24Gx: budget: '24Gx' is not a size; write 24GiB, 16GB or a card: rtx-3090"),
        (
            {"budget": "rtx-5099"},
            "--budget rtx-5099: budget: 'rtx-5099' is not a size; write 24GiB, 16GB or a card: rtx-5090, rtx-5080, ",
        ),
        ({"repeat": 0}, "--repeat 0: must be at least 1"),
        ({"repeat": 1001}, "--repeat 1001: must be at most 1000"),
        (
            {"sweep": ("gradient_checkpointing=true,true",)},
            "--sweep gradient_checkpointing=true,true: true is named twice",
        ),
        ({"set": ("steps=true",)}, "--set steps=true: steps: true: must be a whole number"),
        ({"set": ("steps=null",)}, "--set steps=null: steps: null: must be a whole number"),
        ({"set": ("learning_rate=.nan",)}, "--set learning_rate=.nan: learning_rate: .nan: must be a finite number"),
        ({"set": ("steps.x=1",)}, "--set steps.x=1: steps.x: steps is a field, and has no options"),
        (
            {"set": ("data=no.txt",)},
            "--set data=no.txt: data: 'no.txt' cannot be read: No such file or directory; give ",
        ),
        (
            {"set": ("reward=own_:f",)},
            "--set reward=own_:f: reward: 'own_:f' cannot be imported: No module named 'own_'",
        ),
        ({"sweep": ("reward=tokens,json:lods",)}, "--sweep reward=tokens,json:lods: reward: 'json:lods': there is no "),
        (
            {"set": ("reward=sys:path",)},
            "--set reward=sys:path: reward: 'sys:path' is of type list, not a function of ",
        ),
        ({"axes": {"optimizer": "own_:f"}}, "--optimizer own_:f: optimizer: 'own_:f' cannot be imported: No module "),
        ({"coverage": "pairs"}, "--coverage: 'pairs' is not one of full, pairwise; did you mean 'pairwise'?"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_mistakes_on_the_command_line(small: Make, selectors: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        small(**selectors)
    assert str(error.value).startswith(message)


WHOLE = """
profiles:
  parts: {workload: {prompt_tokens: 20, response_tokens: 30}}
  whole: {workload: {prompt_tokens: 20, max_length: 50}}
  both: {workload: {prompt_tokens: 20, response_tokens: 30, max_length: 60}}
  added:
    workload: {prompt_tokens: 20, response_tokens: 30}
    include: [{algorithm: sft, max_length: 60}]
  several: {workload: {lengths: {16: 0.5, 40: 0.5}}}
"""


@pytest.mark.parametrize(
    ("profile", "typed", "parts"),
    [
        ("parts", (), (20, 30)),
        ("parts", ("max_length=64",), (20, 44)),
        ("whole", ("max_length=64",), (20, 44)),
        ("whole", ("prompt_tokens=10",), (10, 40)),
        ("whole", ("response_tokens=30",), (20, 30)),
        ("whole", ("prompt_tokens=70", "response_tokens=30"), (70, 30)),
        ("parts", ("max_length=20",), (10, 10)),
        ("whole", ("max_length=9",), (4, 5)),
        ("added", (), (20, 40)),
        ("added", ("max_length=64",), (20, 44)),
        ("several", (), (1, 39)),
        ("parts", ("lengths={16: 0.5, 40: 0.5}",), (1, 39)),
    ],
)
def test_max_length_overrules_what_is_laid_below(
    small: Make, profile: str, typed: tuple[str, ...], parts: tuple[int, int]
) -> None:
    plan = small(
        WHOLE, profile=profile, set=typed, axes={"precision": "bf16", "adapter": "none", "algorithm": "sft,ppo"}
    )
    sft, ppo = (one.cell.workload for one in plan.cells)
    assert (sft.prompt_tokens, sft.response_tokens) == parts
    if profile in ("parts", "added"):
        assert (ppo.prompt_tokens, ppo.response_tokens, ppo.max_length) == (20, 30, None)


@pytest.mark.parametrize(
    ("profile", "typed", "said"),
    [
        ("both", (), "profiles.both.workload.response_tokens: 30 with prompt_tokens 20 is not max_length, 60; leave "),
        (
            "whole",
            ("response_tokens=40",),
            "--set response_tokens=40: response_tokens: 40 with prompt_tokens 20 is not ",
        ),
        (
            "parts",
            ("prompt_tokens=20", "max_length=20"),
            "--set prompt_tokens=20: prompt_tokens: 20 must be less than max_length, 20, ",
        ),
        (
            "several",
            ("response_tokens=8",),
            "--set response_tokens=8: response_tokens: 8 says nothing beside lengths, ",
        ),
        (None, ("lengths={8: 1.0}", "packing=bfd"), "--set packing=bfd: max_length: packing bfd needs it: the tokens "),
        (
            None,
            ("prompt_tokens=5", "response_tokens=5", "max_length=256"),
            "--set response_tokens=5: response_tokens: 5 with prompt_tokens 5 is not max_length, 256; leave ",
        ),
    ],
)
def test_lengths_that_disagree_are_a_mistake(
    small: Make, profile: str | None, typed: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        small(WHOLE, profile=profile, set=typed)
    assert said in str(error.value)


def test_an_unknown_profile_names_the_nearest(shipped: Matrix) -> None:
    with pytest.raises(
        UnknownValue,
        match=r"profile: 'smok' is not one of smoke, 24gb, 24gb-short, 20b, rlhf-20b; did you mean 'smoke'\?",
    ):
        select(shipped, Selection(profile="smok"), "cpu")


def test_a_profile_of_a_matrix_without_any(small: Make) -> None:
    with pytest.raises(ConfigurationError, match=r"matrix\.yaml has no profiles, so there is no 'smoke'"):
        small(profile="smoke")


def test_no_cell_left_says_which_selectors_and_what_coverage_has_to_do_with_it(small: Make) -> None:
    more = "exclude: [{algorithm: ppo, precision: bf16}]\n"
    with pytest.raises(
        ConfigurationError,
        match=r"no cell is left by --only algorithm=ppo, --only precision=bf16; removed by .*matrix.yaml:\d+: exclude\[0\]$",
    ):
        small(more, only=("algorithm=ppo", "precision=bf16"))
    kept = {tuple(planned.cell.axes.values()) for planned in small(coverage="pairwise").cells}
    left_out = next(row for row in (tuple(one.cell.axes.values()) for one in small().cells) if row not in kept)
    only = tuple(f"{axis}={name}" for axis, name in zip(AXES, left_out, strict=True))
    with pytest.raises(ConfigurationError, match="pairwise coverage left it out, --coverage full has it"):
        small(coverage="pairwise", only=only)


def test_a_files_sweep_without_effect_is_an_error_unless_cells_were_left_out(small: Make) -> None:
    sweep = "sweep: {galore.rank: [4, 8]}\n"
    with pytest.raises(ConfigurationError, match=r"sweep\.galore\.rank: no cell here uses it"):
        small(sweep)
    assert len(small(sweep, only=("algorithm=sft",)).cells) == 6


# -- pairwise coverage


@pytest.mark.parametrize("option", ["set", "sweep"])
def test_data_that_is_a_pipe_is_not_waited_for(small: Make, tmp_path: Path, option: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="pipe' cannot be read: it is not a regular file; give a text"):
        small(**{option: (f"data={tmp_path / 'pipe'}",)})


def test_data_that_is_no_text_is_told_before_anything_runs(tmp_path: Path, small: Make) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"\x00text\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"weights.bin' cannot be read: it is not UTF-8 text; give a text"):
        small(set=(f"data={file}",))
    file.write_text("a" * (LOOKED_AT - 1) + "é")  # cut within a letter, where it is looked at
    assert small(set=(f"data={file}",)).cells


PIECES = [
    "lora_r", "steps", "data", "model", "ppo", "ppo.epochs", "budget", "reward", "learning_rate", "lora_target_modules",
    "precision", ".", "=", "==", ",", "[", "]", "{", "}", ": ", "&a ", "*a", "- ", "? ", "#", "|", ">", "%", "@", "`", "<<",
    "'", '"',
    "!!bool ", "!!int ", "!!float ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!null ", "!!str ", "!!merge ", "!x ",
    "maybe", "null", "true", "4", "-1", "0x", "0b", "1e9", "1e999", ".inf", ".nan", "2024-01-01", "1:1", "~", "/", "//",
    "\\U00110000",
    "\0", "\x1b[31m", "\x85", "\ud800", "\u2028", "\n", "\t", "é", "x" * 5000, "9" * 5000, "f" * 5000, "[" * 3000, "{a: " * 2000,
    "1," * 3000, ":1" * 3000, "/dev/zero", "no:module", "os:path", "./", "24GiB", "4090",
]  # fmt: skip


def test_no_mangled_setting_ends_in_anything_but_one_sentence(small: Make) -> None:
    random = Random(0)
    said: list[str] = []
    for _ in range(400):
        name = random.choice(("steps", "data", "model", "ppo", "ppo.epochs", "budget", "lora_target_modules", "reward"))
        mangled = "".join(random.choices(PIECES, k=random.randint(1, 4)))
        typed = mangled if random.random() < 0.3 else f"{name}={mangled}"
        try:
            small(only=("precision=bf16", "algorithm=ppo"), **{random.choice(("set", "sweep")): (typed,)})
        except ConfigurationError as error:
            said.append(error.message)
    assert len(said) > 300
    assert [
        message for message in said if len(message) > 1500 or not message.replace("\u2028", " ").isprintable()
    ] == []
