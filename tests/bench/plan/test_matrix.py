"""matrix.yaml: every way to get it wrong says what, where and what would do; a profile is laid over the top."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.plan.matrix import load_matrix
from vrambench.bench.plan.plan import select
from vrambench.bench.plan.selection import Selection
from vrambench.methods.axes import AXES
from vrambench.methods.cards import CAPACITIES
from vrambench.methods.errors import NEAREST, ConfigurationError

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
    assert str(error.value) + "\n" == said.replace(
        "<card>", f"{', '.join([*CAPACITIES][:NEAREST])} (vrambench list cards tells all)"
    )


def test_every_bad_matrix_has_its_error() -> None:
    assert {path.stem for path in ERRORS.glob("*.yaml")} == {path.stem for path in ERRORS.glob("*.txt")}


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
        ("workload: {ppo: {epochs: 2}}", {}, []),
        ("workload: {ppo: {epochs: 2}}", {"axes": {"algorithm": "sft"}}, []),
        ("workload: {ppo: {epochs: 2}}", {"only": ("algorithm=sft",)}, []),
        ("workload: {galore: {rank: 2}}", {}, ["workload.galore.rank"]),
        ("workload: {galore: {rank: 2}}", {"axes": {"optimizer": "galore_adamw"}}, []),
        ("workload: {galore: {rank: 2}}", {"axes": {"algorithm": "sft"}}, ["workload.galore.rank"]),
        ("workload: {galore: {rank: 2}}\nprofiles: {p: {axes: {optimizer: [galore_adamw]}}}", {}, []),
        ("workload: {reward_model: gpt2}", {}, ["workload.reward_model"]),
        ("workload: {reward_model: gpt2}", {"axes": {"algorithm": "sft"}}, []),
        ("workload: {reward_model: gpt2}\nprofiles: {p: {workload: {reward: model}}}", {"profile": "p"}, []),
        ("workload: {max_eval_samples: 4}", {}, ["workload.max_eval_samples"]),
        ("profiles: {p: {workload: {lora_r: 4}}}", {"profile": "p"}, ["profiles.p.workload.lora_r"]),
        ("profiles: {p: {workload: {lora_r: null}}}", {"profile": "p"}, []),
    ],
)
def test_a_setting_that_no_cell_uses_is_warned_of(
    tmp_path: Path, more: str, selectors: dict[str, Any], warned: list[str]
) -> None:
    plan = select(matrix_of(tmp_path, AXES_YAML + more + "\n"), Selection(**selectors), "cpu")
    assert [one.split(": ")[1] for one in plan.warnings] == warned


@pytest.mark.parametrize("profile", ["smoke", "24gb", "20b"])
@pytest.mark.parametrize("algorithm", [{}, {"algorithm": "sft"}])
def test_the_shipped_matrix_warns_of_none(profile: str, algorithm: dict[str, str]) -> None:
    selection = Selection(profile=profile, axes=algorithm | {"precision": "int8", "adapter": "lora"})
    assert select(load_matrix(Path(__file__).parents[3] / "matrix.yaml"), selection, "cuda").warnings == ()


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


@pytest.mark.parametrize(
    ("more", "selectors", "warned"),
    [
        ("include: [{precision: bf16, lora_r: 4}]", {}, []),  # of one of its cells
        ("include: [{adapter: none, lora_r: 4, seed: 1}]", {}, ["include[0].lora_r"]),
        ("include: [{adapter: none, lora_r: null}]", {}, []),
        ("include: [{adapter: none, lora_r: 4}]", {"only": ("adapter=none",)}, []),
        ("include: [{adapter: none, ppo: {epochs: 2, lam: 0.5}}]", {}, ["include[0].ppo.epochs", "include[0].ppo.lam"]),
        ("include: [&one {adapter: none, lora_r: 4}, {<<: *one, adapter: lora}]", {}, []),
        ("include: [{adapter: none, reward_model: gpt2}]", {}, ["include[0].reward_model"]),
    ],
)
def test_what_include_adds_to_no_effect_is_warned_of(
    tmp_path: Path, more: str, selectors: dict[str, Any], warned: list[str]
) -> None:
    axes = (
        "precision: [bf16], adapter: [none, lora], optimizer: [adamw_torch], offload: [none], algorithm: [sft, remax]"
    )
    plan = select(matrix_of(tmp_path, f"axes: {{{axes}}}\n{more}\n"), Selection(**selectors), "cpu")
    expected = [f"{tmp_path / 'matrix.yaml'}:2: {name}: no cell here uses it (" for name in warned]
    assert len(plan.warnings) == len(expected)
    assert all(said.startswith(start) for said, start in zip(plan.warnings, expected, strict=True))
