"""What was predicted before is told from the disk: the same words, at once, as long as it rests on the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.commands.app import main
from vrambench.bench.predict.forecast import Predictor
from vrambench.methods.models.presets import PRESETS

FIT = "fit --precision fp32 --adapter none --optimizer adamw_torch --offload none --algorithm sft"

pytestmark = pytest.mark.usefixtures("matrix")


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that are simulated, by name."""
    names: list[str] = []
    simulation = Predictor.simulation

    def counted(self: Predictor, cell: Any, *args: Any, **how: Any) -> Any:
        names.append(cell.name)
        return simulation(self, cell, *args, **how)

    monkeypatch.setattr(Predictor, "simulation", counted)
    return names


def said(capsys: pytest.CaptureFixture[str], *typed: str) -> tuple[int, str, str]:
    code = main([*FIT.split(), *typed])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    "more",
    ["--budget 2GiB", "--budget 512KiB --advise 2", "--budget 2GiB --max batch_size", "--budget rtx-4090 --json"],
)
def test_the_same_question_has_the_same_answer_and_is_not_predicted_again(
    more: str, capsys: pytest.CaptureFixture[str], predicted: list[str]
) -> None:
    first = said(capsys, *more.split())
    assert predicted
    predicted.clear()
    assert said(capsys, *more.split())[:2] == first[:2]
    assert not predicted


def test_a_kept_answer_needs_no_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = said(capsys)
    code = (
        "import sys; from vrambench.bench.commands.app import main; main(sys.argv[1:])\n"
        "print([name for name in ('torch', 'transformers', 'altair') if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-P", "-c", code, *FIT.split()], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert told.stdout == first[1] + "[]\n"
    assert told.stderr == first[2]


@pytest.mark.parametrize(
    ("more", "environment"),
    [
        ("--budget 1GiB", {}),
        ("--budget 2GiB --set seed=1", {}),
        ("--budget 2GiB --alloc-conf expandable_segments:True", {}),
        ("--budget 2GiB", {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ("--budget 2GiB --no-cache", {}),
    ],
)
def test_another_question_is_predicted(
    more: str,
    environment: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    predicted: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said(capsys, "--budget", "2GiB")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    predicted.clear()
    said(capsys, *more.split())
    assert predicted


def test_without_the_cache_nothing_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "--no-cache")
    assert not Path(os.environ["VRAMBENCH_CACHE"]).exists()


def test_a_changed_matrix_is_another_question(
    matrix: Path, capsys: pytest.CaptureFixture[str], predicted: list[str]
) -> None:
    said(capsys)
    matrix.write_text(matrix.read_text().replace("steps: 3", "steps: 3, batch_size: 3"))
    predicted.clear()
    assert "batch_size 3" in said(capsys)[1]
    assert predicted


def test_a_changed_model_is_predicted_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], predicted: list[str]
) -> None:
    folder = tmp_path / "own"
    PRESETS["tiny"].config().save_pretrained(folder)
    first = said(capsys, "--model", "./own")
    predicted.clear()
    assert said(capsys, "--model", "./own") == first
    assert not predicted
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 352}))
    assert said(capsys, "--model", "./own") != first
    assert predicted


def test_what_rests_on_a_users_own_code_is_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], predicted: list[str]
) -> None:
    (tmp_path / "own_precision.py").write_text("from vrambench.methods.precision.floating import BF16\nOWN = BF16\n")
    typed = [*FIT.replace("fp32", "own_precision:OWN").split(), "--budget", "2GiB"]
    for _ in range(2):
        predicted.clear()
        main(typed)
        assert predicted
    assert not Path(os.environ["VRAMBENCH_CACHE"]).exists()


def test_a_plan_looks_its_predictions_up(capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["plan", "--device", "cuda", "--precision", "fp32", "--json", "--set", "budget=2GiB"]
    assert main(typed) == 0
    first = capsys.readouterr()
    assert main(typed) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert first.err.splitlines()[0] == "predicted 0 of 2 cells"
    assert again.err.splitlines() == ["predicted 2 of 2 cells"]
    main([*FIT.replace("sft", "ppo").split(), "--json", "--set", "budget=2GiB"])
    cells = json.loads(first.out)["cells"]
    fitted = json.loads(capsys.readouterr().out)
    assert [one["predicted"] for one in cells if one["cell"]["algorithm"] == "ppo"] == [fitted["predicted"]]
