"""What a run costs beside training: time per cell that is not training, and the slow-down of a step by the meters.

    make benchmark

These are measurements, not tests of a limit: they print and store what they saw (`extra_info` of pytest-benchmark).
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.meters_cost import measure
from vrambench.bench.plan.plan import PlannedCell
from vrambench.bench.results.records import Result
from vrambench.bench.run.executor import Spot
from vrambench.bench.run.session import run
from vrambench.methods.cell import resolve
from vrambench.methods.device import get_device

AXES = {"precision": "fp32", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
TINY = {"model": "tiny", "batch_size": 4, "prompt_tokens": 8, "response_tokens": 8, "steps": 3, "budget": "2GiB"}
CELLS = 12
JOBS = 2


class Clock:
    """Listens to a run, and notes when each cell began and ended."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.outside_training: list[float] = []

    def started(self, name: str, done: int, total: int) -> None:
        self.began[name] = time.perf_counter()

    def phase(self, name: str, spot: Spot) -> None:
        pass

    def finished(self, result: Result) -> None:
        assert result.status == "ok", result.reason
        training = result.seconds["warmup"] + result.seconds["steps"]
        self.outside_training.append(time.perf_counter() - self.began[result.name] - training)

    def message(self, text: str) -> None:
        pass


def tiny_cells(first_seed: int) -> list[PlannedCell]:
    cells = [resolve(AXES, TINY | {"seed": first_seed + seed}) for seed in range(CELLS)]
    return [PlannedCell(cell, f"{cell.name} seed={cell.workload.seed}") for cell in cells]


def test_time_per_cell_that_is_not_training(benchmark: Any, tmp_path: Path) -> None:
    """From the moment a cell is started to its result on the disk, without warm-up and timed steps; two jobs at a time."""
    clock = Clock()
    run(tiny_cells(1000), tmp_path / "first", jobs=JOBS, listener=Clock())  # the server is there from now on
    rounds = iter(range(100))

    def one_run() -> None:
        number = next(rounds)
        run(tiny_cells(number * CELLS), tmp_path / str(number), jobs=JOBS, listener=clock)

    benchmark.pedantic(one_run, rounds=5, iterations=1)
    benchmark.extra_info |= {
        "cells_per_run": CELLS,
        "jobs": JOBS,
        "median_seconds_outside_training": statistics.median(clock.outside_training),
        "largest_seconds_outside_training": max(clock.outside_training),
    }
    print("\nper cell outside training:", benchmark.extra_info)


def test_slow_down_of_a_step_by_the_meters(benchmark: Any) -> None:
    """Interleaved pairs of steps of one PPO job, with the meters and without (meters_cost.py)."""
    torch.set_num_threads(1)
    told = benchmark.pedantic(measure, args=(get_device("auto"), 200), rounds=1, iterations=1)
    benchmark.extra_info |= told
    print("\nmeters:", told)
