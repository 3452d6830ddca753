"""What a prediction costs: seconds per cell, imports apart, on one core.

    make benchmark

`20b`: GPT-NeoX-20B, PPO, int8, LoRA, the reference by switching the adapter off, 8 tokens of query and 16 of response: the aim is
under 5 s. The others are kinds of cells of the profile 24gb (Llama-2-7B): under 3 s each, and about 1 s in the middle, since
several hundred make its plan. The first prediction of a process learns operators' shapes, which later ones know: both are shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.plan.matrix import load_matrix
from vrambench.bench.plan.plan import select
from vrambench.bench.plan.selection import Selection
from vrambench.bench.predict.forecast import Predictor
from vrambench.methods.cell import Cell

MATRIX = Path(__file__).parents[2] / "matrix.yaml"
KINDS = {
    "20b": ("20b", ("response_tokens=16",), {}),
    "sft": ("24gb", (), {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "algorithm": "sft"}),
    "ppo lora": ("24gb", (), {"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch", "algorithm": "ppo"}),
    "remax nf4": (
        "24gb",
        (),
        {"precision": "nf4", "adapter": "lora", "optimizer": "paged_adamw_8bit", "algorithm": "remax"},
    ),
    "ppo amp galore": (
        "24gb",
        (),
        {"precision": "bf16_amp", "adapter": "none", "optimizer": "galore_adamw_layerwise", "algorithm": "ppo"},
    ),
    "ppo zero2": (
        "24gb",
        (),
        {
            "precision": "bf16",
            "adapter": "lora",
            "optimizer": "adamw_torch",
            "offload": "zero2_optimizer",
            "algorithm": "ppo",
        },
    ),
}


def cell(kind: str) -> Cell:
    profile, settings, axes = KINDS[kind]
    chosen = {"offload": "none", **axes} if axes else {}
    plan = select(load_matrix(MATRIX), Selection(profile=profile, axes=chosen, set=settings), "cuda")
    return plan.cells[0].cell


@pytest.mark.parametrize("known", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("kind", KINDS)
def test_seconds_per_prediction(benchmark: Any, kind: str, known: bool) -> None:
    made = cell(kind)
    predictor = Predictor()
    predictor.forecast(made)  # imports, and what the libraries do once

    def fresh() -> None:
        nonlocal predictor
        predictor = predictor if known else Predictor()
        predictor.forget()

    forecast = benchmark.pedantic(lambda: predictor.forecast(made), setup=fresh, rounds=3)
    benchmark.extra_info["device_bytes"] = forecast.memory.device_bytes
    assert forecast.memory.allocated_bytes
