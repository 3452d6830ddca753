"""A cluster whose head has gone: whoever asks it is told before Ray ends the process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from vrambench.bench.run import ray_cluster
from vrambench.bench.run.executor import NowhereLeft
from vrambench.bench.run.node import Predicting
from vrambench.bench.run.ray import RayExecutor, RayJob

NODE = {"Alive": True, "NodeID": "a1", "NodeName": "one", "Resources": {"CPU": 1.0}}


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What listens where a cluster's head would."""

    class About:
        gcs_address = ""

    with socket.create_server(("127.0.0.1", 0)) as listening:
        About.gcs_address = f"127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setattr(ray_cluster.ray, "get_runtime_context", About)
        monkeypatch.setattr(ray_cluster.ray, "nodes", lambda: [NODE])
        yield listening


def test_a_head_that_has_gone_is_given_up_after_a_while(head: socket.socket) -> None:
    patient, soon = ray_cluster.Head(3600.0), ray_cluster.Head(0.0)
    assert (patient.nodes(), soon.nodes()) == ([NODE], [NODE])
    head.close()
    assert (patient.nodes(), patient.gone) == (None, False)
    with pytest.raises(NowhereLeft, match=r"^the cluster's head does not answer; start a cluster again$"):
        soon.nodes()
    assert soon.gone


def test_a_run_ends_with_it_and_waits_for_no_job(head: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vrambench.bench.run.ray.LOOK_SECONDS", 0.0)
    executor = RayExecutor("cpu", ray_cluster.Share(), patience=0.0)
    assert executor.places == 1
    head.close()
    job: Any = RayJob.__new__(RayJob)
    job.reference = object()
    executor._jobs.append(job)
    with pytest.raises(NowhereLeft):
        executor.has_room(None)
    executor.kill()  # ray.cancel() would refuse what is no reference
    assert executor._jobs == []


def test_predictions_that_wait_for_it_fail(head: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "LOOK_SECONDS", 0.01)
    pool = ray_cluster.PredictingPool(Predicting("", (), False), patience=0.0)
    answer: Future[Any] = Future()
    pool._waiting[answer] = object()
    head.close()
    with pytest.raises(NowhereLeft, match="head"):
        answer.result(timeout=60)
    pool.shutdown()
