"""What is shipped: every package, the matrix and the report's templates; and the constraints that everything installs with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

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
