"""How long `vrambench check` takes for a run of 500 cells, start-up included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from tests.reports import made
from vrambench.bench.gate.baseline import baseline_of, write_baseline
from vrambench.bench.results.records import Held
from vrambench.bench.results.store import RunFolder

CELLS = 500
HELD = tuple(
    Held(
        role="policy",
        kind="activations",
        phase="learn",
        module=f"model.layers.{place}",
        operator="aten.mm.default",
        nbytes=2**20,
    )
    for place in range(20)
)


def test_a_run_of_500_cells_is_checked(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.acquire()
    results = [made.full(f"{place:012x}").model_copy(update={"held": HELD}) for place in range(CELLS)]
    cells = [{"id": one.id, "name": one.name} for one in results]
    folder.write_info({"device": "predicted", "repeat": 1, "environment": made.ENVIRONMENT, "cells": cells})
    for one in results:
        folder.write_result(one)
    folder.release()
    write_baseline(baseline_of(RunFolder.open(folder.path)), tmp_path / "baseline.json")
    program = "import sys; from vrambench.bench.commands.app import main; sys.exit(main())"
    words = [sys.executable, "-P", "-c", program, "check", folder.path, "--baseline", tmp_path / "baseline.json"]
    done = benchmark.pedantic(
        subprocess.run, (words,), {"check": True, "capture_output": True, "text": True}, rounds=5, warmup_rounds=1
    )
    assert done.stdout.endswith("500 cells: 500 as before\n")
