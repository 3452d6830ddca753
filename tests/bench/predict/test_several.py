"""Sequences of several lengths: the worst batch decides, and the answer says which one that is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vrambench.bench.commands import app as cli
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.reach import integer_fields, largest
from vrambench.bench.predict.several import order_of
from vrambench.methods.cell import Cell, resolve

AXES = {"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
LENGTHS = {64: 0.5, 256: 0.4, 512: 0.1}
NAMED = [word for axis, value in AXES.items() for word in (f"--{axis}", value)]
TYPED = ["fit", "--model", "tiny", *NAMED, "--set", "batch_size=4", "--budget", "24GiB"]


def cell(**settings: Any) -> Cell:
    return resolve(AXES, {"model": "tiny", "batch_size": 4, "lengths": LENGTHS} | settings)


def allocated(one: Cell) -> int:
    return Predictor().forecast(one).memory.allocated_bytes or 0


def test_without_lengths_two_steps_are_simulated_as_ever() -> None:
    assert order_of(resolve(AXES, {"model": "tiny"})) == ()
    assert Predictor().forecast(resolve(AXES, {"model": "tiny"})).batches is None


def test_the_jobs_own_batches_come_first() -> None:
    assert order_of(cell()) == ("drawn",) * 6 + ("worst", "worst", "usual")
    assert order_of(cell(gradient_accumulation_steps=8))[:3] == ("drawn", "drawn", "worst")
    assert order_of(cell(batch_size=1))[-2:] == ("worst", "usual")
    assert order_of(cell(eval_batch_size=2))[-2:] == ("usual", "worst")


@pytest.mark.parametrize(
    ("attention", "tokens"), [("sdpa", 3 * 512 + 256), ("eager", 3 * 512 + 256), ("flash_attention_2", 4 * 512)]
)
def test_the_worst_is_that_of_longest_sequences_and_mask(attention: str, tokens: int) -> None:
    """But with flash-attn, which leaves padding out: there it is the one without any."""
    forecast = Predictor().forecast(cell(attention=attention))
    batches = forecast.batches
    assert batches is not None
    assert (batches.worst.rows, batches.worst.row_tokens, batches.worst.tokens) == (4, 512, tokens)
    assert batches.worst.allocated_bytes == forecast.memory.allocated_bytes
    assert batches.worst_share == pytest.approx(1 - 0.9**4)
    assert batches.usual.allocated_bytes < batches.worst.allocated_bytes
    assert forecast.limiting_step == batches.worst.step


def test_a_mask_takes_more_than_none_and_no_padding_less() -> None:
    """Four times 512 tokens: without a mask, with one; and four sequences in a row, whose mask is of all pairs, or with flash-attn
    none."""
    alike = allocated(cell(lengths={512: 1.0}))
    masked = allocated(cell())
    square = allocated(cell(lengths={512: 1.0}, padding_free=True))
    assert alike < masked < square
    flash = allocated(cell(attention="flash_attention_2", padding_free=True))
    assert flash == pytest.approx(allocated(cell(attention="flash_attention_2", lengths={512: 1.0})), rel=0.01)


def test_what_an_evaluation_takes_is_no_batchs() -> None:
    plain = Predictor().forecast(cell()).batches
    evaluating = Predictor().forecast(cell(eval_batch_size=32, max_eval_samples=64, prediction_loss_only=False))
    assert evaluating.limiting_phase == "evaluate"
    assert evaluating.batches == plain


def test_truncation_is_what_decides() -> None:
    short = Predictor().forecast(cell(max_length=256)).batches
    assert short is not None
    assert (short.worst.row_tokens, short.worst_share) == (256, pytest.approx(1 - 0.5**4))


def test_the_worst_batches_alone_take_no_more_than_beside_others() -> None:
    whole, alone = (Predictor().forecast(cell(), worst_alone=only) for only in (False, True))
    assert alone.memory.allocated_bytes == whole.memory.allocated_bytes
    assert (alone.memory.reserved_bytes or 0) <= (whole.memory.reserved_bytes or 0)
    assert alone.batches is None


def test_the_text_and_the_document_say_which_batch(capsys: pytest.CaptureFixture[str]) -> None:
    typed = [*TYPED, "--set", "lengths={64: 0.5, 256: 0.4, 512: 0.1}"]
    assert cli.main(typed) == 0
    out = capsys.readouterr().out
    assert "batch_size 4, 64 to 512 tokens, padded" in out
    assert "worst batch: 4 x 512 tokens: " in out
    assert ", and 1 in 3 batches has as many tokens; a usual batch is 4 x 256 tokens: " in out
    assert "reserved memory goes with the order in which lengths come" in out
    assert cli.main([*typed, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cell"]["lengths"] == {"64": 0.5, "256": 0.4, "512": 0.1}
    assert told["batches"]["worst"]["row_tokens"] == 512
    assert told["batches"]["usual"]["sequences"] == 4


def test_a_worst_batch_that_is_the_usual_one_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TYPED, "--set", "lengths={256: 1.0}"]) == 0
    out = capsys.readouterr().out
    assert "(what is allocated in its step); a usual batch is as large" in out
    assert "of batches" not in out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["packing=bfd", "max_length=600"], "64 to 512 tokens, packing bfd to 600"),
        (["padding_free=true"], "worst batch: 1 x 2,048 tokens of 4 sequences: "),
    ],
)
def test_packs_are_told_by_their_tokens(more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [word for one in more for word in ("--set", one)]
    assert cli.main([*TYPED, "--set", "lengths={64: 0.5, 256: 0.4, 512: 0.1}", *settings]) == 0
    assert said in capsys.readouterr().out


def test_lengths_say_what_can_be_searched() -> None:
    assert {"prompt_tokens", "response_tokens"}.isdisjoint(integer_fields(cell()))
    found = largest(cell(max_length=128), "max_length", Predictor().forecast)
    assert (found.value, found.bound) == (128, "no sequence has more than 128 tokens")


def test_a_mapping_that_is_none_is_told_as_it_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TYPED, "--set", "lengths={64: 0.5}"]) == 2
    assert "its shares come to 0.5, and must come to 1" in capsys.readouterr().err
