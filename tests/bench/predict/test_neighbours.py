"""Neighbouring lengths: asked of the predictor itself, with bands that their spread passes and does not."""

from __future__ import annotations

import pytest

from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.neighbours import spread
from vrambench.methods.cell import Cell, resolve

MIB = 2**20


def gpt2(prompt_tokens: int) -> Cell:
    axes = {"precision": "fp32", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    work = {"model": "gpt2", "gradient_checkpointing": False, "batch_size": 6, "response_tokens": 3}
    return resolve(axes, work | {"prompt_tokens": prompt_tokens})


def test_a_spread_beyond_the_band_is_told_near_the_budget_alone() -> None:
    predictor, cell = Predictor(""), gpt2(710)
    device = predictor.forecast(cell).memory.device_bytes or 0
    near = predictor.forecast(cell, device + 100 * MIB)
    taken = {one: predictor.forecast(gpt2(one)).memory.device_bytes or 0 for one in (702, 718)}
    assert taken[718] - taken[702] > 150 * MIB, "three times what eight tokens take elsewhere"
    told = spread(cell, near.model_copy(update={"band_bytes": 100 * MIB}), predictor.forecast)
    assert told is not None
    assert f"{taken[702] / 2**30:.2f} GiB at 702 prompt tokens, {taken[718] / 2**30:.2f} GiB at 718" in told
    assert spread(cell, near.model_copy(update={"band_bytes": 300 * MIB}), predictor.forecast) is None
    far = predictor.forecast(cell, 2 * device).model_copy(update={"band_bytes": 0})
    assert spread(cell, far, lambda one: pytest.fail("asked")) is None
