"""Tests on a real CUDA device. What changes a process for good (contexts, caps, running out) happens in a process of
its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-P", "-c", "import sys; from vrambench.bench.commands.app import main; sys.exit(main())"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread_each() -> None:
    """Not here: a GPU's tests run alone, and optimizers that step on the host have every processor."""


@pytest.fixture(autouse=True)
def _needs_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], dict[str, Any]]:
    """Runs Python code in a fresh process; gives what it put into `result`, which the report of the tests keeps too."""

    def run(code: str) -> dict[str, Any]:
        whole = f"import json\nresult = {{}}\n{code}\nprint('RESULT' + json.dumps(result))"
        done = subprocess.run([sys.executable, "-P", "-c", whole], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        told = done.stdout.rpartition("RESULT")[2].strip()
        record_property("result", told)
        return json.loads(told)

    return run


@pytest.fixture
def run_matrix(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs a matrix of this folder on CUDA with the command line; gives its results."""

    def run(name: str, *options: str) -> list[dict[str, Any]]:
        matrix = Path(__file__).with_name(name)
        out = tmp_path / "run"
        command = [*COMMAND, "run", str(matrix), "--device", "cuda", "--out", str(out), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
        assert done.returncode in (0, 4), done.stderr
        return [json.loads(file.read_text()) for file in sorted((out / "cells").glob("*.json"))]

    return run
