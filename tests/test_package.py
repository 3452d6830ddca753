"""What is shipped: wheel and source archive hold the files that git knows; the package's own names; and the constraints that
everything installs with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import vrambench

ROOT = Path(__file__).parents[1]
ROOMS = ("bench", "methods", "reports")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed() -> None:
    packages = {
        ".".join(["vrambench", *folder.relative_to(ROOT).parts])
        for top in ROOMS
        for folder in [ROOT / top, *(ROOT / top).rglob("*")]
        if (folder / "__init__.py").exists()
    }
    assert set(project()["tool"]["setuptools"]["packages"]) == packages | {"vrambench"}


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tracked: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wheel, an editable wheel and a source archive, made of the tracked files alone."""
    checkout, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("built")
    for name in tracked:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    build = "import sys, setuptools.build_meta as b; out = sys.argv[1]; b.build_sdist(out); b.build_wheel(out)"
    editable = "import sys, setuptools.build_meta as b; b.build_editable(sys.argv[1])"
    for code, folder in ((build, out), (editable, out / "editable")):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", code, folder]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    return out


def without_made(names: Iterable[str]) -> set[str]:
    """`names` without folders and what setuptools adds."""
    made = re.compile(r"\.dist-info/|\.egg-info/|^PKG-INFO$|^setup\.cfg$|/$|^$")
    return {name for name in names if not made.search(name)}


@pytest.mark.slow
def test_the_wheel_holds_what_git_knows_of_the_package(tracked: set[str], built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    data = re.compile(
        rf"({'|'.join(ROOMS)})/.*|__init__\.py|py\.typed|matrix\.yaml|claims\.yaml|results/[^/]*/accuracy[^/]*\.json"
    )
    names = without_made(zipfile.ZipFile(wheel).namelist())
    assert names == {f"vrambench/{name}" for name in tracked if data.fullmatch(name)}


def test_the_source_archive_holds_what_git_knows(tracked: set[str], built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = without_made(member.name.partition("/")[2] for member in tar if member.isfile())
    assert names == tracked


IMPORTED = """
import site, sys
site.addsitedir(sys.argv[1])
import vrambench
print(vrambench.__version__, vrambench.CARDS["rtx-4090"].name, "torch" in sys.modules, vrambench.__file__)
from vrambench.bench.plan.matrix import load_matrix
from pathlib import Path
print(*load_matrix(Path(vrambench.__file__).with_name("matrix.yaml")).profiles)
"""


@pytest.mark.parametrize("editable", [False, True])
def test_what_is_installed_is_a_package_with_a_version(built: Path, tmp_path: Path, editable: bool) -> None:
    (wheel,) = (built / "editable" if editable else built).glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    # Without the paths of what is installed here, and with its libraries.
    libraries = str(Path(pytest.__file__).parents[1])
    command = [sys.executable, "-S", "-c", f"import sys; sys.path.append({libraries!r})\n{IMPORTED}", tmp_path]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, profiles = done.stdout.splitlines()
    version, card, torch, file = first.split(" ", 3)
    assert (version, card, torch) == (vrambench.__version__, "rtx-4090", "False")
    assert file.endswith("__init__.py")
    assert Path(file).is_relative_to(tmp_path) is not editable
    assert profiles == "smoke 24gb 24gb-short 20b rlhf-20b"


def test_the_public_names_are_there() -> None:
    for name in vrambench.__all__:
        assert getattr(vrambench, name)
    assert set(vrambench.__all__) <= set(dir(vrambench))
    assert sorted(name for names in vrambench._HOMES.values() for name in names) == sorted(vrambench.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = vrambench.fitt


def test_every_dependency_is_pinned_for_the_project_and_wide_for_its_users() -> None:
    pins = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().split())
    extras = project()["project"]["optional-dependencies"]
    wanted = [*project()["project"]["dependencies"], *(one for extra in extras.values() for one in extra)]
    for extra in extras:
        wanted = [one for one in wanted if one != f"vrambench[{extra}]"]
    for requirement in wanted:
        name = re.match(r"[\w.-]+", requirement)
        assert name
        assert name[0].lower() in pins, requirement
        assert "==" not in requirement, requirement
    assert "+" not in pins["torch"], "the pin fits the CPU's and CUDA's builds"


@pytest.mark.parametrize(
    ("file", "imported"),
    [
        ("bench/results/store.py", "bench.run.session"),
        ("bench/plan/plan.py", "bench.predict.many"),
        ("bench/measure/oom.py", "reports.units"),
        ("methods/data.py", "bench.results.store"),
    ],
)
def test_an_import_that_runs_back_is_refused(tmp_path: Path, file: str, imported: str) -> None:
    for name in ROOMS:
        shutil.copytree(ROOT / name, tmp_path / "vrambench" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "__init__.py", tmp_path / "vrambench")

    def lint() -> tuple[int, str]:
        command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    assert lint()[0] == 0
    with (tmp_path / "vrambench" / file).open("a") as module:
        module.write(f"\nimport vrambench.{imported}\n")
    code, said = lint()
    assert code == 1
    assert f"vrambench.{file.removesuffix('.py').replace('/', '.')} -> vrambench.{imported}" in said
