"""tests/gpu/versus_trl.py compares like with like: as many updates of the policy on both sides, and the loss that is named."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO

import gpu_summary
import pytest
import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests import forked
from vrambench.bench.commands.app import main
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.job import Job
from vrambench.methods.models.config import model_config

STEPS = 1


@pytest.fixture(scope="module")
def versus(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("tests/gpu/versus_trl.py")


@pytest.fixture
def updates() -> Iterator[Counter[torch.Size]]:
    """How often parameters of each shape were stepped."""
    seen: Counter[torch.Size] = Counter()

    def count(optimizer: Optimizer, *_: object) -> None:
        seen.update({one.shape for group in optimizer.param_groups for one in group["params"]})

    handle = register_optimizer_step_post_hook(count)
    yield seen
    handle.remove()


def cell_of(matrix: dict[str, dict[str, object]]) -> Cell:
    axes = {axis: values[0] for axis, values in matrix["axes"].items()}  # type: ignore[index]
    return resolve(axes, matrix["workload"])


def test_ppo_updates_the_policy_as_often_on_both_sides(versus: ModuleType, updates: Counter[torch.Size]) -> None:
    pytest.importorskip("trl.experimental.ppo")
    case = versus.Case("ppo", "tiny", 2, 4, 4, steps=STEPS)
    job = Job(cell_of(versus.matrix_of(case)), get_device("cpu"))
    job.load()
    config = model_config(case.model)
    policy, score = torch.Size([config.vocab_size, config.hidden_size]), torch.Size([1, config.hidden_size])
    for index in range(versus.WARMUP + STEPS):
        job.step(index)
    ours = updates.copy()
    updates.clear()
    assert "error" not in versus.trained_by_trl(case, "cpu")
    expected = versus.EPOCHS * (versus.WARMUP + STEPS)
    # Ours has an optimizer for each of policy and critic, TRL's one for both: the critic's score is stepped as often.
    assert ours[score] == updates[score] == expected
    assert ours[policy] == 2 * expected
    assert updates[policy] == expected


@pytest.mark.parametrize(("chunked", "loss"), [(False, "nll"), (True, "chunked_nll")])
def test_sft_has_the_loss_that_the_case_names(
    versus: ModuleType, monkeypatch: pytest.MonkeyPatch, chunked: bool, loss: str
) -> None:
    trl = pytest.importorskip("trl")
    seen = []

    class Spy(trl.SFTTrainer):  # type: ignore[misc, name-defined]
        def train(self, *args: object, **kwargs: object) -> object:
            seen.append(self.args.loss_type)
            return super().train(*args, **kwargs)

    monkeypatch.setattr(trl, "SFTTrainer", Spy)
    assert "error" not in versus.trained_by_trl(versus.Case("sft", "tiny", 2, 1, 7, chunked=chunked, steps=1), "cpu")
    assert seen == [loss]


@pytest.fixture
def ours_here(versus: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Our side is this process, which has imported all; TRL's is forked from one that has."""

    def run_here(command: list[str], output: IO[str] | None = None) -> str | None:
        if output is None:
            code = main(command[command.index(versus.COMMAND) + 1 :])
        else:
            done = forked.run(command[1:], tmp_path)
            code = done.returncode
            output.write(done.stdout)
        return f"ended with code {code}" if code else None

    monkeypatch.setattr(versus, "run", run_here)


@pytest.mark.slow
@pytest.mark.usefixtures("packed")
@pytest.mark.parametrize("algorithm", ["sft", "ppo"])
def test_against_trl_both_sides_train_on_as_many_tokens(
    versus: ModuleType, algorithm: str, request: pytest.FixtureRequest
) -> None:
    """With SFT both are processes, as on a GPU; with PPO neither."""
    trained_by_trl = versus.theirs_of
    if algorithm == "ppo":
        request.getfixturevalue("ours_here")
        trained_by_trl = versus.trained_by_trl
    case = versus.Case(algorithm, "tiny", 2, 4, 4, steps=2)
    for side in (versus.ours_of(case, "cpu"), trained_by_trl(case, "cpu")):
        assert len(side["step_seconds"]) == 2, side
        assert side["tokens_per_second"] == pytest.approx(16 / statistics.median(side["step_seconds"]))


@pytest.mark.slow
@pytest.mark.usefixtures("ours_here")
def test_against_trl_a_side_that_cannot_run_says_so(
    versus: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = versus.Case("sft", "no-such-model", 2, 1, 7, steps=2)
    assert versus.ours_of(case, "cpu")["error"].startswith("ended with code")
    assert versus.theirs_of(case, "cpu")["error"].startswith("ended with code")
    ours = {"step_seconds": [1.0], "tokens_per_second": 16.0, "allocated_bytes": 3, "reserved_bytes": None}
    missing = {"error": "ended with code 1"}
    row = versus.about(case, "cpu") | {"ours": ours, "trl": missing, "ratio": versus.ratios(ours, missing)}
    twice = versus.ratios(ours, ours | {"tokens_per_second": 8.0})
    good = row | {"trl": ours, "ratio": twice, "trl_version": "1.12.0"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(f"{json.dumps(row)}\n{json.dumps(good)}\n")
    first, second = gpu_summary.trl_told(rows)
    assert first.endswith("sft no-such-model 2 x 1+7: trl: ended with code 1")
    assert second == "against TRL 1.12.0, sft no-such-model 2 x 1+7: tokens_per_second 2.000, allocated_bytes 1.000"
    rows.write_text(
        "".join(json.dumps(row | {"case": one.name}) + "\n" for one in versus.TINY if one.algorithm == "ppo")
    )
    assert versus.main(["--device", "cpu", "--tiny", "--only", "ppo", "--done", str(rows)]) == 1
    assert capsys.readouterr().out == "", "what has a row is not run again"
