"""Batches of several lengths: rows as TRL packs them, tensors as TRL collates them, and losses that padding does not change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from vrambench.methods.batches import Batch, Batches, best_fit_decreasing, split, wrapped
from vrambench.methods.cell import Cell
from vrambench.methods.job import Job
from vrambench.methods.models.losses import LOSSES

MakeJob = Callable[..., Job]
MakeCell = Callable[..., Cell]

LENGTHS = {16: 0.5, 48: 0.3, 100: 0.2}
MODES: dict[str, dict[str, Any]] = {
    "padded": {},
    "to a multiple": {"pad_to_multiple_of": 32},
    "padding-free": {"padding_free": True},
    "padding-free, to a multiple": {"padding_free": True, "pad_to_multiple_of": 32},
}


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
@pytest.mark.parametrize("limit", [30, 100, 128, 500])
def test_rows_are_packed_as_trl_packs_them(strategy: str, limit: int) -> None:
    lengths = np.random.default_rng(limit).integers(2, 101, 300).tolist()
    rows = Dataset.from_dict({"input_ids": [[0] * length for length in lengths]})
    packed = pack_dataset(rows, limit, strategy)
    if strategy == "bfd":
        cut = [min(length, limit) for length in lengths]
        assert best_fit_decreasing(cut, limit) == [tuple(row) for row in packed["seq_lengths"]]
    elif strategy == "bfd_split":
        assert best_fit_decreasing(split(lengths, limit), limit) == [tuple(row) for row in packed["seq_lengths"]]
    else:
        assert wrapped(lengths, limit) == [(len(row),) for row in packed["input_ids"]]


@pytest.mark.parametrize("more", MODES.values(), ids=MODES)
def test_tensors_are_those_of_trls_collator(more: dict[str, Any], job: MakeJob) -> None:
    made = job(lengths=LENGTHS, batch_size=3, **more)
    assert made.data.batched is not None
    ((batch, inputs),) = made.data.inputs(0)
    lengths = [length for row in batch.rows for length in row]
    documents = made.data.batched.source.sequences(0, 3, max(lengths)).tolist()
    collator = DataCollatorForLanguageModeling(
        pad_token_id=0,
        padding_free=bool(more.get("padding_free")),
        pad_to_multiple_of=more.get("pad_to_multiple_of"),
    )
    theirs = collator([{"input_ids": row[:length]} for row, length in zip(documents, lengths, strict=True)])
    ours = {
        "input_ids": inputs.tokens,
        "labels": inputs.labels,
        "attention_mask": inputs.mask,
        "position_ids": inputs.positions,
    }
    assert {name for name, tensor in ours.items() if tensor is not None} == set(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert inputs.trained == int((theirs["labels"][:, 1:] != -100).sum())
    assert batch.full == (theirs["input_ids"].numel() == sum(lengths))


@pytest.mark.parametrize("loss", [name for name, loss in LOSSES.items() if not loss.cuda_only])
@pytest.mark.parametrize("more", [*MODES.values(), {"packing": "bfd"}], ids=[*MODES, "bfd"])
def test_padding_and_neighbours_in_a_row_change_no_loss(more: dict[str, Any], loss: str, job: MakeJob) -> None:
    """Against the mean over every token of each sequence alone."""
    settings: dict[str, Any] = {"lengths": LENGTHS, "max_length": 128, "batch_size": 3, "loss": loss}
    made = job(**settings | more)
    assert made.data.batched is not None
    ((batch, _),) = made.data.batched.of_step(0)
    lengths = [length for row in batch.rows for length in row]
    documents = made.data.batched.source.sequences(0, len(lengths), max(lengths))
    policy: Any = made.roles["policy"].module
    with torch.no_grad(), made.device.attention("sdpa"):
        alone = [policy(row[None, :length]) * (length - 1) for row, length in zip(documents, lengths, strict=True)]
    expected = float(sum(alone)) / sum(length - 1 for length in lengths)
    assert float(made.step(0)["loss"]) == pytest.approx(expected, rel=1e-5)


def test_every_token_of_a_step_counts_as_much_in_whichever_batch_it_is(job: MakeJob) -> None:
    whole = job(lengths=LENGTHS, batch_size=4)
    parts = job(lengths=LENGTHS, batch_size=1, gradient_accumulation_steps=4)
    assert float(parts.step(0)["loss"]) == pytest.approx(float(whole.step(0)["loss"]), rel=1e-5)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_draw_depends_on_seed_and_step_alone(cell: MakeCell) -> None:
    one, other = (Batches(cell(lengths=LENGTHS, batch_size=8, seed=seed).workload) for seed in (0, 1))
    assert one.of_step(0) == Batches(one._work).of_step(0)
    assert len({one.of_step(0), one.of_step(1), other.of_step(0)}) == 3


def test_lengths_are_drawn_with_their_shares(cell: MakeCell) -> None:
    (batch,) = Batches(cell(lengths=LENGTHS, batch_size=10_000).workload).of_step(0)
    counts = Counter(length for (length,) in batch.rows)
    for length, share in LENGTHS.items():
        assert counts[length] / 10_000 == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ("more", "worst", "share"),
    [
        ({}, (Batch((*((100,),) * 3, (48,)), 100), Batch(((100,),) * 4, 100)), 1 - 0.8**4),
        ({"pad_to_multiple_of": 64}, (Batch((*((100,),) * 3, (48,)), 128), Batch(((100,),) * 4, 128)), 1 - 0.8**4),
        ({"batch_size": 1}, (Batch(((100,),), 100),), 0.2),
        ({"padding_free": True}, (Batch(((100,) * 4,), 400, flat=True),), 0.2**4),
    ],
)
def test_the_worst_batches(more: dict[str, Any], worst: tuple[Batch, ...], share: float, cell: MakeCell) -> None:
    batches = Batches(cell(**{"lengths": LENGTHS, "batch_size": 4} | more).workload)
    assert batches.worst == worst
    assert batches.worst_share == pytest.approx(share)


def test_the_worst_batches_of_packs(cell: MakeCell) -> None:
    settings: dict[str, Any] = {"lengths": LENGTHS, "batch_size": 2, "max_length": 128}
    (fullest,) = Batches(cell(**settings, packing="bfd").workload).worst
    assert (fullest.flat, fullest.width, fullest.tokens) == (True, 256, 256)
    split_ones = cell(batch_size=2, lengths={100: 1.0}, max_length=40, packing="bfd_split")
    assert Batches(split_ones.workload).worst[0].rows == ((20, 20, 20, 20),)
    assert Batches(split_ones.workload).worst_share == pytest.approx(1, abs=0.01)
    cut, full = Batches(cell(**settings, packing="wrapped").workload).worst
    assert full == Batch(((128,), (128,)), 128)
    assert cut.rows[0] == (128,) != cut.rows[1]


def test_the_usual_batch_is_the_middle_one(cell: MakeCell) -> None:
    batches = Batches(cell(lengths={8: 0.9, 64: 0.1}, batch_size=2).workload)
    assert batches.usual == Batch(((8,), (8,)), 8)


def test_steps_after_the_timed_ones_have_the_worst(cell: MakeCell) -> None:
    """One of them is where a measurement counts bytes."""
    work = cell(lengths=LENGTHS, batch_size=2, gradient_accumulation_steps=2, warmup_steps=1, steps=1).workload
    batches = Batches(work)
    assert [batches.of_step(step)[1] in batches.worst for step in range(4)] == [False, False, True, True]
    assert tuple(batches.of_step(step)[1] for step in (2, 3)) == batches.worst
    ordered = Batches(work, ("drawn", "worst", "usual"))
    assert ordered.of_step(0) == batches.of_step(0)
    assert ordered.of_step(1)[1] == batches.worst[0]
    assert ordered.of_step(2) == (batches.usual, batches.usual)
    assert ordered.of_step(3)[1] == batches.worst[1]


def test_an_evaluation_has_one_of_the_worst_batches(cell: MakeCell) -> None:
    batches = Batches(cell(lengths=LENGTHS).workload)
    evaluated = batches.of_evaluation(0, 5, 2)
    assert [len(batch.rows) for batch in evaluated] == [2, 2, 1]
    assert evaluated[1] == Batch(((100,), (48,)), 100)
    assert batches.of_evaluation(0, 1, 2) == (Batch(((100,),), 100),)


def test_tokens_of_a_step_are_those_that_are_trained_on(job: MakeJob) -> None:
    made = job(lengths=LENGTHS, batch_size=4, pad_to_multiple_of=64)
    made.prepare(0)
    ((batch, inputs),) = made.data.inputs(0)
    assert inputs.mask is not None
    assert made.train_tokens(0) == batch.tokens == int(inputs.mask.sum()) < inputs.tokens.numel()
