"""What other people's CI takes from here: the action's steps and the hook run, and ready workflows hold commands that would."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from vrambench.bench.commands.app import command_line

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
WORKFLOWS = [*sorted((ROOT / "docs" / "ci").glob("*.yml")), ROOT / ".pre-commit-hooks.yaml"]
MATRIX = """\
workload: {model: tiny, prompt_tokens: 8, response_tokens: 8, batch_size: 2, budget: 24GiB}
axes:
  precision: [bf16]
  adapter: [none]
  optimizer: [sgd]
  offload: [none]
  algorithm: [sft]
include:
  - {precision: bf16, adapter: none, optimizer: adamw_torch, offload: none, algorithm: sft}
"""
ONE_PROCESS = ["--jobs", "1"]
"""Predicts two cells: a second one would import for longer than it saves."""


def step(name: str, folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """A step of the action as a runner would run it: its script in bash -eo pipefail, its environment from the inputs."""
    given = {key: one["default"] for key, one in ACTION["inputs"].items()} | inputs

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: given[found[1]], text)

    told = STEPS[name]
    environment = {key: filled(value) for key, value in told["env"].items()}
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", told["run"]]
    return bash(words, folder, GITHUB_STEP_SUMMARY=str(folder / "page.md"), **environment)


def bash(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In an environment with little in it, with vrambench on the path."""
    kept = {key: value for key, value in os.environ.items() if key.startswith(("OMP", "PYTHONPATH", "VRAMBENCH"))}
    kept |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder)}
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, env=kept | environment, check=False)


@pytest.mark.slow
@pytest.mark.usefixtures("packed")
def test_the_action_passes_and_catches(tmp_path: Path) -> None:
    (tmp_path / "matrix.yaml").write_text(MATRIX)
    ran = step("Run the matrix", tmp_path, **{"run-arguments": " ".join(ONE_PROCESS)})
    assert ran.returncode == 0, ran.stderr
    missing = step("Hold it against the baseline", tmp_path)
    assert missing.returncode == 3
    assert "baseline.json is not there" in missing.stderr
    words = [Path(sys.executable).with_name("vrambench"), "baseline", "runs/vrambench", "-o", "baseline.json"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    passed = step("Hold it against the baseline", tmp_path)
    assert (passed.returncode, (tmp_path / "page.md").read_text()[:22]) == (0, "## vrambench: passed\n\n")
    baseline = json.loads((tmp_path / "baseline.json").read_text())
    for cell in baseline["cells"]:
        cell["memory"]["allocated_bytes"] -= 512
    (tmp_path / "baseline.json").write_text(json.dumps(baseline))
    caught = step("Hold it against the baseline", tmp_path)
    assert caught.returncode == 1
    for line, optimizer in ((7, "sgd"), (9, "adamw_torch")):  # of the axes its algorithm's, else the entry's own
        cell = f"bf16 none {optimizer} none sft"
        told = f"::error file=matrix.yaml,line={line},title=regressed%3A {cell}::allocated 512 B more"
        assert told in caught.stderr
    assert "## vrambench: regressed" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "runs" / "vrambench" / "junit.xml").is_file()
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["language"] == "system", "an environment of its own has other versions than the baseline"
    (tmp_path / "tmp").mkdir()
    words = [*shlex.split(hook["entry"]), "matrix.yaml", "--only", "algorithm=sft", *ONE_PROCESS]
    pushed = bash(words, tmp_path, TMPDIR=str(tmp_path / "tmp"))
    assert (pushed.returncode, pushed.stdout.splitlines()[-1]) == (1, "2 cells: 2 worse than the baseline")
    assert list((tmp_path / "tmp").iterdir()) == []


def scripts(node: Any) -> Iterator[str]:
    """What a document runs: scripts, and what the action is given."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("run", "entry") and isinstance(value, str):
                yield value
            elif key == "script":
                yield from value
            elif key == "run-arguments":
                yield f"vrambench run matrix.yaml {value}"
            else:
                yield from scripts(value)
    elif isinstance(node, list):
        for one in node:
            yield from scripts(one)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_every_command_of_a_workflow_is_one(file: Path) -> None:
    commands: Any = typer.main.get_command(command_line())
    text = "\n".join(scripts(yaml.safe_load(file.read_text())))
    found = re.findall(r"\bvrambench (run|check|baseline)((?: (?!\|\||&&)\S+)*)", text)
    assert found
    for name, rest in found:
        words = [word.strip("\"'") for word in rest.replace("&&", " ").split()]
        known = {option for one in commands.commands[name].params for option in (*one.opts, *one.secondary_opts)}
        assert [word for word in words if word.startswith("--") and word not in {*known, "--"}] == []


def test_a_workflow_gives_the_action_what_it_takes() -> None:
    for file in (ROOT / "docs" / "ci").glob("github-*.yml"):
        (job,) = yaml.safe_load(file.read_text())["jobs"].values()
        (used,) = [one for one in job["steps"] if "vrambench" in one.get("uses", "")]
        assert set(used["with"]) <= set(ACTION["inputs"])
