"""`baseline` and `check` read pytest-benchmark's own JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vrambench.bench.commands.app import main

TEST = """
def test_step(benchmark):
    benchmark.extra_info["device_bytes"] = {device_bytes}
    benchmark.extra_info["source"] = "predicted"
    benchmark(lambda: None)


def test_without(benchmark):
    benchmark(lambda: None)
"""


def benchmarked(folder: Path, device_bytes: int) -> str:
    (folder / "test_step.py").write_text(TEST.format(device_bytes=device_bytes))
    file = folder / f"{device_bytes}.json"
    command = [sys.executable, "-m", "pytest", "-q", f"--benchmark-json={file}", "--benchmark-max-time=0.01"]
    alone = {
        name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"
    }  # where it measures nothing
    subprocess.run(command, cwd=folder, capture_output=True, check=True, env=alone)
    return str(file)


@pytest.mark.slow
def test_a_benchmark_that_takes_more_is_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline = str(tmp_path / "baseline.json")
    assert main(["baseline", benchmarked(tmp_path, 2**30), "-o", baseline]) == 0
    assert "1 cell" in capsys.readouterr().out
    assert main(["check", benchmarked(tmp_path, 2**30), "--baseline", baseline]) == 0
    assert main(["check", benchmarked(tmp_path, 2**30 + 1), "--baseline", baseline]) == 1
    assert "test_step.py::test_step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"cells": []}, "neither a run's folder nor pytest-benchmark's JSON"),
        ([], "neither a run's folder nor pytest-benchmark's JSON"),
        ({"benchmarks": [], "machine_info": {"python_version": "3.11.1"}}, "no benchmark tells its peaks"),
        (
            {
                "benchmarks": [{"fullname": "a", "extra_info": {"device_bytes": "much"}}],
                "machine_info": {"python_version": "3.11.1"},
            },
            "device_bytes",
        ),
    ],
)
def test_another_file_is_told_in_one_sentence(
    document: object, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file.json"
    file.write_text(json.dumps(document))
    assert main(["baseline", str(file), "-o", str(tmp_path / "baseline.json")]) == 2
    assert said in capsys.readouterr().err
