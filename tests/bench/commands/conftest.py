"""A small matrix, and a runner that runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.commands import run as command
from vrambench.bench.results.store import RunFolder
from vrambench.bench.run.session import Summary

MATRIX = """
axes:
  precision: [fp32, nf4]
  adapter: [none]
  optimizer: [adamw_torch]
  offload: [none]
  algorithm: [sft, ppo]
workload: {model: tiny, steps: 3}
repeat: 2
"""


@pytest.fixture
def matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small matrix in the current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "matrix.yaml"
    path.write_text(MATRIX)
    return path


Fake = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def runner(matrix: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a runner in place that stores run.json alone, and a report of no content; gives what the runner was called
    with."""
    import vrambench.bench.run.session

    calls: list[dict[str, Any]] = []

    def make(counts: dict[str, int], interrupted: bool = False) -> list[dict[str, Any]]:
        def run(planned: Any, folder: Path, *, about: dict[str, Any], repeat: int, device: str, **more: Any) -> Summary:
            calls.append(
                {"planned": planned, "folder": folder, "about": about, "repeat": repeat, "device": device, **more}
            )
            store = RunFolder(folder)
            store.acquire()
            cells = [{"id": one.cell.id, "name": one.name, **one.cell.flat()} for one in planned]
            how = {"jobs": more["jobs"], "timeout_seconds": more["timeout"]}
            told = {"device": device, "repeat": repeat, "environment": {}, **how, "cells": cells, **about}
            store.write_info(told)
            store.release()
            return Summary(folder, counts, 0, interrupted)  # type: ignore[arg-type]

        monkeypatch.setattr(vrambench.bench.run.session, "run", run)
        monkeypatch.setattr(command, "write_report", lambda folders, out: None)
        monkeypatch.setattr(command, "print_results", lambda folders, out: print("the table", file=out))
        return calls

    return make
