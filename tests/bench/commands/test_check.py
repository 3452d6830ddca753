"""`vrambench baseline` and `vrambench check`: a regression is caught without a GPU, and named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vrambench.bench.commands.app import main
from vrambench.methods.algorithms import ALGORITHMS

AXES = ("--precision", "bf16", "--adapter", "none", "--optimizer", "sgd", "--offload", "none", "--algorithm")
GPT2 = ("--model", "gpt2", "--set", "prompt_tokens=24", "--set", "response_tokens=8", "--set", "batch_size=4")

OURS = """
from dataclasses import replace

import torch

from vrambench.methods.algorithms.sft import SFT, SupervisedFineTuning
from vrambench.methods.models import parts


class Ours(SupervisedFineTuning):
    def _loss(self, inputs):
        model = self.policy.module.model
        with torch.no_grad():
            logits = parts.logits(model, parts.hidden_states(model, inputs))
        {kept}
        return super()._loss(inputs)


OURS = replace(SFT, trainer=Ours)
"""
Predict = Callable[[str], Path]


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predicted_here: None) -> Predict:
    """Predicts our own algorithm, whose code does with its logits what is said."""
    monkeypatch.chdir(tmp_path)

    def run(kept: str) -> Path:
        (tmp_path / "ours.py").write_text(OURS.format(kept=kept))
        sys.modules.pop("ours", None)  # no run knows the code of the one before
        ALGORITHMS._found.pop("ours:OURS", None)
        out = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        wanted = ("run", "--out", str(out), "--device", "predicted", "--jobs", "1", *AXES, "ours:OURS", *GPT2)
        assert main(wanted) == 0
        return out

    return run


@pytest.mark.slow
def test_training_that_keeps_its_logits_is_caught_and_named(
    predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, baseline = predict("del logits"), tmp_path / "baseline.json"
    assert main(["baseline", str(before), "-o", str(baseline)]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {baseline}: 1 cell, predicted\n")
    gate = ["--baseline", str(baseline)]
    for again in range(2):
        assert main(["check", str(predict("del logits")), *gate]) == 0, again
        assert capsys.readouterr().out.endswith("1 cell: 1 as before\n")
    now, junit, summary = predict("self.kept = logits"), tmp_path / "junit.xml", tmp_path / "summary.md"
    capsys.readouterr()
    assert main(["check", str(now), *gate, "--junit", str(junit), "--summary", str(summary)]) == 1
    told = capsys.readouterr().out
    assert told.startswith("regressed: bf16 none sgd none ours:OURS (")
    assert "most in learn of step " in told
    grown = [line for line in told.splitlines() if "policy logits_and_loss +" in line]
    assert "lm_head" in grown[0]
    assert grown[0].endswith(" in learn")
    (suite,) = ElementTree.parse(junit).getroot()
    assert suite.get("failures") == "1"
    assert "logits\\_and\\_loss" in summary.read_text()
    assert main(["check", str(now), *gate, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["exit_code"], document["counts"]) == (1, {"regressed": 1})
    (cell,) = document["cells"]
    by = {one["metric"]: one["now"] - one["before"] for one in cell["differences"]}
    logits = 2 * 4 * 32 * 50257
    assert by["allocated_bytes"] == pytest.approx(logits, abs=2**20)
    may = ["--tolerance", "allocated_bytes=64MiB", "--tolerance", "reserved_bytes=64MiB"]
    assert main(["check", str(now), *gate, *may, "--tolerance", "device_bytes=64MiB"]) == 0
    assert main(["baseline", str(now), "-o", str(baseline), "--force"]) == 0
    assert main(["check", str(before), *gate]) == 0
    assert main(["check", str(before), *gate, "--two-sided"]) == 1


def test_each_mistake_has_its_exit_code(predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, baseline = str(predict("del logits")), tmp_path / "baseline.json"
    assert main(["check", run, "--baseline", str(baseline)]) == 3
    assert (
        f"error: {baseline} is not there; `vrambench baseline RUN -o {baseline}` writes one" in capsys.readouterr().err
    )
    assert main(["baseline", run, "-o", str(baseline)]) == 0
    assert main(["baseline", run, "-o", str(baseline)]) == 2
    assert "is there already; --force replaces it" in capsys.readouterr().err
    for wrong, message in (
        ("reserved=1%", "tolerance: 'reserved' is not one of allocated_bytes"),
        ("1%", "--tolerance 1%: write METRIC=T, as allocated_bytes=1%"),
        ("reserved_bytes=lots", "tolerance reserved_bytes: 'lots': must be a share, a size or the larger of both"),
    ):
        assert main(["check", run, "--baseline", str(baseline), "--tolerance", wrong]) == 2
        assert message in capsys.readouterr().err
    content = json.loads(baseline.read_text())
    content["environment"]["packages"]["torch"] = "1.0"
    baseline.write_text(json.dumps(content))
    assert main(["check", run, "--baseline", str(baseline)]) == 3
    assert "not comparable: torch: 1.0 before, " in capsys.readouterr().out
    assert main(["check", run, "--baseline", str(baseline), "--across-versions"]) == 0
    result = next((Path(run) / "cells").glob("*.json"))
    failed = json.loads(result.read_text()) | {"status": "crashed", "reason": "it was killed", "samples": []}
    result.write_text(json.dumps(failed))
    capsys.readouterr()
    assert main(["check", run, "--baseline", str(baseline), "--across-versions"]) == 4
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == [f"failed: bf16 none sgd none ours:OURS ({result.stem})", "  crashed: it was killed"]
    assert told[-1] == "1 cell: 1 failed to be measured"
    result.write_text("{")
    assert main(["check", run, "--baseline", str(baseline), "--across-versions"]) == 2
    assert f"{run}: none of its results can be read: {result.name} is not a readable result" in capsys.readouterr().err
    assert main(["check", run, "--baseline", str(baseline), "--junit", "/dev/full"]) == 2
    assert "--junit /dev/full: is a pipe or a device, not a file" in capsys.readouterr().err


TINY = ("--model", "tiny", "--set", "prompt_tokens=8", "--set", "response_tokens=8", "--set", "steps=2")


def heavier(file: Path, factor: float) -> None:
    """The result as a regression of memory would have left it."""
    content = json.loads(file.read_text())
    for one in (content, *content["samples"]):
        one["memory"]["allocated_bytes"] = round(factor * one["memory"]["allocated_bytes"])
    file.write_text(json.dumps(content))


def test_what_is_worse_is_measured_once_more_before_it_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, baseline = tmp_path / "run", tmp_path / "baseline.json"
    assert main(["run", "--out", str(run), "--device", "cpu", "--jobs", "1", *AXES, "sft", *TINY]) == 0
    assert main(["baseline", str(run), "-o", str(baseline)]) == 0
    gate = [
        str(run),
        "--baseline",
        str(baseline),
        "--tolerance",
        "allocated_bytes=5%",
        "--tolerance",
        "step_seconds=1000%",
    ]
    assert main(["check", *gate]) == 0
    (file,) = (run / "cells").glob("*.json")
    heavier(file, 2.0)
    assert main(["check", *gate, "--no-again"]) == 1
    assert not (run / "again").exists()
    capsys.readouterr()
    assert main(["check", *gate]) == 0
    told = capsys.readouterr()
    assert f"measuring 1 cell once more, into {run / 'again'}" in told.err
    assert told.out.endswith("1 cell: 1 as before\n")
    assert len(list((run / "again" / "cells").glob("*.json"))) == 1
    content = json.loads(baseline.read_text())
    content["cells"][0]["memory"]["allocated_bytes"] //= 2
    baseline.write_text(json.dumps(content))
    assert main(["check", *gate]) == 1
    content["environment"]["cpu"]["model"] = "another processor"
    baseline.write_text(json.dumps(content))
    assert main(["check", *gate]) == 3
