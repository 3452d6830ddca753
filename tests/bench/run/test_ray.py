"""Cells on a cluster: whatever ends under them, each ends once, and what was lost runs again elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.bench.conftest import Listening, plan_cell
from tests.bench.run.clusters import SmallCluster, small_cluster
from vrambench.bench.plan.plan import PlannedCell
from vrambench.bench.results.store import RunFolder
from vrambench.bench.run.executor import Spot
from vrambench.bench.run.session import run

pytestmark = pytest.mark.slow

CELLS = 40
KILLS = 10
CELLS_OF_A_COMMAND = 15


@pytest.fixture(scope="module")
def cluster() -> Iterator[SmallCluster]:
    with small_cluster() as one:
        yield one


@pytest.fixture(scope="module")
def connection(cluster: SmallCluster) -> Iterator[None]:
    from vrambench.bench.run.ray_cluster import connected

    with connected(cluster.address):
        yield


class Watching(Listening):
    """Knows where each cell was, and calls `seen` for every one at work."""

    def __init__(self, seen: Callable[[Watching, Spot], None] = lambda watching, spot: None) -> None:
        super().__init__()
        self.seen = seen
        self.been: dict[str, set[str]] = {}

    def phase(self, name: str, spot: Spot) -> None:
        if spot.where:
            self.been.setdefault(name, set()).add(spot.where)
            self.seen(self, spot)


def tiny(count: int) -> list[PlannedCell]:
    cells = [plan_cell(seed=seed).cell for seed in range(count)]
    return [PlannedCell(cell, f"seed={cell.workload.seed}") for cell in cells]


@pytest.mark.usefixtures("connection")
def test_ten_random_kills_of_nodes_workers_and_jobs_lose_no_cell(cluster: SmallCluster, tmp_path: Path) -> None:
    from vrambench.bench.run.ray import RayExecutor
    from vrambench.bench.run.ray_cluster import Share

    cluster.has(one="L4", two="L4", three="L4")
    kills = [*("node", "worker", "job"), *random.Random(15).choices(["node", "worker", "job", "job"], k=KILLS - 3)]
    done: list[str] = []

    def kill(watching: Watching, spot: Spot) -> None:
        """After every third result a node is lost on which a cell is at work, and another one takes its place; or the worker there;
        or the cell's own process."""
        where = str(spot.where)
        if len(watching.results) < 3 * (len(done) + 1) or len(done) == KILLS or where not in cluster.nodes:
            return
        kind = kills[len(done)]
        if kind == "node":
            cluster.lose(where)
            cluster.has(**dict.fromkeys(cluster.nodes, "L4"), **{f"{where}+": "L4"})
        else:
            found = cluster.workers(where) if kind == "worker" else cluster.jobs(where)
            if not found:
                return
            with contextlib.suppress(psutil.NoSuchProcess):
                found[0].kill()
        done.append(kind)

    listening = Watching(kill)
    executor = RayExecutor("cpu", Share(cpus=1, gpus=1))
    summary = run(tiny(CELLS), tmp_path / "run", executor=executor, listener=listening)

    assert done == kills
    assert Counter(result.id for result in listening.results) == Counter(cell.id for cell in tiny(CELLS)), "none twice"
    assert summary.counts.get("ok", 0) + summary.counts.get("crashed", 0) == CELLS
    for result in listening.results:
        if result.status == "crashed":
            assert result.signal == "SIGKILL", "only a job that was killed itself"
    assert summary.counts.get("crashed", 0) <= kills.count("job")
    again = [message for message in listening.messages if message.endswith("has ended; it runs again")]
    noted = [note for result in listening.results for note in result.notes if note.startswith("lost on the way")]
    assert again
    assert len(noted) == len(again)
    assert {"the node" in note or "the worker" in note for note in noted} == {True}


@pytest.mark.usefixtures("connection")
def test_each_cell_is_measured_on_each_kind_of_gpu(cluster: SmallCluster, tmp_path: Path) -> None:
    from vrambench.bench.commands.cluster import Cluster
    from vrambench.bench.run.ray import RayExecutor
    from vrambench.bench.run.ray_cluster import Share, chosen_kinds
    from vrambench.methods.errors import ConfigurationError

    cluster.has(h="H100", l="L4")
    with pytest.raises(ConfigurationError, match="--on-gpus H100,L4"):
        chosen_kinds(())
    with pytest.raises(ConfigurationError, match="'H10' is not one of H100, L4"):
        chosen_kinds(("H10",))
    executor = RayExecutor("cpu", Share(gpus=1), ("H100", "L4"))
    planned = Cluster("cpu", ("H100", "L4"), executor).spread(lambda bf16: tiny(2))
    listening = Watching()
    run(planned, tmp_path / "run", executor=executor, listener=listening)
    assert {result.name: result.status for result in listening.results} == {
        f"seed={seed} gpu={kind}": "ok" for seed in (0, 1) for kind in ("H100", "L4")
    }
    assert listening.been == {one.name: {"h" if one.on == "H100" else "l"} for one in planned}
    stored = RunFolder.open(tmp_path / "run")
    assert stored.run is not None
    assert stored.run.environment.gpus == {"H100": None, "L4": None}
    assert [cell.on for cell in stored.run.cells] == ["H100", "H100", "L4", "L4"]
    assert all(result.environment["cpu"] for result in stored.results())


COMMAND = """
import sys
import vrambench.bench.run.ray as ray
from vrambench.bench.commands.app import main
ray.PATIENCE_SECONDS = 3.0
sys.exit(main(sys.argv[1:]))
"""
AXES = "--precision fp32 --adapter none --optimizer adamw_torch --offload none --algorithm sft"
SMALL = "--model tiny --budget 2GiB --set prompt_tokens=4 --set response_tokens=4 --set batch_size=2"


def command(cluster: SmallCluster, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", COMMAND, "run", *words], env=environment, stderr=subprocess.PIPE, text=True
    )


def stored(folder: Path, count: int) -> dict[str, int]:
    """When each result was written, once there are `count`."""
    ending = time.monotonic() + 300
    while len(files := list((folder / "cells").glob("[!.]*.json"))) < count:
        assert time.monotonic() < ending
        time.sleep(0.05)
    return {file.name: file.stat().st_mtime_ns for file in files}


@pytest.mark.usefixtures("packed")
def test_a_run_goes_on_after_its_driver_was_killed_and_after_no_node_was_left(
    cluster: SmallCluster, tmp_path: Path
) -> None:
    cluster.has(one="L4")
    folder = tmp_path / "run"
    seeds = ",".join(map(str, range(CELLS_OF_A_COMMAND)))
    asked = ["--on", "ray", "--device", "cpu", *AXES.split(), *SMALL.split(), "--sweep", f"seed={seeds}"]
    first = command(cluster, *asked, "--out", str(folder))
    kept = stored(folder, 2)
    first.kill()
    first.communicate()

    second = command(cluster, "--out", str(folder))
    kept |= stored(folder, len(kept) + 3)
    cluster.lose("one")
    _, told = second.communicate(timeout=300)
    assert second.returncode == 4, told
    assert "no node of the cluster is left that has 1 core" in told
    assert f"go on with: vrambench run --out {folder}" in told
    kept |= stored(folder, 0)
    assert len(kept) < CELLS_OF_A_COMMAND

    cluster.has(two="L4")
    third = command(cluster, "--out", str(folder))
    _, told = third.communicate(timeout=500)
    assert third.returncode == 0, told
    results = RunFolder.open(folder).results()
    assert [result.status for result in results] == ["ok"] * CELLS_OF_A_COMMAND
    now = stored(folder, CELLS_OF_A_COMMAND)
    assert {name: now[name] for name in kept} == kept, "what was stored did not run again"
    info = json.loads((folder / "run.json").read_text())
    assert (info["on"], len(info["resumed_with"])) == ("ray", 2)


@pytest.mark.usefixtures("connection", "predicted_here")
def test_predictions_over_a_cluster_are_those_of_this_machine(cluster: SmallCluster) -> None:
    from vrambench.bench.predict.many import predict_all
    from vrambench.bench.run.ray_cluster import predicting

    cluster.has(one="L4", two="L4")
    cells = [plan_cell(seed=0, batch_size=size).cell for size in range(1, 13)]
    here = predict_all(cells, "h100-80gb")
    there = predict_all(cells, "h100-80gb", pool=predicting)
    assert [outcome.reason for outcome in here.values()] == [None] * 12

    def timeless(outcomes: Any) -> dict[str, Any]:
        return {name: one.forecast.model_dump() | {"seconds": None} for name, one in outcomes.items()}

    assert timeless(there) == timeless(here)
