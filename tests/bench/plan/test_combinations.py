"""Include and exclude mean what GitHub's mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrambench.bench.plan.combinations import Combination, check_number, combinations
from vrambench.bench.plan.matrix import Entry, Layer, Setting
from vrambench.methods.axes import AXES
from vrambench.methods.errors import ConfigurationError


def layer(
    axes: Mapping[str, Sequence[str]],
    exclude: Sequence[Mapping[str, str]] = (),
    include: Sequence[Mapping[str, Any]] = (),
) -> Layer:
    def entry(item: Mapping[str, Any]) -> Entry:
        fields = {key: Setting(value, "") for key, value in item.items() if key not in AXES}
        return Entry({key: value for key, value in item.items() if key in AXES}, fields, "include")

    return Layer(
        axes={axis: tuple(Setting(name, "") for name in names) for axis, names in axes.items()},
        exclude=tuple(map(entry, exclude)),
        include=tuple(map(entry, include)),
    )


def flat(one: Combination) -> dict[str, Any]:
    return {**one.axes, **{name: setting.value for name, setting in one.added.items()}}


REST = {"precision": ["bf16"], "optimizer": ["adamw_torch"], "offload": ["none"]}
ONE = {axis: names[0] for axis, names in REST.items()}


def test_githubs_own_example_of_include() -> None:
    """The documentation's fruit (apple, pear) and animal (cat, dog), as algorithm (sft, ppo) and adapter (none,
    lora)."""
    made = combinations(
        layer(
            {**REST, "algorithm": ["sft", "ppo"], "adapter": ["none", "lora"]},
            include=[
                {"color": "green"},
                {"color": "pink", "adapter": "none"},
                {"algorithm": "sft", "shape": "circle"},
                {**ONE, "algorithm": "remax", "adapter": "none"},
                {**ONE, "algorithm": "remax", "adapter": "none", "size": "large"},
            ],
        )
    )
    short = [{key: value for key, value in flat(one).items() if key not in ONE} for one in made]
    assert short == [
        {"adapter": "none", "algorithm": "sft", "color": "pink", "shape": "circle"},
        {"adapter": "none", "algorithm": "ppo", "color": "pink"},
        {"adapter": "lora", "algorithm": "sft", "color": "green", "shape": "circle"},
        {"adapter": "lora", "algorithm": "ppo", "color": "green"},
        {"adapter": "none", "algorithm": "remax"},
        {"adapter": "none", "algorithm": "remax", "size": "large"},
    ]
    assert [one.included for one in made] == [False] * 4 + [True] * 2


def test_exclude_needs_only_part_of_a_combination() -> None:
    axes = {**REST, "algorithm": ["sft", "ppo"], "adapter": ["none", "lora"]}
    made = combinations(layer(axes, exclude=[{"algorithm": "ppo", "adapter": "none"}]))
    assert [(one.axes["adapter"], one.axes["algorithm"]) for one in made] == [
        ("none", "sft"),
        ("lora", "sft"),
        ("lora", "ppo"),
    ]


def test_include_brings_back_what_exclude_removed() -> None:
    axes = {**REST, "algorithm": ["sft", "ppo"], "adapter": ["none"]}
    entry = {**ONE, "algorithm": "ppo", "adapter": "none", "seed": 1}
    made = combinations(layer(axes, exclude=[{"algorithm": "ppo"}], include=[entry, {**entry, "seed": 2}]))
    assert [flat(one).get("seed") for one in made] == [None, 1, 2]


def naive(axes: Mapping[str, Sequence[str]], exclude: Sequence[Any], include: Sequence[Any]) -> list[dict[str, Any]]:
    """GitHub's wording, sentence by sentence."""
    originals = [dict(zip(AXES, values, strict=True)) for values in product(*(axes[axis] for axis in AXES))]
    originals = [one for one in originals if not any({**one, **entry} == one for entry in exclude)]
    results = [dict(one) for one in originals]
    for entry in include:
        fitting = [index for index, one in enumerate(originals) if {key: {**one, **entry}[key] for key in one} == one]
        for index in fitting:
            results[index].update(entry)
        if not fitting:
            results.append(dict(entry))
    return results


VALUES = {"precision": ["fp32", "bf16"], "adapter": ["none", "lora"], "algorithm": ["sft", "ppo", "remax"]}
FIXED = {"optimizer": "adamw_torch", "offload": "none"}
PARTIAL = st.fixed_dictionaries({}, optional={axis: st.sampled_from(names) for axis, names in VALUES.items()})
FIELDS = st.fixed_dictionaries({}, optional={"seed": st.integers(0, 3), "steps": st.integers(1, 3)})
COMPLETE = st.builds(
    lambda part: {**FIXED, "precision": "bf16", "adapter": "none", "algorithm": "sft", **part}, PARTIAL
)
INCLUDE = st.lists(st.builds(lambda some, more: {**some, **more}, PARTIAL | COMPLETE, FIELDS), max_size=6)
LISTS = st.fixed_dictionaries(
    {axis: st.lists(st.sampled_from(names), min_size=1, unique=True) for axis, names in VALUES.items()}
)


@settings(max_examples=300, deadline=None)
@given(LISTS, st.lists(PARTIAL.filter(bool), max_size=3), INCLUDE)
def test_include_and_exclude_are_githubs(lists: Any, exclude: Any, include: Any) -> None:
    axes = {**lists, **{axis: [name] for axis, name in FIXED.items()}}
    expected = naive(axes, exclude, include)
    if all(set(AXES) <= set(one) for one in expected):
        assert [flat(one) for one in combinations(layer(axes, exclude, include))] == expected
    else:
        with pytest.raises(ConfigurationError, match="fits no combination"):
            combinations(layer(axes, exclude, include))


def test_all_axes_by_name_are_the_combinations() -> None:
    """GitHub's rules hold for what a file says alone: exclude, and include's own combinations, are the file's."""
    axes = {**REST, "algorithm": ["sft", "ppo"], "adapter": ["none"]}
    entries = [
        {"algorithm": "sft", "max_grad_norm": 0},
        {**ONE, "adapter": "none", "algorithm": "sft", "seed": 1},
        {**ONE, "adapter": "none", "algorithm": "remax"},
        {"algorithm": "remax", "steps": 9},
    ]
    both = layer(axes, [{"algorithm": "sft"}], entries)
    assert [flat(one) for one in combinations(both, named=AXES)] == [
        {**ONE, "adapter": "none", "algorithm": "sft", "max_grad_norm": 0},
        {**ONE, "adapter": "none", "algorithm": "ppo"},
    ]


def test_pairwise_coverage_chooses_from_more_than_a_plan_can_hold() -> None:
    check_number(200_000, "they", "pairwise")
    check_number(20_000, "they", "full")
    with pytest.raises(ConfigurationError, match=r"20,000, and --coverage pairwise chooses from at most 200,000$"):
        check_number(20_001, "they", "full")
    for coverage in ("full", "pairwise"):
        with pytest.raises(ConfigurationError, match=r"they make 200,001 cells; a plan has at most 20?0,000$"):
            check_number(200_001, "they", coverage)
