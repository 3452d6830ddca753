"""What pairwise coverage promises."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrambench.bench.plan.coverage import Row, pairwise, parts, witnesses
from vrambench.bench.plan.matrix import Matrix
from vrambench.bench.plan.plan import select
from vrambench.bench.plan.selection import Selection

VALUES = [["a", "b", "c", "d"], ["e", "f"], ["g", "h", "i"], ["j", "k", "l"]]
ROWS: list[Row] = [tuple(row) for row in product(*VALUES)]


@settings(max_examples=200, deadline=None)
@given(st.sets(st.sampled_from(ROWS)))
def test_every_pair_that_can_be_valid_is_covered(valid: set[Row]) -> None:
    rows = [row for row in ROWS if row in valid]
    chosen = pairwise(rows)
    assert set(chosen) <= valid
    assert parts(chosen, 2) == parts(rows, 2)
    assert chosen == pairwise(rows)


@settings(max_examples=100, deadline=None)
@given(st.sets(st.sampled_from(ROWS)))
def test_every_value_and_pair_that_cannot_is_shown_once(valid: set[Row]) -> None:
    good, bad = [row for row in ROWS if row in valid], [row for row in ROWS if row not in valid]
    shown = witnesses(good, bad)
    assert set(shown) <= set(bad)
    assert parts(shown, 1) | parts(good, 1) == parts(ROWS, 1)
    usable = {value for part in parts(good, 1) for value in part}
    never = {pair for pair in parts(ROWS, 2) - parts(good, 2) if set(pair) <= usable}
    assert never <= parts(shown, 2)


def test_pairwise_is_much_less_than_everything() -> None:
    assert len(pairwise(ROWS)) < len(ROWS) / 3


@pytest.mark.parametrize("profile", ["smoke", "24gb"])
def test_the_shipped_profiles_cover_every_pair(shipped: Matrix, profile: str) -> None:
    device: Any = "cpu" if profile == "smoke" else "cuda"

    def rows(coverage: str) -> list[Row]:
        plan = select(shipped, Selection(profile=profile, coverage=coverage), device)
        return [tuple(one.cell.axes.values()) for one in plan.cells if one.verdict == "valid"]

    assert parts(rows("pairwise"), 2) == parts(rows("full"), 2)


# -- the matrix that is shipped
