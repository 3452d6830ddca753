"""tests/gpu/versus_trl.py compares like with like: as many updates of the policy on both sides, and the loss that is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

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
