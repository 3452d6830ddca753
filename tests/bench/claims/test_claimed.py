"""What is claimed, and when it is reproduced, partly, or refuted."""

from __future__ import annotations

import pytest

from vrambench.bench.claims.claimed import judge, parse, told
from vrambench.methods.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "reproduced", "partly", "refuted"),
    [
        ("50 %", [0.45, 0.5, 0.55], [0.25, 0.44, 0.9], [0.24, 0.0, -0.5]),  # half of the effect, however much more
        ("-25 %", [-0.25, -0.23], [-0.13, -0.4], [-0.12, 0.25]),
        ("2 x", [1.8, 2.0, 2.2], [1.5, 2.3, 9.0], [1.49, 1.0, 0.5]),
        ("0.5 x", [0.5, 0.55], [0.75, 0.2], [0.76, 2.0]),
        ("1.1 x", [1.05, 1.2], [1.3], [1.04]),  # a tenth of the ratio is more than half of its effect
        ("13.5 GB", [13.5e9, 12.2e9, 14.8e9], [10.2e9, 16.8e9], [10e9, 17e9]),
        ("16 GiB", [16 * 2**30], [13 * 2**30], [16]),
        ("8 bytes/parameter", [8, 7.2, 8.8], [6, 10], [4, 16]),
        (8, [8], [6.5], [4]),
        ("at least 80 GB", [80e9, 500e9], [72e9], [71e9]),
        ("at least 82.5 %", [0.825, 0.9], [0.789, 0.42], [0.41]),
        ("at most 24 GB", [24e9, 1], [26e9], [27e9]),
        ("at least 2 x", [2, 5], [1.5], [1.4]),
        ("fits", [True], [], [False]),
        ("does not fit", [False], [], [True]),
    ],
)
def test_verdicts(text: object, reproduced: list[float], partly: list[float], refuted: list[float]) -> None:
    claimed = parse(text)
    assert {judge(value, claimed) for value in reproduced} == {"reproduced"}
    assert {judge(value, claimed) for value in partly} <= {"partly"}
    assert {judge(value, claimed) for value in refuted} == {"refuted"}


def test_a_row_may_say_which_values_count() -> None:
    claimed = parse("at least 1 x", (0.9, None), (0.5, 2))
    assert [judge(value, claimed) for value in (0.95, 0.6, 0.4, 3)] == ["reproduced", "partly", "refuted", "reproduced"]
    assert judge(1, parse("1 x", (1, 1))) == "reproduced"
    assert judge(1.001, parse("1 x", (1, 1), (1, 1))) == "refuted"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("half", "'half' is no claim; write a number with its unit"),
        (True, "true is no claim"),
        ("50 gb", "'gb' is no unit; did you mean 'GB'"),
        ("2 X", "did you mean 'x'"),
        ("1 x", "'1 x' is no effect, of which there is no half"),
        ("", "'' is no claim"),
    ],
)
def test_what_is_no_claim_is_told(text: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse(text)


def test_fits_has_no_interval() -> None:
    with pytest.raises(ConfigurationError, match="has no interval"):
        parse("fits", (0, 1))


@pytest.mark.parametrize(
    ("claimed", "value", "text"),
    [
        ("50 %", 0.3234, "32.3 %"),
        ("22 GB", 22_661_824_512, "22.7 GB"),
        ("2 x", 0.5107, "0.511 x"),
        ("2 x", 2.0, "2 x"),
        ("8", 1234.5, "1,234"),
        ("2 x", 0.0, "0 x"),
        ("fits", True, "fits"),
        ("fits", False, "does not fit"),
        ("fits", None, ""),
    ],
)
def test_values_are_told_in_the_claims_unit(claimed: str, value: float | bool | None, text: str) -> None:
    assert told(value, parse(claimed)) == text
