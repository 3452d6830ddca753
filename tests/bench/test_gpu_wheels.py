"""tests/gpu/wheels: what an offline GPU machine lacks is told by its list and our packages' metadata."""

from __future__ import annotations

import base64
import csv
import hashlib
import tomllib
import zipfile
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vrambench.methods.axes import AXES

ROOT = Path(__file__).parents[2]
BARE = "torch==2.11.0\ntransformers==5.17.0\npeft==0.21.0\npandas==2.3.3\npytest==9.0.2\n"
"""What a GPU machine has at least."""

PACKAGES: dict[str, tuple[str, list[str]]] = {
    "torch": ("2.13.0", ["sympy"]),
    "alpha": ("2.5", ["gamma>=3", 'win; sys_platform == "win32"', 'old; python_version < "3.12"', "torch"]),
    "beta": ("1.1", ["alpha"]),
    "gamma": ("3.1", ["ours"]),
    "under-score": ("0.1", []),
    "old": ("9.0", []),
}
DECLARED = ["torch>=2.8", "alpha>=2", 'beta; extra == "test"', "Under_Score"]


@pytest.fixture
def real_wheels(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("tests/gpu/wheels")


@pytest.fixture
def wheels(real_wheels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    def distribution(name: str) -> Any:
        version, requires = PACKAGES[name.lower().replace("_", "-")]
        return SimpleNamespace(version=version, requires=requires)

    monkeypatch.setattr(real_wheels, "ROOT_REQUIREMENT", "ours[test]")
    monkeypatch.setattr(real_wheels, "declared", lambda: DECLARED)
    monkeypatch.setattr(real_wheels, "metadata", SimpleNamespace(distribution=distribution))
    return real_wheels


@pytest.mark.parametrize(
    ("there", "python", "lacks"),
    [
        ("torch==2.11.0\ngamma==2.9\n", "3.12", {"alpha": "2.5", "beta": "1.1", "gamma": "3.1", "under-score": "0.1"}),
        ("torch\ngamma\nunder.score==0.0.1\n# a comment\n-e git+https://x@y#egg=z\n", "3.12", {"alpha": "2.5", "beta": "1.1"}),
        ("torch==2.11.0\nalpha==2.0\nbeta==0.1\nUnder_Score==1\n", "3.12", {}),
        ("torch==2.11.0\nalpha @ file:///tmp/alpha.whl\nbeta==0.1\nunder-score==1\n", "3.12", {}),
        ("torch==2.11.0\nalpha==1.9\ngamma==3.0\nbeta==1\nunder-score==1\n", "3.11", {"alpha": "2.5", "old": "9.0"}),
    ],
)  # fmt: skip
def test_what_is_there_in_a_version_that_will_do_is_left(
    wheels: ModuleType, there: str, python: str, lacks: dict[str, str]
) -> None:
    found = wheels.lacking(Requirement("ours[test]"), wheels.installed(there), python)
    assert dict(found) == lacks


def test_all_that_is_declared_and_all_that_an_axis_value_needs_is_packed_as_it_is_pinned(
    real_wheels: ModuleType,
) -> None:
    there = real_wheels.installed(BARE)
    packed = dict(real_wheels.lacking(Requirement(real_wheels.ROOT_REQUIREMENT), there, "3.12"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    apart = {"dev", "wandb", "trackio", "mlflow"}  # trackers, which TRL would import: no cell needs them
    lines = [*project["dependencies"], *(line for name in extras.keys() - apart for line in extras[name])]
    needed = {canonicalize_name(Requirement(line).name) for line in lines} - {project["name"]}
    modules = {module for registry in AXES.values() for name in registry for module in registry.get(name).requires}
    provided = packages_distributions()
    needed |= {canonicalize_name(provided[module.partition(".")[0]][0]) for module in modules}
    assert needed - {*packed, *there} == set()
    assert needed >= {
        "bitsandbytes",
        "torchao",
        "apollo-torch",
        "schedulefree",
        "torch-optimi",
        "trl",
        "datasets",
        "greenlet",
    }
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert packed.items() <= {canonicalize_name(name): pin for name, pin in pins.items()}.items()


def test_a_requirement_that_is_not_installed_here_is_told(
    real_wheels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real_wheels, "declared", lambda: ["torch", "not-there-at-all>=1"])
    (tmp_path / "installed.txt").write_text(BARE)
    assert real_wheels.main([str(tmp_path / "installed.txt"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: not-there-at-all is needed, and not installed here")


def test_a_list_that_is_none_is_wrong_usage(
    wheels: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "installed.txt"
    assert wheels.main([str(listed), "--out", str(tmp_path / "out")]) == 2
    for content in (b"<html>no list</html>", b"\x00\xff\xfe", b"", b"numpy==2.0\nPackage    Version\n"):
        listed.write_bytes(content)
        assert wheels.main([str(listed), "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5
    assert "torch is not in the list" in errors[3]
    assert "line 2: 'Package    Version' is no package" in errors[4]
    assert all(line.startswith(f"error: {listed}: ") for line in errors)
    assert not (tmp_path / "out").exists()
    listed.write_text("torch\n")
    assert wheels.main([str(listed), "--out", str(listed)]) == 2
    assert capsys.readouterr().err == f"error: {listed}: File exists\n"
    for version in ("3.10", "2.7", "abc", ""):
        with pytest.raises(SystemExit) as ended:
            wheels.main([str(listed), "--python", version])
        assert ended.value.code == 2


def test_bitsandbytes_keeps_one_library_and_a_true_record(wheels: ModuleType, tmp_path: Path) -> None:
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    record = "bitsandbytes-1.dist-info/RECORD"
    files = {
        "bitsandbytes/__init__.py": b"x = 1\n",
        **{
            f"bitsandbytes/libbitsandbytes_{name}.so": name.encode() for name in ("cpu", "cuda130", "cuda129", "rocm72")
        },
        "bitsandbytes-1.dist-info/METADATA": b"Name: bitsandbytes\n",
    }
    with zipfile.ZipFile(wheel, "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data)
        packed.writestr(record, "".join(f"{name},,\n" for name in files))
    with pytest.raises(ValueError, match=r"has 12\.9, 13\.0$"):
        wheels.slim(wheel, "999")
    wheels.slim(wheel, "130")
    with zipfile.ZipFile(wheel) as packed:
        kept = set(packed.namelist()) - {record}
        assert set(files) - kept == {f"bitsandbytes/libbitsandbytes_{name}.so" for name in ("cuda129", "rocm72")}
        rows = {
            name: (digest, length) for name, digest, length in csv.reader(packed.read(record).decode().splitlines())
        }
        assert set(rows) == {*kept, record}
        for name in kept:
            digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
            assert rows[name] == (f"sha256={digest}", str(len(files[name])))


def test_what_cannot_be_had_is_said(
    wheels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def fetch(name: str, version: str, folder: Path, python: str) -> bool:
        asked.append(name)
        (folder / f"{name}-{version}-py3-none-any.whl").write_bytes(b"x" * 2**20)
        return name != "beta"

    monkeypatch.setattr(wheels, "fetch", fetch)
    (tmp_path / "installed.txt").write_text("torch\n")
    (tmp_path / "out").mkdir()
    for name in ("alpha-1.0-py3", "somebody_s-1-py3"):
        (tmp_path / "out" / f"{name}-none-any.whl").write_bytes(b"")
    assert wheels.main([str(tmp_path / "installed.txt"), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert sorted(asked) == ["alpha", "beta", "gamma", "under-score"]
    assert told.out.splitlines()[-1] == f"    4.00 MiB  {tmp_path / 'out'}"
    names = {wheel.name for wheel in (tmp_path / "out").iterdir()}
    assert {"somebody_s-1-py3-none-any.whl", "alpha-2.5-py3-none-any.whl"} <= names, "nobody else's is gone"
    assert "alpha-1.0-py3-none-any.whl" not in names
    assert told.err == "error: beta==1.1: no wheel for Python 3.12 on Linux x86-64\n"
