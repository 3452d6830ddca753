"""What is shipped: every package, the matrix and the report's templates; and the constraints that everything installs with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed() -> None:
    packages = {
        ".".join(["vrambench", *folder.relative_to(ROOT).parts])
        for top in ("bench", "methods", "reports")
        for folder in [ROOT / top, *(ROOT / top).rglob("*")]
        if (folder / "__init__.py").exists()
    }
    assert set(project()["tool"]["setuptools"]["packages"]) == packages | {"vrambench"}


def test_every_dependency_is_pinned_for_the_project_and_wide_for_its_users() -> None:
    pins = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().split())
    extras = project()["project"]["optional-dependencies"]
    wanted = [*project()["project"]["dependencies"], *extras["test"], *extras["dev"]]
    wanted.remove("vrambench[test]")
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
    for name in ("bench", "methods", "reports"):
        shutil.copytree(ROOT / name, tmp_path / "vrambench" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "vrambench" / "__init__.py").touch()  # or what is installed would be looked at, too

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
