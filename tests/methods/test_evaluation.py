"""Evaluation: what transformers' own Trainer computes, and what it holds on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vrambench.bench.measure.meters.storages import StorageTrace
from vrambench.methods.data import EVALUATION
from vrambench.methods.evaluation import Kept, joined
from vrambench.methods.job import Job

MakeJob = Callable[..., Job]


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def by_trainer(made: Job, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[float, int]:
    """The loss of the same evaluation by the Trainer, and by how many bytes live storages rise in it."""
    from transformers import Trainer, TrainingArguments

    # An argument for distributed training, which models hand on to attention.
    monkeypatch.setattr(Trainer, "_get_num_items_in_batch", lambda *_: None)
    work: Any = made.workload
    trainer = Trainer(
        model=made.roles["policy"].module.model,  # type: ignore[arg-type]
        args=TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            per_device_eval_batch_size=work.eval_batch_size,
            eval_accumulation_steps=work.eval_accumulation_steps,
            dataloader_pin_memory=False,
            report_to=[],
            disable_tqdm=True,
        ),
        eval_dataset=Rows(made.data.sequences(EVALUATION, work.max_eval_samples, work.sequence_tokens)),
        compute_metrics=None if work.prediction_loss_only else lambda predicted: {},
    )
    with StorageTrace("cpu") as trace, made.device.attention(work.attention):
        before = trace.live_bytes
        told = trainer.evaluate()
    return told["eval_loss"], trace.peak_bytes - before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("loss_only", [True, False])
def test_it_is_what_the_trainer_does(
    precision: str, loss_only: bool, job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(
        precision=precision,
        loss="nll",
        max_length=32,
        eval_batch_size=2,
        max_eval_samples=6,
        prediction_loss_only=loss_only,
    )
    with StorageTrace("cpu") as trace:
        before = trace.live_bytes
        told = made.evaluate()
    loss, rise = by_trainer(made, tmp_path, monkeypatch)
    assert float(told["eval_loss"]) == pytest.approx(loss, rel=1e-6)
    assert trace.peak_bytes - before == pytest.approx(rise, rel=0.05)
    assert made.roles["policy"].module.training
    made.step(0)


def test_logits_that_are_kept_add_up_until_they_go_to_the_host(job: MakeJob) -> None:
    """Beside those of all batches before, the next batch's and the sum of both."""

    def rise(samples: int, **more: Any) -> int:
        made = job(eval_batch_size=2, max_eval_samples=samples, prediction_loss_only=False, **more)
        with StorageTrace("cpu") as trace:
            before = trace.live_bytes
            made.evaluate()
        return trace.peak_bytes - before

    one = 2 * 8 * 256 * 4
    assert rise(12) - rise(8) >= 2 * 2 * one
    made = job(device="meta", eval_batch_size=2, max_eval_samples=64, prediction_loss_only=False)
    held: list[int] = []
    add = Kept.add

    def adding(kept: Kept, more: torch.Tensor | None) -> None:
        add(kept, more)
        held.append(0 if kept.held is None or kept.held.dim() < 3 else kept.held.nbytes)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Kept, "add", adding)
        made.evaluate()
        whole = max(held)
        held.clear()
        job(
            device="meta", eval_batch_size=2, max_eval_samples=64, prediction_loss_only=False, eval_accumulation_steps=4
        ).evaluate()
    assert whole == 32 * one
    assert max(held) == 4 * one


def test_what_is_shorter_is_padded() -> None:
    whole = joined(torch.ones(2, 3, 1), torch.ones(1, 2, 1))
    assert whole.squeeze(-1).tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, -100]]
    assert joined(torch.ones(2), torch.ones(1)).tolist() == [1, 1, 1]


def test_what_is_evaluated_on_is_not_trained_on(job: MakeJob) -> None:
    made = job(eval_batch_size=2)
    evaluated = made.data.sequences(EVALUATION, 2, 8)
    assert all(not torch.equal(evaluated, made.data.sequences(step, 2, 8)) for step in range(20))


def test_nothing_of_an_evaluation_is_in_a_cell_without_one(cell: Callable[..., Any]) -> None:
    assert cell(max_eval_samples=3, prediction_loss_only=False).id == cell().id
    work = cell(eval_batch_size=4).workload
    assert (work.max_eval_samples, work.prediction_loss_only, work.eval_accumulation_steps) == (16, True, None)
    assert cell(algorithm="ppo", eval_batch_size=4).id == cell(algorithm="ppo").id
