"""Matrices that tests of the plan share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.plan.matrix import Matrix, load_matrix
from vrambench.bench.plan.plan import Plan, select
from vrambench.bench.plan.selection import Selection

SHIPPED = Path(__file__).parents[3] / "matrix.yaml"

SMALL = """
axes:
  precision: [fp32, bf16, nf4]
  adapter: [none, lora]
  optimizer: [adamw_torch]
  offload: [none]
  algorithm: [sft, ppo]
workload: {model: tiny, steps: 3, ppo: {epochs: 2}}
"""

Make = Callable[..., Plan]


@pytest.fixture
def small(tmp_path: Path) -> Make:
    """The plan of the small matrix (and `more` of it) under selectors, for the CPU."""

    def make(more: str = "", **selectors: Any) -> Plan:
        (tmp_path / "matrix.yaml").write_text(SMALL + more)
        return select(load_matrix(tmp_path / "matrix.yaml"), Selection(**selectors), "cpu")

    return make


@pytest.fixture(scope="module")
def shipped() -> Matrix:
    return load_matrix(SHIPPED)
