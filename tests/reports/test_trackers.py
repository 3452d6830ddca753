"""Cells told to trackers of experiments, and read back by each one's own reader; nothing leaves the machine."""

from __future__ import annotations

import json
import struct
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.reports import made
from tests.reports.test_pairs import folder_of
from vrambench.bench.commands.app import main
from vrambench.bench.results.records import Learning, Parameters
from vrambench.reports.report import Report
from vrambench.reports.tracked import Tracked, tracked
from vrambench.reports.trackers import TRACKERS, to_mlflow, to_tensorboard, to_trackio, to_wandb

GIB = made.GIB
ODD = 12 * GIB + 1
"""Bytes that single precision does not hold."""
LOSSES = (2.5, 2.4, 2.2, 2.1)


@pytest.fixture
def cells() -> list[Tracked]:
    """A cell that is ok, and one out of memory."""
    return cells_of(ODD)


def cells_of(device: int) -> list[Tracked]:
    oom = made.one_of_each_status()[2]
    return list(tracked(Report([made.run_of([made.full("a1", device=device), oom])])))


def curve(points: Iterable[tuple[int, Mapping[str, float]]], name: str) -> list[tuple[int, float]]:
    return [(step, values[name]) for step, values in points if name in values]


def test_every_cell_is_told_with_its_settings_what_came_of_it_and_its_curves() -> None:
    run = made.run_of(made.one_of_each_status(), more_cells=[{"id": "b1", "name": "never", **made.cell(seed=9)}])
    told = list(tracked(Report([run])))
    first, oom, absent = told[0], told[2], told[-1]
    assert [cell.texts["status"] for cell in told] == [
        *("ok", "ok", "oom", "invalid", "pruned", "timeout", "crashed", "error", "not run")
    ]
    assert [cell.failed for cell in told] == [False] * 5 + [True] * 3 + [False]
    assert all(cell.texts.get("reason") for cell in told if cell.texts["status"] not in ("ok", "pruned"))
    assert first.config["precision"] == "bf16"
    assert first.config["adamw.betas"] == "[0.9, 0.999]"
    assert (first.config["gpu"], first.config["version.torch"]) == ("NVIDIA GeForce RTX 4090", "2.13.0")
    assert first.numbers["device_bytes"] == 12 * GIB
    assert first.numbers["trainable_parameters"] == 39_976_960
    assert first.numbers["rollout_allocated_bytes"] == 10 * GIB * 2 // 5
    assert (first.numbers["median_step_seconds"], first.numbers["last_quarter_loss"]) == (1.25, 2.1)
    assert curve(first.curves.items(), "train/loss") == list(enumerate(LOSSES))
    assert first.curves[3]["train/step_seconds"] == 1.3, "two steps of warm-up are not timed"
    assert "train/step_seconds" not in first.curves[1]
    assert first.curves[0]["peak/learn_allocated_bytes"] == 10 * GIB * 4 // 5
    assert oom.texts["phase"] == "learn"
    assert absent.texts["reason"] == "the run ended before it"
    assert len({cell.key for cell in told}) == len(told)


def test_a_cell_has_the_same_key_whenever_it_is_told_and_another_in_another_run() -> None:
    one = made.run_of([made.full("a1")])
    later = made.Run(one.name, {**one.info, "started_at": "2026-06-04T10:11:12+00:00"}, one.results)
    keys = [next(tracked(Report([run]))).key for run in (one, one, later)]
    assert keys[0] == keys[1] != keys[2]


def test_what_is_not_known_is_left_out() -> None:
    result = made.result("a1", learning=Learning(loss=(1.0, None)), parameters=Parameters(total=3, trainable=1))
    told = next(tracked(Report([made.run_of([result])])))
    assert told.curves == {0: {"train/loss": 1.0}}
    assert None not in (*told.numbers.values(), *told.texts.values(), *told.config.values())


def test_tensorboard_reads_its_files(cells: list[Tracked], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2
    from tensorboard.util.tensor_util import make_ndarray

    to_tensorboard(cells_of(GIB), str(tmp_path))
    to_tensorboard(cells, str(tmp_path))
    folders = sorted(tmp_path.iterdir())
    assert [folder.name for folder in folders] == [
        f"bf16_{adapter}_adamw_torch_none_sft-{key}"
        for adapter, key in (("lora", cells[0].key[:8]), ("none", cells[1].key[:8]))
    ]
    read = EventAccumulator(str(folders[0])).Reload()

    def series(tag: str) -> list[tuple[int, float]]:
        return [(event.step, make_ndarray(event.tensor_proto).item()) for event in read.Tensors(tag)]

    assert series("train/loss") == list(enumerate(LOSSES))
    assert series("device_bytes") == [(4, ODD)], "told again, it takes the place of what was told before"
    settings = read.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    given = plugin_data_pb2.HParamsPluginData.FromString(settings).session_start_info.hparams
    assert given["precision"].string_value == "bf16"
    assert given["status"].string_value == "ok"
    assert given["batch_size"].number_value == 1


def test_trackio_has_the_runs_on_this_machine(
    cells: list[Tracked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackio = pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for module in (utils, sqlite_storage, trackio):  # which TRACKIO_DIR says, before the first import
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path)
    to_trackio(cells_of(GIB), "vrambench-test")
    to_trackio(cells, "vrambench-test")
    runs = {run.config["key"]: run for run in trackio.Api().runs("vrambench-test")}
    assert sorted(runs) == sorted(cell.key for cell in cells)
    assert len(trackio.Api().runs("vrambench-test")) == 2
    run = runs[cells[0].key]
    assert (run.name, run.config["precision"], run.config["status"]) == ("bf16 lora adamw_torch none sft", "bf16", "ok")
    assert runs[cells[1].key].config["reason"].startswith("OutOfMemoryError")
    logged = sqlite_storage.SQLiteStorage.get_logs("vrambench-test", run.name, run_id=run.id)
    assert [entry["train/loss"] for entry in logged if "train/loss" in entry] == list(LOSSES)
    assert [entry["device_bytes"] for entry in logged if "device_bytes" in entry] == [ODD]


def test_mlflow_has_the_runs_in_its_store(
    cells: list[Tracked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database would want packages that mlflow-skinny lacks
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    to_mlflow(cells_of(GIB), "vrambench-test")
    to_mlflow(cells, "vrambench-test")
    client = mlflow.MlflowClient((tmp_path / "store").as_uri())
    experiment = client.get_experiment_by_name("vrambench-test")
    runs = {run.data.tags["vrambench.key"]: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == sorted(cell.key for cell in cells)
    run = runs[cells[0].key]
    assert run.data.params["precision"] == "bf16"
    assert run.data.params["version.torch"] == "2.13.0"
    assert (run.data.tags["status"], run.info.status) == ("ok", "FINISHED")
    assert run.data.metrics["device_bytes"] == ODD
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == list(enumerate(LOSSES))
    assert runs[cells[1].key].data.tags["reason"].startswith("OutOfMemoryError")


BLOCK, HEAD, FILE_HEAD = 32768, 7, 7
"""Bytes of a block, of a record's head and of the file's, in what W&B writes offline: LevelDB's log format."""


def records_of(file: Path) -> Iterator[Any]:
    """What W&B would send later."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), FILE_HEAD, b""
    while at + HEAD <= len(data):
        if BLOCK - at % BLOCK < HEAD:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def test_wandb_keeps_the_runs_offline(cells: list[Tracked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    to_wandb(cells, "vrambench-test")
    wandb.teardown()  # the process that writes the files has ended then, as it has where a program ends
    read = {file.stem: list(records_of(file)) for file in tmp_path.glob("wandb/offline-run-*/run-*.wandb")}
    assert sorted(read) == sorted(f"run-{cell.key}" for cell in cells)
    records = read[f"run-{cells[0].key}"]
    run = next(one.run for one in records if one.HasField("run"))
    assert (run.project, run.display_name, run.run_group) == (
        "vrambench-test",
        "bf16 lora adamw_torch none sft",
        "made",
    )
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (config["precision"], config["batch_size"]) == ("bf16", 1)
    logged = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in one.history.item}
        for one in records
        if one.HasField("history")
    ]
    assert curve(((one["_step"], one) for one in logged), "train/loss") == list(enumerate(LOSSES))
    summary = summary_of(records)
    assert (summary["device_bytes"], summary["status"]) == (ODD, "ok")
    assert summary_of(read[f"run-{cells[1].key}"])["reason"].startswith("OutOfMemoryError")


def summary_of(records: list[Any]) -> dict[str, Any]:
    return {
        item.key or item.nested_key[0]: json.loads(item.value_json)
        for one in records
        if one.HasField("summary")
        for item in one.summary.update
    }


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "one", [made.full("a1"), made.full("a2", seed=1)])
    return Path("one")


def test_the_command_tells_a_tracker(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    assert main(["track", "one", "--to", "tensorboard"]) == 0
    assert capsys.readouterr().out == "2 cells told to TensorBoard: one/tensorboard\n"
    assert len(list(run.glob("tensorboard/*/events.out.tfevents.*"))) == 2


def test_mistakes_are_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["track", "one", "--to", "wandbb"]) == 2
    assert "--to: 'wandbb' is not one of wandb, trackio, mlflow, tensorboard; did you mean" in capsys.readouterr().err
    assert main(["track", "one", "--to", "tensorboard", "--project", "mine"]) == 2
    assert capsys.readouterr().err == "error: --project: TensorBoard has no projects; leave it out\n"
    assert main(["track", "nowhere", "--to", "tensorboard"]) == 2
    assert "nowhere is not a run's folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert main(["track", "one", "--to", "trackio"]) == 2
    told = capsys.readouterr().err
    assert told == "error: --to trackio: Trackio is not installed; `pip install 'vrambench[trackio]'` brings it\n"


def test_what_a_tracker_refuses_is_told_in_its_words(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://there")
    assert main(["track", "one", "--to", "mlflow"]) == 4
    assert capsys.readouterr().err.startswith("error: MLflow: ")


def test_each_tracker_has_its_extra() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert set(TRACKERS) <= set(project["project"]["optional-dependencies"])


def test_names_are_text_to_every_tracker(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    told = list(tracked(Report([made.hostile_run()])))
    to_tensorboard(told, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == len(told)
    assert all(folder.parent == tmp_path for folder in tmp_path.iterdir())
