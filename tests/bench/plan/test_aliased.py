"""What is typed in another tool's names is read in ours, and said; what is no exact name stays for the errors."""

from __future__ import annotations

import pytest

from vrambench.bench.plan.aliased import field_in_our_name, in_our_names
from vrambench.bench.plan.selection import Selection
from vrambench.methods.aliases import FIELDS_ELSEWHERE, VALUES
from vrambench.methods.axes import AXES
from vrambench.methods.errors import EXPLAINED
from vrambench.methods.validated import validated
from vrambench.methods.workload import FIELDS, Workload


@pytest.mark.parametrize(
    ("typed", "read", "notes"),
    [
        (
            Selection(axes={"precision": "4bit, bf16", "adapter": "FFT"}),
            Selection(axes={"precision": "nf4,bf16", "adapter": "none"}),
            2,
        ),
        (Selection(axes={"adapter": "qlora"}), Selection(axes={"adapter": "lora", "precision": "nf4"}), 1),
        (
            Selection(axes={"adapter": "qlora", "precision": "4bit"}),
            Selection(axes={"adapter": "lora", "precision": "nf4"}),
            2,
        ),
        (Selection(set=("seq_len=4096", "r = 8")), Selection(set=("max_length=4096", "lora_r= 8")), 2),
        (Selection(set=("lora_target=all",)), Selection(set=("lora_target_modules=all-linear",)), 1),
        (Selection(set=("compute_dtype=bfloat16",)), Selection(set=("compute_dtype=bf16",)), 1),
        (Selection(sweep=("micro_batch_size=1,2",)), Selection(sweep=("batch_size=1,2",)), 1),
        (Selection(only=("optimizer=adamw,sgd",)), Selection(only=("optimizer=adamw_torch,sgd",)), 1),
    ],
)
def test_another_tools_names_are_read(typed: Selection, read: Selection, notes: int) -> None:
    found, told = in_our_names(typed)
    assert {
        **found.__dict__,
        "axes": {axis: text.replace(" ", "") for axis, text in found.axes.items()},
    } == read.__dict__
    assert len(told) == notes


@pytest.mark.parametrize(
    "typed",
    [
        Selection(),
        Selection(axes={"adapter": "qlora", "precision": "bf16"}),  # two statements that cannot both hold
        Selection(axes={"adapter": "qlora,lora"}),
        Selection(axes={"precision": "fp8", "optimizer": "adam8bit", "offload": "zero3"}),
        Selection(set=("batch_size=4", "lora_target_modules=[q_proj, v_proj]", "seq")),
    ],
)
def test_whatever_means_anything_else_is_left_to_the_errors(typed: Selection) -> None:
    assert in_our_names(typed) == (typed, ())


def test_the_line_names_what_was_typed_how_it_is_read_and_whose_name_it_is() -> None:
    assert in_our_names(Selection(set=("cutoff_len=512",)))[1] == (
        "--set cutoff_len=512 is read as --set max_length=512 (LLaMA-Factory)",
    )
    assert field_in_our_name("micro_batch_size") == (
        "batch_size",
        "micro_batch_size is read as batch_size (axolotl, LitGPT)",
    )
    assert field_in_our_name("batch_size") == ("batch_size", None)


@pytest.mark.parametrize("place", sorted(VALUES))
def test_each_alias_of_a_value_names_one_of_ours_and_is_none_itself(place: str) -> None:
    for name, alias in VALUES[place].items():
        assert name not in EXPLAINED, name
        if place in AXES:
            assert alias.name in AXES[place]
            assert name not in AXES[place]
        else:
            assert getattr(validated(Workload, {place: alias.name}), place) == alias.name


def test_each_alias_of_a_field_names_one_of_ours_and_is_none_itself() -> None:
    assert {alias.name for alias in FIELDS_ELSEWHERE.values()} <= set(FIELDS)
    assert not set(FIELDS_ELSEWHERE) & {*FIELDS, *EXPLAINED}
