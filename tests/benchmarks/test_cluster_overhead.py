"""What a cluster costs beside processes of this machine: a run of 60 tiny cells on two cores, both ways in turn, start-up apart.

    .venv/bin/python -m pytest tests/benchmarks/test_cluster_overhead.py --benchmark-only -s

As all here a measurement, not a test of a limit: `ratio` is the median time on the cluster over the median time here.
"""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

from tests.bench.run.clusters import small_cluster
from tests.benchmarks.test_overhead import AXES, TINY, Clock
from vrambench.bench.plan.plan import PlannedCell
from vrambench.bench.run.executor import Executor
from vrambench.bench.run.local import LocalExecutor
from vrambench.bench.run.session import run
from vrambench.methods.cell import resolve

CELLS, JOBS, ROUNDS = 60, 2, 2


def cells(count: int) -> list[PlannedCell]:
    made = [resolve(AXES, TINY | {"seed": seed}) for seed in range(count)]
    return [PlannedCell(cell, f"{cell.name} seed={cell.workload.seed}") for cell in made]


def test_a_run_on_a_cluster_beside_one_here(benchmark: Any, tmp_path: Path) -> None:
    from vrambench.bench.run.ray import RayExecutor
    from vrambench.bench.run.ray_cluster import Share, connected

    folders = (tmp_path / str(number) for number in itertools.count())

    def seconds(executor: Executor, count: int = CELLS) -> float:
        began = time.perf_counter()
        summary = run(cells(count), next(folders), jobs=JOBS, executor=executor, listener=Clock())
        assert summary.counts == {"ok": count}
        return time.perf_counter() - began

    def in_turn() -> dict[str, list[float]]:
        with small_cluster() as cluster:
            cluster.has(one="L4", two="L4")
            with connected(cluster.address):
                executors: dict[str, Executor] = {
                    "here": LocalExecutor("cpu", JOBS),
                    "cluster": RayExecutor("cpu", Share()),
                }
                for executor in executors.values():  # starts what jobs are forked from
                    seconds(executor, 4 * JOBS)
                times: dict[str, list[float]] = {name: [] for name in executors}
                for _ in range(ROUNDS):
                    for name, executor in executors.items():
                        times[name].append(seconds(executor))
                return times

    told = benchmark.pedantic(in_turn, rounds=1, iterations=1)
    median = {name: statistics.median(times) for name, times in told.items()}
    benchmark.extra_info |= {"cells": CELLS, "seconds": told, "ratio": median["cluster"] / median["here"]}
    print("\ncluster beside here:", benchmark.extra_info)
