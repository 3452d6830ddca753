"""matrix.yaml: every way to get it wrong says what, where and what would do; include and exclude mean what GitHub's
mean."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrambench.bench.plan.combinations import Combination, combinations
from vrambench.bench.plan.document import load, parse, parse_value
from vrambench.bench.plan.matrix import Entry, Layer, Setting, load_matrix
from vrambench.bench.plan.plan import select
from vrambench.bench.plan.selection import Selection
from vrambench.methods.axes import AXES
from vrambench.methods.cards import CAPACITIES
from vrambench.methods.errors import ConfigurationError

ERRORS = Path(__file__).parent / "errors"

AXES_YAML = """
axes:
  precision: [fp32, bf16]
  adapter: [none]
  optimizer: [adamw_torch]
  offload: [none]
  algorithm: [sft, ppo]
"""


@pytest.mark.parametrize("name", sorted(path.stem for path in ERRORS.glob("bad-*.yaml")))
def test_bad_matrix_says_what_and_where(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ERRORS)
    with pytest.raises(ConfigurationError) as error:
        select(load_matrix(Path(f"{name}.yaml")), Selection(), "cpu")
    said = (ERRORS / f"{name}.txt").read_text()
    for axis, registry in AXES.items():
        said = said.replace(f"<{axis}>", ", ".join(registry))
    assert str(error.value) + "\n" == said.replace("<card>", ", ".join(CAPACITIES))


def test_every_bad_matrix_has_its_error() -> None:
    assert {path.stem for path in ERRORS.glob("*.yaml")} == {path.stem for path in ERRORS.glob("*.txt")}


@pytest.mark.parametrize(
    ("make", "reason"),
    [(lambda path: None, "No such file or directory"), (lambda path: path.mkdir(), "Is a directory")],
)
def test_unreadable_file(tmp_path: Path, make: Any, reason: str) -> None:
    path = tmp_path / "matrix.yaml"
    make(path)
    with pytest.raises(ConfigurationError, match=f"matrix.yaml: cannot be read: {reason}"):
        load_matrix(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "matrix.yaml")
    with pytest.raises(ConfigurationError, match=r"matrix.yaml: is not a regular file$"):
        load_matrix(tmp_path / "matrix.yaml")


def test_what_a_shell_has_opened_is_read() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as file:
        file.write("a: 1\n")
        file.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)
        assert load(Path(f"/dev/fd/{reading}")).data == {"a": 1}


def tenfold(first: str, wrap: str) -> str:
    """Nine levels of ten aliases each."""
    levels = [f"a{n}: &a{n} {wrap.replace('X', ', '.join([f'*a{n - 1}'] * 10))}\n" for n in range(1, 10)]
    return f"a0: &a0 {first}\n" + "".join(levels)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 500 + "]" * 500, "more than 30 lists or mappings inside each other"),
        ("- " * 5000, "more than 30 lists or mappings inside each other"),
        ("a: " + "9" * 5000, "a number of 5,000 characters; at most 100"),
        ("a: 0x" + "f" * 5000, "a number of 5,002 characters; at most 100"),
        ("a: 1" + ":1" * 5000, "a number of 10,001 characters; at most 100"),
        (tenfold("[x, x]", "[X]"), "more than 100,000 values, counting what aliases repeat"),
        (tenfold("{x: 1}", "{<<: [X]}"), "more than 100,000 values, counting what aliases repeat"),
        ("a: {<<: &b {<<: *b}}", "'<<' merges mappings (*name of one, or a list of them)"),
        ("a: " + "x" * 2**18, "more than 262,144 characters"),
    ],
)
def test_what_a_file_comes_to_is_bounded(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^x.yaml:\d+: " + re.escape(said) + "$"):
        parse(text, "x.yaml")


class TestLocated:
    def test_lines_of_keys_and_items(self) -> None:
        document = parse("a:\n  - 1\n  - b: 2\n    c: 3\n", "x.yaml")
        assert document.data == {"a": [1, {"b": 2, "c": 3}]}
        assert document.where("a", 1, "c") == "x.yaml:4: "

    def test_what_is_not_written_stands_where_its_owner_does(self) -> None:
        assert parse("a:\n  b: {c: 1}\n", "x.yaml").line("a", "b", "missing", 3) == 2

    def test_merge_keys_give_way_to_written_ones_and_earlier_ones(self) -> None:
        text = "one: &one {a: 1, b: 1}\ntwo: &two {b: 2, c: 2}\nboth: {<<: [*one, *two], a: 0}\n"
        assert parse(text, "x.yaml").data["both"] == {"a": 0, "b": 1, "c": 2}

    def test_a_byte_order_mark_is_not_part_of_the_first_key(self, tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
        assert load(tmp_path / "x.yaml").data == {"a": 1}

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("1e-3", 0.001),
            ("5E4", 50000.0),
            ("4", 4),
            ("true", True),
            ("none", "none"),
            ("null", None),
            ("[a, b]", ["a", "b"]),
        ],
    )
    def test_values(self, text: str, value: object) -> None:
        assert parse_value(text) == value

    @given(st.text(max_size=60))
    def test_any_text_is_read_or_explained(self, text: str) -> None:
        try:
            document = parse(text, "x.yaml")
        except ConfigurationError as error:
            assert str(error).startswith("x.yaml:")  # noqa: PT017 - either way is right, a crash is not
        else:
            assert document.name == "x.yaml"


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


def matrix_of(tmp_path: Path, text: str) -> Any:
    (tmp_path / "matrix.yaml").write_text(text)
    return load_matrix(tmp_path / "matrix.yaml")


def test_a_profile_is_laid_over_the_top(tmp_path: Path) -> None:
    matrix = matrix_of(
        tmp_path,
        AXES_YAML
        + """
workload: {steps: 3, seed: 1, ppo: {epochs: 2, lam: 0.9}}
exclude: [{precision: fp32}]
include: [{algorithm: ppo, max_grad_norm: 0.5}]
sweep: {seed: [1, 2]}
repeat: 2
profiles:
  other:
    axes: {algorithm: [remax]}
    workload: {seed: 7, ppo: {epochs: 4}}
    exclude: []
    coverage: pairwise
""",
    )
    over = matrix.layer("other")
    assert {name: setting.value for name, setting in over.workload.items()} == {
        "steps": 3,
        "seed": 7,
        "ppo.epochs": 4,
        "ppo.lam": 0.9,
    }
    assert [value.value for value in over.axes["algorithm"]] == ["remax"]
    assert [value.value for value in over.axes["precision"]] == ["fp32", "bf16"]
    assert over.exclude == ()
    assert len(over.include) == 1
    assert [setting.value for setting in over.sweep["seed"]] == [1, 2]
    assert (over.coverage, over.repeat) == ("pairwise", 2)


def test_settings_remember_their_lines(tmp_path: Path) -> None:
    matrix = matrix_of(tmp_path, AXES_YAML + "workload:\n  seed: 1\n  ppo:\n    epochs: 2\n")
    origins = {name: setting.origin for name, setting in matrix.top.workload.items()}
    name = tmp_path / "matrix.yaml"
    assert origins == {"seed": f"{name}:9: workload.", "ppo.epochs": f"{name}:11: workload."}


def test_a_matrix_may_be_include_alone(tmp_path: Path) -> None:
    entry = "{precision: bf16, adapter: lora, optimizer: adamw_torch, offload: none, algorithm: ppo, seed: %d}"
    matrix = matrix_of(tmp_path, f"include:\n  - {entry % 1}\n  - {entry % 2}\n")
    plan = select(matrix, Selection(), "cpu")
    assert [planned.cell.workload.seed for planned in plan.cells] == [1, 2]


def test_a_slip_in_the_file_is_told_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch takes seconds to import; shapes, keys and axes' names need none of it."""
    slips = [
        *("key", "syntax", "axis-name", "exclude-axis", "exclude-field", "include-nothing", "sweep-twice", "repeat"),
        *("default-profile-none", "other-profile-axis", "axis-twice", "tab"),
    ]
    code = f"""
import sys
from pathlib import Path
from vrambench.bench.plan.matrix import load_matrix
from vrambench.methods.errors import ConfigurationError
for name in {slips}:
    try:
        load_matrix(Path(f"bad-{{name}}.yaml"))
    except ConfigurationError as error:
        assert str(error) == Path(f"bad-{{name}}.txt").read_text().rstrip(), str(error)
    else:
        raise SystemExit(f"{{name}} passed")
assert "torch" not in sys.modules
"""
    told = subprocess.run([sys.executable, "-P", "-c", code], cwd=ERRORS, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def test_options_of_a_users_own_value_are_left_to_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles that are not in use are not imported for; a field without a namespace is wrong all the same."""
    profile = "profiles:\n  own:\n    axes: {optimizer: [nowhere:MINE]}\n    workload: {mine: {speed: 2}, %s: 3}\n"
    assert len(select(matrix_of(tmp_path, AXES_YAML + profile % "steps"), Selection(), "cpu").cells) == 4
    with pytest.raises(ConfigurationError, match="unknown field 'stepz'"):
        select(matrix_of(tmp_path, AXES_YAML + profile % "stepz"), Selection(), "cpu")
    without = AXES_YAML + "workload: {mine: {speed: 2}}\n"
    with pytest.raises(ConfigurationError, match="unknown field 'mine'"):
        select(matrix_of(tmp_path, without), Selection(), "cpu")
    text = """
from typing import ClassVar
from dataclasses import replace
from vrambench.methods.optimizers.adamw import ADAMW_TORCH
from vrambench.methods.registry import Options
class Mine(Options):
    namespace: ClassVar[str] = "mine"
    speed: int = 1
MINE = replace(ADAMW_TORCH, options=Mine)
"""
    (tmp_path / "own_options.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = select(matrix_of(tmp_path, without), Selection(axes={"optimizer": "own_options:MINE"}), "cpu")
    assert {planned.cell.workload.options["mine"]["speed"] for planned in plan.cells} == {2}


def test_an_option_beside_a_namespace_that_is_no_mapping_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"workload\.ppo: 4 is not a mapping of settings"):
        select(matrix_of(tmp_path, AXES_YAML + "workload: {ppo: 4, ppo.epochs: 2}\n"), Selection(), "cpu")
    plan = select(matrix_of(tmp_path, AXES_YAML + "workload: {ppo: null, ppo.epochs: 2}\n"), Selection(), "cpu")
    assert {one.cell.workload.options.get("ppo", {}).get("epochs") for one in plan.cells} == {None, 2}


@pytest.mark.parametrize(
    ("more", "selectors", "warned"),
    [
        ("exclude: [{precision: fp16}]", {}, ["exclude[0]"]),
        ("exclude: [{precision: fp32}, {precision: bf16, adapter: lora}]", {}, ["exclude[1]"]),
        ("exclude: [{precision: fp32}]", {}, []),
        ("exclude: [{precision: fp16}]", {"axes": {"precision": "bf16"}}, []),
        ("exclude: [{precision: fp16}]", {"only": ("precision=bf16",)}, []),
        ("exclude: [{precision: fp16}]\nprofiles: {p: {axes: {precision: [fp16]}}}", {}, []),
        ("exclude: [{precision: fp16}]\nprofiles: {p: {axes: {precision: [fp16]}, exclude: []}}", {}, ["exclude[0]"]),
        ("profiles: {p: {exclude: [{precision: fp16}]}}", {}, []),
        ("profiles: {p: {exclude: [{precision: fp16}]}}", {"profile": "p"}, ["profiles.p.exclude[0]"]),
    ],
)
def test_an_exclude_entry_that_can_match_nothing_is_warned_of(
    tmp_path: Path, more: str, selectors: dict[str, Any], warned: list[str]
) -> None:
    plan = select(matrix_of(tmp_path, AXES_YAML + more + "\n"), Selection(**selectors), "cpu")
    line = AXES_YAML.count("\n") + 1
    said = "matches no combination of the axes, and removes nothing"
    assert list(plan.warnings) == [f"{tmp_path / 'matrix.yaml'}:{line}: {name}: {said}" for name in warned]


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
