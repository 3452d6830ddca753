"""A claim's formula: what may stand in it, and its arithmetic against hand-computed values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrambench.bench.claims.formula import PREDICTED, VALUES, parse
from vrambench.methods.errors import ConfigurationError

GIVEN = {
    ("a", "device_bytes"): 6,
    ("b", "device_bytes"): 8,
    ("b", "value", "weights_bytes"): 3,
    ("a", "parameters"): 2,
    ("a", "fits"): True,
    ("b", "fits"): False,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 - a.device_bytes / b.device_bytes", 0.25),
        ("(a.device_bytes + b.value.weights_bytes) * 2", 18),
        ("-a.device_bytes + 1e3", 994),
        ("max(a.device_bytes, b.device_bytes, 7.5)", 8),
        ("min(a.device_bytes, a.parameters)", 2),
        ("max(4 * a.fits, 8 * b.fits)", 4),
        ("a.fits and not b.fits", True),
        ("a.device_bytes < b.device_bytes", True),
        ("a.device_bytes >= 7 or b.fits", False),
        ("a.fits", True),
    ],
)
def test_arithmetic(text: str, value: float | bool) -> None:
    formula = parse(text)
    assert formula.value({name: GIVEN[name] for name in formula.names}) == value
    assert formula.judges is isinstance(value, bool)


@given(st.integers(1, 2**45), st.integers(1, 2**45))
def test_a_share_is_exact(less: int, more: int) -> None:
    formula = parse("1 - less.device_bytes / more.device_bytes")
    assert formula.value({("less", "device_bytes"): less, ("more", "device_bytes"): more}) == 1 - less / more


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.device_byte", "the value of a: 'device_byte' is unknown; did you mean 'device_bytes'"),
        ("a.polcy.weights_bytes", "the role of a: 'polcy' is not one of .*; did you mean 'policy'"),
        ("a.policy.device_bytes", "the value of a.policy: 'device_bytes' is not one of weights_bytes"),
        ("a.policy", "a.policy is a role; write a.policy.weights_bytes"),
        ("a", "'a' is a cell, and no value of it; write a.device_bytes"),
        ("1 + 2", "asks nothing of a cell"),
        ("a.device_bytes ** 9", r"^\*\* cannot stand in a formula"),
        ("a.device_bytes.__class__", "the role of a: 'device_bytes' is not one of"),
        ("a['device_bytes']", r"^\[ \] cannot stand in a formula"),
        ("a.device_bytes | abs", r"^\| cannot stand in a formula"),
        ("exec(a.device_bytes)", "the function: 'exec' is not one of min, max"),
        ("a.fits(1)", "the function: 'it' is not one of min, max"),
        ("max(a.device_bytes)", "max takes two values or more"),
        ("'x' * a.device_bytes", "'x' is no number"),
        ("true and a.fits", "'True' is no number"),
        ("[a.device_bytes]", r"^\[ \] cannot stand in a formula"),
        ("a.fits in a.fits", "'in' has no meaning"),
        ("a.device_bytes if a.fits", "^if cannot stand in a formula"),
        ("1 - ", "is no formula"),
        ("a.device_bytes }} {{ 1", "is no formula"),
        ("", "^is empty; write a cell's name and a value: ppo.device_bytes"),
        (" ", "^is empty"),
        ("a.device_bytes, 1", "^a comma cannot stand in a formula"),
        ("a.device_bytes // 2", "^// cannot stand in a formula"),
        ("a.fits is true", "^is cannot stand in a formula"),
        ("(" * 400 + "a.fits" + ")" * 400, "nested too deeply|is no formula"),
        ("a.fits" + " " * 1000, "at most 1,000"),
    ],
)
def test_what_is_no_formula_is_told(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse(text)


def test_a_prediction_tells_memory_and_no_time() -> None:
    assert parse("a.device_bytes / b.parameters").predictable
    assert not parse("a.device_bytes / b.step_seconds").predictable
    assert len(set(VALUES)) == len(VALUES)
    assert set(PREDICTED) < set(VALUES)
    assert parse("a.fits").fits_of == "a"
    assert parse("not a.fits").fits_of is None
    assert parse("a.fits and b.fits").fits_of is None
