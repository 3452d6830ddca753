"""The workload: each mistake in it is told in one sentence."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.methods.usual import PPO_AXES, SFT_AXES
from vrambench.methods.axes import AXES
from vrambench.methods.cards import CAPACITIES
from vrambench.methods.cell import option_namespaces, resolve
from vrambench.methods.elsewhere import HERE
from vrambench.methods.errors import NEAREST, ConfigurationError, UnknownValue
from vrambench.methods.workload import AXIS_NAMES, FIELDS, Workload
from vrambench.reports.text.lists import described

CARDS_TOLD = "(vrambench list cards tells all)"
SIZES = f"write 24GiB, 16GB or a card: {', '.join([*CAPACITIES][:NEAREST])} {CARDS_TOLD}"
MODULES = (
    "must be auto, all-linear, a list of modules' names (q_proj,v_proj or [q_proj]), or a regular expression for whole paths "
    r"(.*\.q_proj)"
)
NAMES = "must be a list of names (embed_tokens,lm_head or [embed_tokens])"
ERRORS: list[tuple[dict[str, Any], str, str]] = [
    ({"batch_sice": 2}, "batch_sice", "workload: unknown field 'batch_sice'; did you mean 'batch_size'?"),
    ({"seq_length": 512}, "seq_length", "workload: unknown field 'seq_length'; did you mean 'max_length'?"),
    ({"load_in_4bit": True}, "load_in_4bit", "workload: unknown field 'load_in_4bit'; it is precision nf4"),
    (
        {"double_quant": True},
        "double_quant",
        "workload: unknown field 'double_quant'; it is the option nf4.double_quant",
    ),
    ({"fp32": True}, "fp32", "workload: unknown field 'fp32'; it is precision fp32"),
    (
        {"optim": "adafactor"},
        "optim",
        "workload: unknown field 'optim'; it is the axis optimizer (--optimizer adamw_torch)",
    ),
    ({"packing": True}, "packing", "packing: true is not one of none, bfd, bfd_split, wrapped; did you mean 'bfd'?"),
    ({"packing": False}, "packing", "packing: false is not one of none, bfd, bfd_split, wrapped; did you mean 'none'?"),
    (
        {"packing": "bfd-requeue"},
        "packing",
        "packing: 'bfd-requeue' is not one of none, bfd, bfd_split, wrapped; did you mean 'bfd_split'?",
    ),
    (
        {"attention": "fa2"},
        "attention",
        "attention: 'fa2' is not one of auto, sdpa, flash_attention_2, eager, flash, efficient, math; did you mean "
        "'flash_attention_2'?",
    ),
    (
        {"lora_target_modules": "all"},
        "lora_target_modules",
        f"lora_target_modules: 'all': {MODULES}; did you mean 'all-linear'?",
    ),
    ({"galor": {}}, "galor", "workload: unknown field 'galor'; did you mean 'galore'?"),
    ({"options": {}}, "options", "workload: unknown field 'options'"),
    (
        {"weights": "randon"},
        "weights",
        "weights: 'randon': must be random or pretrained, or saved:NAME; did you mean 'random'?",
    ),
    (
        {"attention": "flesh"},
        "attention",
        "attention: 'flesh' is not one of auto, sdpa, flash_attention_2, eager, flash, efficient, math; did you mean 'flash'?",
    ),
    (
        {"lengths": 512},
        "lengths",
        "lengths: 512 is neither a mapping of tokens to shares ({256: 0.5, 1024: 0.5}) nor a file of lengths",
    ),
    (
        {"lengths": {}},
        "lengths",
        "lengths: {} is neither a mapping of tokens to shares ({256: 0.5, 1024: 0.5}) nor a file of lengths",
    ),
    (
        {"lengths": {256: 0.5, 512: 0.4}},
        "lengths",
        "lengths: {256: 0.5, 512: 0.4}: its shares come to 0.9, and must come to 1",
    ),
    (
        {"lengths": {256: 1.5}},
        "lengths",
        "lengths: {256: 1.5}: the share of 256 tokens is 1.5, and must be a number above 0 and at most 1",
    ),
    (
        {"lengths": {256: "half"}},
        "lengths",
        "lengths: {256: 'half'}: the share of 256 tokens is 'half', and must be a number above 0 and at most 1",
    ),
    (
        {"lengths": {1: 1.0}},
        "lengths",
        "lengths: {1: 1.0}: a sequence of 1 tokens; one has at least 2 and at most 2,000,000",
    ),
    ({"lengths": {"long": 1.0}}, "lengths", "lengths: {long: 1.0}: 'long' is not a whole number of tokens"),
    ({"lengths": {256: 0.5, "256": 0.5}}, "lengths", "lengths: {256: 0.5, 256: 0.5}: 256 tokens are named twice"),
    (
        {"lengths": "nowhere.txt"},
        "lengths",
        "lengths: 'nowhere.txt' cannot be read: No such file or directory; give a file with a length on each line, or a mapping "
        "({256: 0.5, 1024: 0.5})",
    ),
    (
        {"packing": "bestfit"},
        "packing",
        "packing: 'bestfit' is not one of none, bfd, bfd_split, wrapped",
    ),
    ({"value": "heads"}, "value", "value: 'heads' is not one of head, adapter, separate; did you mean 'head'?"),
    (
        {"budget": "24XB"},
        "budget",
        f"budget: '24XB' is not a size; {SIZES}; did you mean '24GiB'?",
    ),
    ({"budget": "0"}, "budget", "budget: '0' is not a size of at least 128 KiB and less than 1 EiB"),
    ({"budget": "127KiB"}, "budget", "budget: '127KiB' is not a size of at least 128 KiB and less than 1 EiB"),
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
        "reward: 'helpfulness': is not one of tokens, reviews, model, a hub id or folder (with a '/'), or module:attribute",
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
            ("weights", None, "null: must be text"),
            (
                "budget",
                "rtx-4090s",
                "'rtx-4090s' is not a size; write 24GiB, 16GB or a card: rtx-4090, rtx-5090, rtx-4080, rtx-3090, rtx-a4000, "
                f"rtx-5080 {CARDS_TOLD}; did you mean 'rtx-4090'?",
            ),
            ("budget", None, f"null is not a size; {SIZES}"),
            ("lora_target_modules", "q_proj", f"'q_proj': {MODULES}; write [q_proj] for the layers of that name"),
            ("lora_target_modules", "q_proj,", f"'q_proj,': {MODULES}"),
            ("lora_target_modules", "", f"'': {MODULES}"),
            ("lora_target_modules", 4, f"4: {MODULES}"),
            (
                "lora_target_modules",
                ".*(q_proj",
                f"'.*(q_proj': is no regular expression (missing ), unterminated subpattern at position 2), and {MODULES}",
            ),
            ("lora_modules_to_save", "lm_head,", f"'lm_head,': {NAMES}"),
            ("lora_target_parameters", [1], f"[1]: {NAMES}"),
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
            (
                "budget",
                "rtx-4080-super",
                "'rtx-4080-super' is a card of 16 GB, of which a process gets less; how much is not known here: write it, as in "
                "15GiB (PyTorch's out-of-memory message gives it as total capacity)",
            ),
            (
                "budget",
                "RX 7900 XTX",
                "'RX 7900 XTX' is a GPU of AMD's, and only CUDA is predicted: kernels, libraries and drivers take other memory "
                "under ROCm; a size, as in 24GiB, asks for a job under CUDA on an Ampere GPU",
            ),
            (
                "budget",
                "p40",
                "'p40' is a GPU from before compute capability 7.0, whose kernels are not known here; a size, as in 24GiB, asks "
                "for a job under CUDA on an Ampere GPU",
            ),
            ("budget", "v100", "'v100' may be v100-16gb or v100-32gb"),
            ("budget", "a100", "'a100' may be a100-40gb or a100-80gb"),
            ("budget", "rtx 6000", "'rtx 6000' may be rtx-6000-ada or rtx-pro-6000-blackwell"),
            ("budget", "4900", "'4900' would be bytes; write its unit, as in 24GiB; did you mean 'rtx-4090'?"),
            ("budget", "4090 laptop", f"'4090 laptop' is not a size; {SIZES}"),
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
    ({"peft": True}, "peft", "peft: true is not a mapping of settings"),
    ({"ppo": ["epochs"]}, "ppo", "ppo: ['epochs'] is not a mapping of settings"),
    ({"ppo": {"epochs": 0}}, "ppo.epochs", "ppo.epochs: 0: must be at least 1"),
    (
        {"ppo": {"epoch": 1}},
        "ppo.epoch",
        "ppo.epoch: no such field; did you mean 'ppo.epochs'? (there are epochs, kl_coef, kl_estimator, use_kl_loss, "
        "whiten_rewards, cliprange, clip_ratio_c, cliprange_value, vf_coef, gamma, lam, temperature)",
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


TWICE: list[tuple[dict[str, Any], str, str]] = [
    (
        {"prompt_tokens": 600, "max_length": 512},
        "prompt_tokens",
        "prompt_tokens: 600 must be less than max_length, 512, which leaves the rest to the response",
    ),
    (
        {"response_tokens": 100, "max_length": 512},
        "response_tokens",
        "response_tokens: 100 with prompt_tokens 256 is not max_length, 512; leave response_tokens or max_length out",
    ),
    (
        {"prompt_tokens": 100, "lengths": {64: 1.0}},
        "prompt_tokens",
        "prompt_tokens: 100 says nothing beside lengths, {64: 1.0}, which say how long sequences are; leave one of both out",
    ),
    (
        {"response_tokens": 100, "lengths": {64: 1.0}, "max_length": 512},
        "response_tokens",
        "response_tokens: 100 says nothing beside lengths, {64: 1.0}, which say how long sequences are; leave one of both out",
    ),
]


@pytest.mark.parametrize(("settings", "field", "said"), TWICE)
def test_what_disagrees_about_lengths_is_named_where_they_are_used(
    settings: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(SFT_AXES, settings)
    assert str(caught.value) == said
    assert caught.value.field == field
    assert resolve(PPO_AXES, settings | {"lengths": None}).workload.max_length is None


@pytest.mark.parametrize("name", sorted(HERE))
def test_what_trainers_call_otherwise_is_told(name: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"unknown field {name!r}; {HERE[name]}")):
        resolve(SFT_AXES, {name: True})


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
    assert [name for name in Workload.model_fields if not described(Workload, name).endswith(".")] == []


def test_the_axes_names_are_known_without_torch() -> None:
    assert tuple(AXES) == AXIS_NAMES
    code = "import sys; import vrambench.methods.workload; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_an_unknown_axis_value_is_named() -> None:
    with pytest.raises(UnknownValue, match=r"^algorithm: 'sftt' is not one of .* did you mean 'sft'"):
        resolve(SFT_AXES | {"algorithm": "sftt"}, {})
