"""`vrambench claims`, and `vrambench run --claims`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.commands.app import main

Fake = Callable[..., list[dict[str, Any]]]
TEXT = """\
common: {precision: fp32, adapter: none, optimizer: adamw_torch, offload: none, model: tiny}
claims:
  memory:
    claim: ReMax takes half
    source: a paper
    cells: &both {ppo: {algorithm: ppo}, remax: {algorithm: remax}}
    formula: 1 - remax.device_bytes / ppo.device_bytes
    claimed: 50 %
    assumed: batch 1
  speed:
    claim: ReMax is twice as fast
    source: a paper
    cells: *both
    formula: ppo.step_seconds / remax.step_seconds
    claimed: 2 x
    cpu: {batch_size: 8}
"""
OWN = "error: --claims: the cells are the claims' own; of the selectors only --repeat goes with it"


@pytest.fixture
def claims(matrix: Path) -> Path:
    """claims.yaml in the current directory."""
    path = matrix.with_name("claims.yaml")
    path.write_text(TEXT)
    return path


def test_claims_are_listed_with_why_there_is_no_verdict(claims: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--no-predict"]) == 0
    printed = capsys.readouterr().out
    assert "ReMax takes half (assumed: batch 1)" in printed
    assert "vrambench run --device cpu --claims speed" in " ".join(printed.split())
    assert printed.rstrip().endswith("2 claims: 2 not measured here; claims.yaml")


def test_claims_as_json(claims: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--no-predict", "--json", "--only", "speed"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["claims"]
    assert (row["id"], row["claimed_value"], row["unit"], row["verdict"]) == ("speed", 2.0, "x", None)
    assert row["measured"] == []


def test_predictions_are_made_of_each_cell_once(
    claims: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import vrambench.bench.predict.many

    asked: list[Any] = []
    monkeypatch.setattr(
        vrambench.bench.predict.many, "predict_all", lambda cells, card, **more: asked.extend(cells) or {}
    )
    assert main(["claims", "--json"]) == 0
    assert [cell.algorithm for cell in asked] == ["ppo", "remax"], "a prediction tells no speed"
    memory, _ = json.loads(capsys.readouterr().out)["claims"]
    assert memory["predicted"]["reason"] == "ppo: no prediction was made (predicted)"
    assert memory["cells"]["ppo"]["cell"]["algorithm"] == "ppo"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("claims --only memry", "error: --only: 'memry' is not one of memory, speed; did you mean 'memory'?"),
        ("claims --only memory,,speed", "error: --only memory,,speed: an empty name; separate claims by single commas"),
        ("claims --claims there.yaml", "error: there.yaml: cannot be read: No such file or directory"),
        ("claims there", "error: there is not a run's folder: it is not there"),
        ("run --claims sped --device cpu", "error: --claims: 'sped' is not one of memory, speed; did you mean 'speed'?"),
        ("run --claims memory --device cpu",
         "error: claims.yaml: none of these claims is measured on a CPU (none has a part `cpu`)"),
        ("run --claims speed --model tiny", OWN),
        ("run matrix.yaml --claims speed", OWN),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(claims: Path, typed: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed.split()) == 2
    assert capsys.readouterr().err == message + "\n"


def test_a_mistake_in_the_file_is_told_before_anything_runs(claims: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims.write_text(TEXT.replace("remax.device_bytes", "remax.device_byte"))
    assert main(["claims"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: claims.yaml:7: claims.memory.formula: the value of remax: 'device_byte' is unknown; did you mean 'device_bytes'? "
    )


def test_run_hands_on_the_claims_cells(claims: Path, runner: Fake) -> None:
    calls = runner({"ok": 2})
    assert main(["run", "--device", "cpu", "--out", "first", "--claims", "speed", "--repeat", "3"]) == 0
    (call,) = calls
    names = [one.name for one in call["planned"]]
    assert names == ["fp32 none adamw_torch none ppo speed.ppo", "fp32 none adamw_torch none remax speed.remax"]
    assert {one.cell.workload.batch_size for one in call["planned"]} == {8}
    assert (call["repeat"], call["about"]["matrix"]) == (3, "claims.yaml")
    assert main(["run", "--device", "cpu", "--out", "first", "--claims", "all"]) == 0
    assert len(calls[1]["planned"]) == 2


def test_a_run_on_the_cpu_answers_its_claims(claims: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims.write_text(
        TEXT.replace("cpu: {batch_size: 8}", "cpu: {batch_size: 8, prompt_tokens: 4, response_tokens: 4, steps: 1}")
    )
    assert main(["run", "--device", "cpu", "--out", "first", "--claims", "speed", "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "claim speed: 2 x claimed, " in printed
    assert " on the CPU, at tiny: " in printed
    assert '<section id="claims"' in Path("first/report.html").read_text()
    assert main(["claims", "first", "--no-predict", "--json", "--only", "speed"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["claims"]
    assert row["measured"][0]["where"] == "the CPU, at tiny"
    assert row["measured"][0]["value"] > 0
    assert row["verdict"] in ("reproduced", "partly", "refuted")
