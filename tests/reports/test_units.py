"""How numbers are written."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrambench.bench.results.curves import quarters
from vrambench.reports import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (96, "96 B"),
        (1023, "1,023 B"),
        (1024, "1 KiB"),
        (10**6, "977 KiB"),
        (2**20, "1 MiB"),
        (10**9, "954 MiB"),
        (24 * 2**30, "24 GiB"),
        (int(1.5 * 2**30), "1.50 GiB"),
        (int(23.64 * 2**30), "23.6 GiB"),
        (2**40, "1 TiB"),
        (-(2**20), "−1 MiB"),
    ],
)
def test_sizes_are_binary_and_named_so(value: int | None, text: str) -> None:
    assert units.size(value) == text


def test_a_difference_has_its_sign() -> None:
    assert units.signed_size(2**20) == "+1 MiB"
    assert units.signed_size(-(2**20)) == "−1 MiB"
    assert units.signed_size(0) == "0 B"
    assert units.signed_size(None) == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0123, "12.3 ms"),
        (0.9999, "1.00 s"),
        (1.25, "1.25 s"),
        (119.6, "2 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (math.nan, "not a number"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (2.3456, "2.35"),
        (-0.5, "−0.500"),
        (12345.6, "12346"),
        (1e-5, "1.00e-05"),
        (1e9, "1.00e+09"),
        (math.nan, "not a number"),
        (math.inf, "infinite"),
        (-math.inf, "−infinite"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert units.number(value) == text


def test_rates_and_percentages() -> None:
    assert units.rate(12345.6, "tokens/s") == "12,346 tokens/s"
    assert units.rate(8.514) == "8.51"
    assert units.rate(None, "tokens/s") == "–"
    assert units.percent(0.032) == "+3.2 %"
    assert units.percent(-0.5) == "−50.0 %"
    assert units.percent(None) == "–"


def test_a_curve_is_told_by_its_quarters() -> None:
    assert quarters([8, 6, 4, 4, 3, 3, 2, 0]) == (7, 1)
    assert quarters([5.0]) == (5, 5)
    assert quarters([]) is None
    assert units.change((2.5, 0.5)) == "2.50 → 0.500"


def test_a_quarter_with_a_value_missing_has_no_mean() -> None:
    assert quarters([1.0, 2.0, 3.0, None]) == (1, None)
    assert quarters([1.0, 2.0, 3.0, math.nan]) == (1, None)
    assert units.change((1.0, None)) == "1.00 → –"


@given(st.integers(1, 2**60))
def test_three_digits_are_true_to_the_value(value: int) -> None:
    number, unit = units.size(value).split()
    scale = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}[unit]
    assert float(number.replace(",", "")) * scale == pytest.approx(value, rel=0.005)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_float_can_be_written(value: float) -> None:
    for write in (units.number, units.rate, units.seconds, units.percent):
        assert write(abs(value) if write is units.seconds else value)
