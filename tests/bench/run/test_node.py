"""What a worker on a node does, without a cluster around it."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from tests.bench.conftest import plan_cell
from vrambench.bench.run import node
from vrambench.bench.run import ray as cluster
from vrambench.bench.run.executor import Order, Spot
from vrambench.bench.run.ray_cluster import Share
from vrambench.bench.run.samples import sample_of


def order(folder: Path, **workload: Any) -> Order:
    return Order(plan_cell(**workload).cell.flat(), "cpu", folder / "logs" / "driver's", 600.0)


def test_what_comes_back_is_data_and_the_drivers_files_are_left_alone(tmp_path: Path) -> None:
    spots: list[Spot] = []
    came = node.measure(order(tmp_path), 1, tmp_path, spots.append)
    assert came.ended.final is not None
    assert came.ended.final.status == "ok"
    assert came.ended.environment == node.environment("cpu")
    assert came.log.endswith(b"on cpu\n")
    assert came.recording is None
    assert list(tmp_path.iterdir()) == []
    assert pickle.loads(pickle.dumps(came)).ended == came.ended


def test_what_cells_save_for_others_must_be_where_the_run_is(tmp_path: Path) -> None:
    asked = dataclasses.replace(order(tmp_path), saved=tmp_path / "run" / "saved")
    came = node.measure(asked, 1, tmp_path, print)
    assert came.ended.final is not None
    assert (came.ended.final.status, came.ended.final.reason) == ("error", node.NOT_SHARED)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    came = node.measure(asked, 1, tmp_path, print)
    assert came.ended.final is not None
    assert came.ended.final.status == "ok"


ENDINGS = [
    (lambda: NodeDiedError("gone"), ("lost", "the node that it ran on")),
    (WorkerCrashedError, ("lost", "the worker that it ran in")),
    (lambda: ObjectLostError("00" * 28, None, ""), ("lost", "the worker that it ran in")),
    (lambda: OutOfMemoryError("killed"), ("oom", "the system's out-of-memory killer ended the process")),
    (
        lambda: RayTaskError("measure", "Traceback\nOSError: no space", OSError("x")),
        ("error", "its node failed: OSError: no space"),
    ),
]


@pytest.mark.parametrize(("error", "told"), ENDINGS)
def test_what_the_cluster_did_is_told_apart_from_what_the_job_did(
    error: Callable[[], Exception], told: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(reference: object) -> None:
        raise error()

    monkeypatch.setattr(cluster.ray, "get", get)
    ended = cluster._ended(cluster.RayJob(order(tmp_path), None, 1, None))
    if ended.lost:
        assert ("lost", ended.lost) == told
    else:
        assert (sample_of(ended).status, sample_of(ended).reason) == told


@pytest.mark.parametrize(
    ("has", "kind", "places"),
    [
        ({"CPU": 8.0, "GPU": 4.0, "accelerator_type:L4": 1.0}, "L4", 4),
        ({"CPU": 8.0, "GPU": 4.0, "accelerator_type:L4": 1.0}, "H100", 0),
        ({"CPU": 7.0, "GPU": 4.0}, None, 3),
        ({"CPU": 8.0}, None, 0),
        ({}, None, 0),
    ],
)
def test_a_node_has_a_place_for_each_whole_share(has: dict[str, float], kind: str | None, places: int) -> None:
    assert Share(cpus=2, gpus=1).places({"Resources": has}, kind) == places
    assert Share(cpus=2).places({"Resources": has}, kind if kind == "L4" else None) == int(has.get("CPU", 0)) // 2


def test_news_wait_until_there_are_some_and_are_told_once() -> None:
    async def told() -> list[dict[int, Spot]]:
        board = node.Board()
        first = asyncio.ensure_future(board.news())
        await asyncio.sleep(0)
        assert not first.done()
        await board.say(1, Spot("load"))
        await board.say(1, Spot("learn", 2))
        await board.say(2, Spot("load"))
        news = [await first]
        await board.say(2, Spot("learn", 0))
        return [*news, await board.news()]

    assert asyncio.run(told()) == [{1: Spot("learn", 2), 2: Spot("load")}, {2: Spot("learn", 0)}]


@pytest.mark.parametrize("visible", ["3", "GPU-1234"])
def test_a_job_sees_the_gpu_that_its_order_names(visible: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of jobs is not started anew for it."""
    asked: list[Order] = []

    class Started:
        spot = Spot()
        ended = None

        def start(self, order: Order) -> Any:
            asked.append(order)
            raise OSError("no process")

    monkeypatch.setattr(node, "_executor", lambda *given: Started())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    on_cuda = dataclasses.replace(order(tmp_path), device="cuda:0")
    for one in (on_cuda, order(tmp_path)):
        with pytest.raises(OSError, match="no process"):
            node.measure(one, 1, tmp_path, print)
    assert [one.visible for one in asked] == [visible, None]
