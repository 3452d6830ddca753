"""What may grow by how much, as it is written."""

from __future__ import annotations

import pytest

from vrambench.bench.gate.tolerance import EXACT, METRICS, USUAL, Tolerance, tolerances
from vrambench.methods.errors import ConfigurationError

MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("text", "before", "allowed"),
    [
        ("0", GIB, 0),
        ("1%", 10 * GIB, 0.1 * GIB),
        ("64MiB", GIB, 64 * MIB),
        ("1%|64MiB", GIB, 64 * MIB),
        ("1%|64MiB", 20 * GIB, 0.2 * GIB),
        (" 64MiB | 1.5% ", 20 * GIB, 0.3 * GIB),
    ],
)
def test_the_larger_of_a_share_and_a_size_is_allowed(text: str, before: int, allowed: float) -> None:
    tolerance = Tolerance.parse(text)
    assert tolerance.allowed(before) == pytest.approx(allowed)
    assert Tolerance.parse(tolerance.text()) == tolerance


@pytest.mark.parametrize(
    "text", ["", "much", "-1%", "nan%", "inf%", "1%|", "64 apples", "%", "rtx-4090", "1%|64MiB|3%"]
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^allocated_bytes: .*such as 1%"):
        Tolerance.parse(text, "allocated_bytes")


def test_time_has_shares_alone() -> None:
    with pytest.raises(ConfigurationError, match=r"^step_seconds: '64MiB': must be a share, such as 5%"):
        Tolerance.parse("64MiB", "step_seconds")


def test_what_is_told_later_counts() -> None:
    assert tolerances("predicted") == dict(EXACT)
    found = tolerances("measured", {"allocated_bytes": "2%"}, {"allocated_bytes": "3%"})
    assert found == dict(USUAL) | {"allocated_bytes": Tolerance(0.03)}
    with pytest.raises(ConfigurationError, match=r"'reserved' is not one of .*did you mean 'reserved_bytes'"):
        tolerances("measured", {"reserved": "2%"})
    assert set(USUAL) == set(METRICS)
