"""A cell leads back to the line of its matrix that asked for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vrambench.bench.plan.matrix import load_matrix
from vrambench.bench.plan.places import place_of

MATRIX = """\
axes:
  precision: [bf16]
  adapter: [none, lora]
  optimizer: [sgd]
  offload: [none]
  algorithm:
    - sft
    - ppo
include:
  - {precision: bf16, adapter: none, optimizer: sgd, offload: none, algorithm: sft, batch_size: 2}
  - {precision: nf4, adapter: lora, optimizer: sgd, offload: none, algorithm: sft}
  - {precision: nf4, adapter: lora, optimizer: sgd, offload: none, algorithm: sft, nf4: {double_quant: true}}
  - {algorithm: ppo, seed: 3}
profiles:
  one:
    axes:
      algorithm: [ppo]
"""
PPO = {"precision": "bf16", "adapter": "lora", "optimizer": "sgd", "offload": "none", "algorithm": "ppo", "seed": 3}
SFT = PPO | {"algorithm": "sft", "seed": 0}
NF4 = SFT | {"precision": "nf4", "nf4": {"double_quant": False}}


@pytest.mark.parametrize(
    ("profile", "cell", "line"),
    [
        (None, SFT, 7),
        (None, PPO, 8),
        (None, SFT | {"adapter": "none", "batch_size": 2}, 10),
        (None, NF4, 11),
        (None, NF4 | {"nf4": {"double_quant": True}}, 12),
        ("one", PPO, 17),
        ("one", SFT, None),
        (None, SFT | {"algorithm": "dpo"}, None),
    ],
)
def test_the_most_particular_line_is_named(
    tmp_path: Path, profile: str | None, cell: dict[str, object], line: int
) -> None:
    file = tmp_path / "a:1: matrix.yaml"
    file.write_text(MATRIX)
    assert place_of(load_matrix(file), profile, cell) == line
