"""A run that predicts: the results are what `plan` and `fit` say, stored one by one, and what takes a run takes it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.bench.conftest import predicting_here
from vrambench.bench.commands.app import main
from vrambench.bench.predict.cache import Cache
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.results.forecast import Forecast
from vrambench.bench.results.store import RunFolder
from vrambench.bench.run.executor import Order
from vrambench.bench.run.predicted import PredictingExecutor
from vrambench.methods.cards import CARDS
from vrambench.methods.cell import Cell, from_flat, resolve
from vrambench.methods.workload import AXIS_NAMES
from vrambench.reports.report import Report
from vrambench.reports.rows import Run

GPT2 = ("--model", "gpt2", "--set", "prompt_tokens=24", "--set", "response_tokens=8")
AXES = ("--precision", "bf16,nf4", "--adapter", "none,lora", "--optimizer", "sgd", "--offload", "none")
CLAIMS = """
common: {adapter: none, optimizer: adamw_torch, offload: none, algorithm: sft, model: tiny, budget: 24GiB}
claims:
  states:
    claim: AdamW keeps two numbers in fp32
    source: a paper
    cells: {job: {precision: fp32}}
    formula: job.optimizer_bytes / job.parameters
    claimed: 8 bytes
"""
SFT = (*GPT2, *AXES, "--algorithm", "sft")


def predicted(out: Path, *more: str) -> int:
    return main(["run", "--out", str(out), "--device", "predicted", "--jobs", "1", *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predicted") / "run"
    with predicting_here():
        assert predicted(out, *SFT, "--budget", "rtx-4090") == 0
    return out


def test_results_are_what_the_predictor_says(run: Path) -> None:
    results = {one.name: one for one in RunFolder.open(run).results()}
    assert {name: one.status for name, one in results.items()} == {
        "bf16 none sgd none sft": "ok",
        "bf16 lora sgd none sft": "ok",
        "nf4 none sgd none sft": "invalid",
        "nf4 lora sgd none sft": "ok",
    }
    predictor = Predictor()
    for one in results.values():
        if one.status == "invalid":
            assert one.rule == "quantized-full"
            continue
        forecast = predictor.forecast(from_flat(one.cell), card=CARDS["rtx-4090"])
        assert one.source == "predicted"
        assert one.memory == one.predicted == forecast.memory
        assert one.predicted_verdict == forecast.stored_verdict
        assert (one.roles, one.parameters) == (forecast.roles, forecast.parameters)
        peaks = [(phase.name, phase.step, phase.device_bytes) for phase in one.phases]
        assert peaks == [(phase.name, phase.step, phase.device_bytes) for phase in forecast.phases]
        assert {phase.seconds for phase in one.phases} == {None}
        assert one.throughput.step_seconds == one.learning.loss == ()


def test_the_report_says_what_fits_and_for_which_card(run: Path) -> None:
    folder = RunFolder.open(run)
    page = (run / "report.html").read_text()
    assert "<title>vrambench: predicted for rtx-4090</title>" in page
    rows = Report([Run("run", folder.info, tuple(folder.results()))]).rows
    assert {row.verdict.fit for row in rows if row.status == "ok"} == {"fits"}
    assert {row.verdict.source for row in rows if row.status == "ok"} == {"predicted"}
    assert 'data-key="tokens"' not in page
    assert 'data-key="device"' in page


@pytest.mark.slow
@pytest.mark.usefixtures("predicted_here")
def test_what_is_predicted_answers_a_claim_and_is_no_measurement_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "claims.yaml").write_text(CLAIMS)
    assert main(["run", "--claims", "all", "--device", "predicted", "--repeat", "2"]) == 2
    assert "--repeat: a prediction is the same each time" in capsys.readouterr().err
    assert main(["run", "--claims", "all", "--device", "predicted", "--out", "run", "--jobs", "1"]) == 0
    assert "claim states: 8 bytes claimed, 8 bytes predicted: reproduced (predicted)" in capsys.readouterr().out
    assert main(["claims", "run", "--no-predict", "--json"]) == 0
    (claim,) = json.loads(capsys.readouterr().out)["claims"]
    assert (claim["predicted"]["run"], claim["predicted"]["value"], claim["measured"]) == ("run", 8.0, [])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<td>8 bytes<td>8 bytes<td>reproduced (predicted)" in page
    assert main(["run", "--out", "run"]) == 0, "resumed"


@pytest.mark.usefixtures("predicted_here")
def test_what_does_not_fit_is_out_of_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predicted(tmp_path / "run", *SFT, "--budget", "1GiB", "--only", "adapter=none") == 0
    told = capsys.readouterr().out
    (result,) = (one for one in RunFolder.open(tmp_path / "run").results() if one.status != "invalid")
    assert result.status == "oom"
    assert result.oom is not None
    assert result.oom.where == "device"
    assert (result.memory.device_bytes or 0) > 2**30
    assert result.reason is not None
    assert result.reason.endswith("without a limit, and has 1.00 GiB")
    assert result.reason in told
    assert "0 of the 1 whose device memory is known fit the budget of 1 GiB" in told
    assert "tokens/s" not in told


@pytest.mark.slow
@pytest.mark.usefixtures("predicted_here")
def test_it_is_resumed_and_added_to(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in (run / "cells").iterdir()}
    assert main(["run", "--out", str(run)]) == 0
    assert {file.name: file.stat().st_mtime_ns for file in (run / "cells").iterdir()} == before
    gone = next(one for one in RunFolder.open(run).results() if one.status == "ok")
    (run / "cells" / f"{gone.id}.json").unlink()
    assert main(["run", "--out", str(run)]) == 0
    made = RunFolder.open(run).read_result(gone.id)
    assert made is not None
    assert made.memory == gone.memory
    capsys.readouterr()
    assert main(["run", "--out", str(run), "--device", "cpu"]) == 2
    assert "was begun elsewhere (device: predicted before, cpu now)" in capsys.readouterr().err


@pytest.mark.usefixtures("predicted_here")
def test_a_cell_that_cannot_be_predicted_is_an_error(tmp_path: Path) -> None:
    axes = (*AXES[:1], "bf16", "--adapter", "lora", *AXES[4:])
    assert predicted(tmp_path / "run", *GPT2, *axes, "--algorithm", "sft,trl_sft", "--set", "loss=nll") == 4
    results = {one.cell["algorithm"]: one for one in RunFolder.open(tmp_path / "run").results()}
    assert results["sft"].status == "ok"
    assert results["trl_sft"].status == "error"
    assert "measured" in (results["trl_sft"].reason or "")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--repeat", "3"), "--repeat: a prediction is the same each time; leave it out"),
        (("--prune",), "--prune: is for runs on a GPU, and this one is predicted"),
        (("--record",), "--record: is for runs on a GPU, and this one is predicted"),
        (("--device", "predict"), "--device: 'predict' is not one of auto, cpu, cuda, cuda:N, predicted"),
    ],
)
def test_what_says_nothing_to_it_is_refused(
    tmp_path: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--out", str(tmp_path / "run"), "--device", "predicted", *SFT, *more]) == 2
    assert message in capsys.readouterr().err


def order(cell: Cell, seconds: float = 600.0) -> Order:
    return Order(cell.flat(), "predicted", Path("unused.log"), seconds)


def cell(**settings: Any) -> Cell:
    axes = dict(zip(AXIS_NAMES, ("bf16", "none", "sgd", "none", "sft"), strict=True))
    return resolve(axes, {"model": "gpt2"} | settings)


@pytest.mark.slow
def test_a_process_that_dies_loses_the_cell_that_it_predicts_and_one_that_dies_between_two_loses_none() -> None:
    executor = PredictingExecutor(None, 1)

    def ended(job: Any) -> Any:
        while job.ended is None:
            executor.wait(0.1)
        return job.ended

    def kill_processes() -> None:
        while not (mine := [one for one in psutil.Process().children() if "spawn_main" in " ".join(one.cmdline())]):
            executor.wait(0.1)
        for one in mine:
            one.kill()

    try:
        first = executor.start(order(cell()))
        kill_processes()
        assert ended(first).lost
        second = ended(executor.start(order(cell())))
        kill_processes()
        pool = executor._pool
        while not getattr(pool, "_broken", None):
            time.sleep(0.01)
        third = ended(executor.start(order(cell())))
    finally:
        executor.kill()
    here = timeless(Predictor().forecast(cell()))
    assert (timeless(second.forecast), timeless(third.forecast)) == (here, here)


def timeless(forecast: Forecast) -> Forecast:
    return forecast.model_copy(update={"seconds": 0.0})


def test_what_was_predicted_before_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "kept")
    before = Predictor(cache=cache).forecast(cell())
    executor = PredictingExecutor(None, 1, cache=cache)
    monkeypatch.setattr("vrambench.bench.run.predicted.new_pool", lambda *settings: pytest.fail("a process"))
    job = executor.start(order(cell()))
    executor.wait(0.1)
    assert job.ended is not None
    assert job.ended.forecast == before


@pytest.mark.slow
@pytest.mark.usefixtures("predicted_here")
def test_what_a_configuration_leaves_out_is_left_out_when_the_run_is_resumed(tmp_path: Path) -> None:
    file, out = tmp_path / "sft.yaml", tmp_path / "run"
    file.write_text("learning_rate: 1.0e-4\nlora_rank: 4\n")
    config = ("--config", str(file), "--config-format", "trl-sft", "--model", "tiny", "--set", "max_length=32")
    assert predicted(out, *config, "--budget", "rtx-4090") == 0
    (before,) = RunFolder.open(out).results()
    assert before.predicted_verdict is not None
    assert before.predicted_verdict.verdict == "unsure"
    (out / "cells" / f"{before.id}.json").unlink()
    assert main(["run", "--out", str(out)]) == 0
    (after,) = RunFolder.open(out).results()
    assert after.predicted_verdict == before.predicted_verdict


def test_one_whose_time_is_up_is_ended_and_the_other_is_lost() -> None:
    executor = PredictingExecutor(None, 1)
    try:
        late, other = executor.start(order(cell(), 0.0)), executor.start(order(cell(batch_size=2)))
        executor.wait(0.01)
        assert late.ended is not None
        assert late.ended.timed_out_seconds == 0.0
        assert other.ended is not None
        assert other.ended.lost
    finally:
        executor.kill()
    assert not [one for one in psutil.Process().children() if "spawn_main" in " ".join(one.cmdline())]


def test_run_json_names_the_card(run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    assert info["device"] == info["environment"]["device"] == "predicted"
    assert info["environment"]["gpu"]["name"] == "rtx-4090"
    assert info["environment"]["gpu"]["usable_bytes"] == CARDS["rtx-4090"].usable_bytes
