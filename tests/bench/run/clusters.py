"""Ray clusters on this machine: nodes that are processes, with as many cores and GPUs as they are told."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

STORE_BYTES = 80 * 2**20
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""How soon a node is known to have gone."""


class SmallCluster:
    """A cluster whose head runs nothing; `nodes` by name."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        self._common: dict[str, Any] = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._cluster.add_node(num_cpus=0, node_name="head", _system_config=QUICK, **self._common)
        self.nodes: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def has(self, **kinds: str) -> None:
        """Nodes of these names and kinds of GPU, each with one of them and a core, and no others."""
        for name in set(self.nodes) - set(kinds):
            self.lose(name)
        for name, kind in kinds.items():
            if name not in self.nodes:
                self.nodes[name] = self._cluster.add_node(
                    num_cpus=1, num_gpus=1, node_name=name, resources={f"accelerator_type:{kind}": 1}, **self._common
                )

    def lose(self, name: str) -> None:
        """The node ends at once, as one whose power fails."""
        self._cluster.remove_node(self.nodes.pop(name), allow_graceful=False)

    def workers(self, name: str) -> list[psutil.Process]:
        """The processes of the node that run jobs."""
        raylet = psutil.Process(self.nodes[name].all_processes["raylet"][0].process.pid)
        return [one for one in raylet.children() if _called(one, "ray::_measure")]

    def jobs(self, name: str) -> list[psutil.Process]:
        """The processes of cells on the node: children of the servers that its workers have."""
        servers = [server for worker in self.workers(name) for server in worker.children()]
        return [job for server in servers for job in server.children()]

    def close(self) -> None:
        self._cluster.shutdown()


def _called(process: psutil.Process, name: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.cmdline()) and process.cmdline()[0].startswith(name)
    return False


def _at_work_in(folder: str) -> list[int]:
    """Processes of the cluster whose sessions are there, whoever is their parent by now."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = " ".join(one.cmdline())
            logs = command.startswith("ray::") and any(file.path.startswith(folder) for file in one.open_files())
            if logs or f"{folder}/ray/" in command:
                found.append(one.pid)
    return found


@contextlib.contextmanager
def small_cluster() -> Iterator[SmallCluster]:
    """A cluster, of which nothing is left at the end."""
    folder = tempfile.mkdtemp(prefix="vb", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # beside busy neighbours tests would wait for minutes
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = SmallCluster()
        try:
            yield cluster
        finally:
            cluster.close()
            ending = time.monotonic() + 60
            while left := _at_work_in(folder):
                assert time.monotonic() < ending, f"processes {left} of the cluster are left"
                time.sleep(0.1)
            shutil.rmtree(folder, ignore_errors=True)
