"""`vrambench fit`: one cell, its exit code, its document, and what it says where it is asked too much."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vrambench
from vrambench.bench.commands import app as cli
from vrambench.bench.predict.answer import Answer, Maximum
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.results.records import Memory
from vrambench.methods.axes import AXES
from vrambench.methods.cell import from_flat, resolve
from vrambench.reports.text.answers import print_fit

MATRIX = """
axes:
  precision: [fp32, nf4]
  adapter: [none, lora]
  optimizer: [adamw_torch]
  offload: [none]
  algorithm: [sft, ppo]
workload: {model: tiny, steps: 3, batch_size: 8, rollout_batch: 8, prompt_tokens: 60, response_tokens: 4}
"""
CELL = "--precision fp32 --adapter none --optimizer adamw_torch --offload none --algorithm sft"


@pytest.fixture(autouse=True)
def matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small matrix in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "matrix.yaml").write_text(MATRIX)


def fit(more: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = cli.main(f"fit {CELL} {more}".split())
    return code, capsys.readouterr().out


def document(more: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code, out = fit(f"{more} --json", capsys)
    return code, json.loads(out)


@pytest.mark.parametrize("freezes", [False, True])
def test_the_callers_heap_is_collected_as_before(freezes: bool) -> None:
    """What a caller has frozen stays so, but for what has died meanwhile, and no more is frozen."""
    cell = vrambench.resolve(dict(zip(AXES, CELL.split()[1::2], strict=True)), {"model": "tiny"})
    gc.unfreeze()
    if freezes:
        gc.freeze()
    frozen = gc.get_freeze_count()
    vrambench.fit(cell, maximum="batch_size")
    left = gc.get_freeze_count()
    assert left <= frozen
    assert bool(left) == freezes


def test_what_fits_is_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = document("--budget 24GiB", capsys)
    assert code == 0
    assert (told["verdict"], told["fits"], told["budget_bytes"]) == ("fits", True, 24 * 2**30)
    assert set(told) == {
        *(
            "cell",
            "budget_bytes",
            "card",
            "verdict",
            "fits",
            "margin_bytes",
            "band_bytes",
            "band_basis",
            "predicted",
            "phases",
        ),
        *(
            "roles",
            "parameters",
            "at_peak",
            "fragmentation_bytes",
            "rising_order_bytes",
            "host_bytes",
            "batches",
            "unmodelled",
            "alloc_conf",
            "device_peak",
            "warnings",
            "limiting_phase",
            "limiting_step",
            "limiting_role",
        ),
        *("oom", "oom_phase", "notes", "seconds", "max", "advice", "command", "read_as"),
    }
    assert set(told["predicted"]) == set(Memory.model_fields)
    assert told["margin_bytes"] == told["budget_bytes"] - told["predicted"]["device_bytes"]
    assert (told["max"], told["advice"], told["card"], told["oom"]) == ([], [], None, None)
    assert told["cell"]["algorithm"] == "sft"
    assert {phase["name"] for phase in told["phases"]} >= {"load", "learn", "optimizer_step"}
    assert told["roles"]["policy"]["weights_bytes"] > 0


def test_what_does_not_fit_is_exit_code_1_and_says_where_memory_runs_out(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = document("--budget 1MiB", capsys)
    assert code == 1
    assert (told["verdict"], told["fits"]) == ("does not fit", False)
    assert told["margin_bytes"] < 0
    assert told["oom"]["where"] == "device"
    assert told["oom_phase"] == "load"


def test_tight_is_exit_code_0_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    _, told = document("--budget 24GiB", capsys)
    code, out = fit(f"--budget {told['predicted']['device_bytes'] + 1}", capsys)
    assert code == 0
    assert out.startswith("tight: ")
    assert fit(f"--strict --budget {told['predicted']['device_bytes'] + 1}", capsys)[0] == 1
    assert fit("--strict --budget 24GiB", capsys)[0] == 0


@pytest.mark.parametrize(("retries", "said"), [(0, "less than the error band"), (2, "is given back (2 times)")])
def test_tight_says_why(retries: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, told = document("--budget 24GiB", capsys)
    cell = from_flat(told["cell"])
    forecast = Predictor().forecast(cell)
    memory = forecast.memory.model_copy(update={"num_alloc_retries": retries})
    tight = forecast.model_copy(update={"verdict": "tight", "memory": memory})
    out = io.StringIO()
    print_fit(Answer(cell, None, tight), out)
    assert said in out.getvalue().splitlines()[0]


def test_unsure_says_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    galore = f"fit {CELL.replace('adamw_torch', 'galore_adamw')} --budget".split()
    cli.main([*galore, "24GiB", "--json"])
    needed = json.loads(capsys.readouterr().out)["predicted"]["device_bytes"]
    budget = str(needed * 3 // 2)
    assert cli.main([*galore, budget, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["fits"]) == ("unsure", True)
    assert "cuSOLVER" in told["unmodelled"][0]["reason"]
    assert cli.main([*galore, budget, "--strict"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("unsure: ")
    assert "left out: the work space of whole decompositions" in out


def test_a_card_s_name_is_its_capacity_and_its_hardware(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = document("--budget rtx-4090", capsys)
    assert (code, told["card"]) == (0, "rtx-4090")
    assert told["budget_bytes"] == int(23.64 * 2**30)
    assert any("rtx-4090" in note for note in told["notes"])
    code, out = fit("--set budget=t4", capsys)
    assert code == 0
    assert "usable on t4" in out


def test_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = fit("--budget 24GiB", capsys)
    assert code == 0
    assert out.startswith("fits: ")
    for word in ("requested", "fragmentation", "outside", "= device", "optimizer_step", "policy's optimizer"):
        assert word in out
    assert "most in use: in " in out
    assert "most on the device: first in " in out
    assert "nothing was measured" in out


def test_the_largest_value_and_advice_are_in_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    _, roomy = document("--set batch_size=1024", capsys)
    budget = roomy["predicted"]["device_bytes"] + 400 * 2**20
    code, told = document(f"--budget {budget} --set batch_size=2048 --max batch_size --advise 1", capsys)
    assert code == 1
    (found,) = told["max"]
    assert found["field"] == "batch_size"
    assert 1024 <= found["value"] < 2048
    assert found["device_bytes"] <= budget
    keys = {"value", "unlimited_bytes", "device_bytes", "verdict", "num_alloc_retries", "oom_phase", "oom"}
    assert keys == set(found["probes"][0])
    (one,) = told["advice"]
    assert one["changes"]
    assert one["margin_bytes"] >= 0
    assert one["verdict"] in ("fits", "tight")


@pytest.mark.parametrize(
    ("algorithm", "asked"),
    [
        ("grpo", "--max group_size,response_tokens"),
        ("ppo", "--max response_tokens"),
        ("dpo", "--max max_length"),
    ],
)
def test_advice_names_what_of_the_work_can_be_less(algorithm: str, asked: str) -> None:
    axes = dict(zip(AXES, CELL.split()[1::2], strict=True)) | {"algorithm": algorithm}
    answer = vrambench.fit(vrambench.resolve(axes, {"model": "tiny", "budget": "300MiB"}), advices=1)
    told = f"how much work it has room for as it is: {asked}"
    assert told in answer.forecast.notes
    out = io.StringIO()
    print_fit(answer, out)
    assert told in out.getvalue()


def test_what_is_searched_may_be_swept_by_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "matrix.yaml").write_text(MATRIX + "sweep: {batch_size: [6, 2, 4]}\n")
    _, told = document("--max batch_size --budget 1GiB", capsys)
    assert told["max"][0]["probes"][0]["value"] == 2
    (tmp_path / "matrix.yaml").write_text(MATRIX + "sweep: {batch_size: [2, 4], steps: [3, 4]}\n")
    assert cli.main(f"fit {CELL} --max batch_size".split()) == 2
    assert "4 cells are left" in capsys.readouterr().err


@pytest.mark.slow
def test_each_of_several_fields_is_searched_with_the_others_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    grpo = (
        "--precision fp32 --adapter none --optimizer adamw_torch --offload none --algorithm grpo --set rollout_batch=8"
    )

    def maxima(asked: str) -> list[dict[str, Any]]:
        cli.main(f"fit {grpo} --budget 600MiB {asked} --json".split())
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["max"]
        return found

    alone = [*maxima("--max group_size"), *maxima("--max response_tokens")]
    assert maxima("--max group_size,response_tokens") == alone
    assert maxima("--max group_size --max response_tokens") == alone
    assert all(one["value"] and one["bound"].endswith("does not fit") for one in alone)


def test_an_unknown_field_among_several_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(f"fit {CELL} --max batch_size,groupsize".split()) == 2
    assert capsys.readouterr().err.startswith("error: --max: 'groupsize' is not one of batch_size, ")


def test_selectors_that_say_nothing_to_it_are_not_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--help"]) == 0
    offered = capsys.readouterr().out
    assert "--only" in offered
    assert [option for option in ("--repeat", "--coverage", "--sweep") if option in offered] == []


def test_of_a_value_that_fits_under_its_budget_alone_both_bytes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    one = resolve(dict(zip(AXES, CELL.split()[1::2], strict=True)), {"model": "tiny"})
    forecast = Predictor().forecast(one)
    retried = {
        "value": 2,
        "unlimited_bytes": 3 * 2**30,
        "device_bytes": 2**30,
        "verdict": "tight",
        "num_alloc_retries": 1,
    }
    over = {"value": 3, "unlimited_bytes": 4 * 2**30, "device_bytes": None, "verdict": "does not fit"}
    found = Maximum.model_validate(
        {"field": "batch_size", "value": 2, "device_bytes": 2**30, "along": {}, "bound": "x", "probes": (retried, over)}
    )
    out = io.StringIO()
    print_fit(Answer(one, None, forecast, max=(found,)), out)
    rows = [line.split() for line in out.getvalue().splitlines()]
    said = "tight; fits only after cached memory is given back (1 time), and then takes 1 GiB"
    assert ["2", "3", "GiB", *said.split()] in rows
    assert ["3", "4", "GiB", "does", "not", "fit"] in rows


def test_a_setting_of_the_file_that_no_cell_uses_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "matrix.yaml").write_text(MATRIX + "profiles: {p: {workload: {galore: {rank: 4}}}}\n")
    assert cli.main(f"fit --profile p {CELL}".split()) == 0
    said = "workload.galore.rank: no cell here uses it (optimizer galore_adamw, "
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "fit --algorithm sft",
            "4 cells are left, and fit answers for one; choose one value each: precision is fp32, nf4 (as in "
            "--precision fp32); adapter is none, lora (as in --adapter none) (or ask for a model's usual recipes, vrambench fit "
            "tiny)",
        ),
        (
            f"fit {CELL} --sweep steps=3,4",
            "--sweep steps=3,4: fit answers for one cell; vrambench plan takes it",
        ),
        (
            f"fit {CELL} --set attention=flash",
            "fp32 none adamw_torch none sft: invalid on CUDA by the rule fp32-flash: the flash attention kernel",
        ),
        (f"fit {CELL} --max batchsize", "--max: 'batchsize' is not one of batch_size, "),
        (f"fit {CELL} --coverage full", "--coverage full: fit answers for one cell; vrambench plan takes it"),
        (f"fit {CELL} --repeat 3", "--repeat 3: fit predicts, and measures nothing that could be repeated"),
        (f"fit {CELL} --max=", "--max: '' is not one of batch_size, "),
        (f"fit {CELL} --max seed", "--max seed: memory does not depend on it; take one of batch_size"),
        (f"fit {CELL} --advise 0", "invalid value for '--advise': "),
        (f"fit {CELL} --budget rtx-409", "--budget rtx-409: budget: 'rtx-409' is not a size"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(typed: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(typed.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_card_without_bf16_forbids_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(f"fit {CELL.replace('fp32', 'bf16')} --budget t4".split()) == 2
    assert "by the rule bf16-hardware" in capsys.readouterr().err


def test_a_reader_that_goes_is_no_verdict(tmp_path: Path) -> None:
    """Exit code 1 would say that it does not fit."""
    assert cli.main(["fit", *CELL.split()]) == 0  # its answer is kept, and the process has only to print it
    code = "import os, sys; from vrambench.bench.commands.app import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", code, "fit", *CELL.split()]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_progress_that_nobody_reads_changes_nothing(tmp_path: Path) -> None:
    code = "import sys; from vrambench.bench.commands.app import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", code, "fit", *CELL.split(), "--max", "prompt_tokens"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=nobody, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0
    assert "largest prompt_tokens: " in done.stdout


@pytest.mark.slow
def test_a_closed_stdout_is_no_failure(tmp_path: Path) -> None:
    code = "import sys; sys.stdout = None; from vrambench.bench.commands.app import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", code, "fit", *CELL.split()]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_warnings_of_cuda_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    typed = "fit --precision nf4 --adapter lora --optimizer adamw_torch --offload none --algorithm ppo --set lora_dropout=0.1"
    assert cli.main([*typed.split(), "--budget", "24GiB"]) == 0
    assert "\nwarning rollout-dropout: the adapter's dropout stays on in rollouts" in capsys.readouterr().out
    assert cli.main([*typed.split(), "--budget", "24GiB", "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert warning["rule"] == "rollout-dropout"


def test_what_does_not_fit_says_by_how_much_and_that_bytes_are_without_a_limit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, told = document("--set batch_size=4096 --budget 4TiB", capsys)
    budget = told["predicted"]["device_bytes"] - told["band_bytes"] // 2
    code, out = fit(f"--set batch_size=4096 --budget {budget}", capsys)
    assert code == (0 if out.startswith("tight") else 1)
    code, out = fit(f"--set batch_size=4096 --budget {told['predicted']['device_bytes'] // 2}", capsys)
    assert code == 1
    assert "; memory runs out in learn at a request of " in out
    assert "these are the bytes without a limit" in out


@pytest.mark.parametrize(("typed", "model"), [("", "qwen3-8b"), ("--model llama-2-7b --budget 4090", "llama-2-7b")])
def test_of_the_shipped_matrix_something_has_to_be_chosen(
    typed: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "matrix.yaml").unlink()
    monkeypatch.setattr("vrambench.bench.plan.plan.select", None)
    assert cli.main(["fit", *typed.split()]) == 2
    said = (
        f"error: fit answers for a model or for one cell: for a model's usual recipes, vrambench fit {model} --budget"
    )
    assert capsys.readouterr().err.startswith(said)
