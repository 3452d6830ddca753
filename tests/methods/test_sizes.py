"""Amounts of memory, and cards, as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrambench.methods.called import cards_called, why_unknown
from vrambench.methods.cards import CAPACITIES, CARDS
from vrambench.methods.errors import NEAREST, shown
from vrambench.methods.sizes import parse_amount, parse_part, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("24G", 24 * 2**30),
        ("1.5 t", 3 * 2**39),
        ("900m", 900 * 2**20),
        ("24 gib", 24 * 2**30),
        (" 1.5 MiB ", 3 * 2**19),
        ("16GB", 16 * 10**9),
        ("512kb", 512_000),
        ("7000000", 7_000_000),
        ("700000b", 700_000),
        (7_000_000, 7_000_000),
        (7_000_000.9, 7_000_000),
        ("rtx-4090", CAPACITIES["rtx-4090"]),
        ("RTX-3090", CAPACITIES["rtx-3090"]),
        ("4090", CAPACITIES["rtx-4090"]),
        ("rtx4090", CAPACITIES["rtx-4090"]),
        ("RTX 4090", CAPACITIES["rtx-4090"]),
        ("NVIDIA GeForce RTX 4090", CAPACITIES["rtx-4090"]),
        ("RTX 3090 24GB", CAPACITIES["rtx-3090"]),
        ("3090", CAPACITIES["rtx-3090"]),
        ("4070 Ti", CAPACITIES["rtx-4070-ti"]),
        ("4070ti", CAPACITIES["rtx-4070-ti"]),
        ("RTX2080Ti", CAPACITIES["rtx-2080-ti"]),
        ("rtx-3080", CAPACITIES["rtx-3080-10gb"]),
        ("h100", CAPACITIES["h100-80gb"]),
        ("NVIDIA A100-SXM4-80GB", CAPACITIES["a100-80gb"]),
        ("a100 40 GB", CAPACITIES["a100-40gb"]),
        ("NVIDIA H100 80GB HBM3", CAPACITIES["h100-80gb"]),
        ("Tesla V100-SXM2-16GB", CAPACITIES["v100-16gb"]),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", CAPACITIES["rtx-pro-6000-blackwell"]),
        ("NVIDIA RTX 6000 Ada Generation", CAPACITIES["rtx-6000-ada"]),
        ("A6000", CAPACITIES["rtx-a6000"]),
        ("RTX 6000 Ada", CAPACITIES["rtx-6000-ada"]),
        ("Tesla T4", CAPACITIES["t4"]),
        ("RTX 3090 Ti", CAPACITIES["rtx-3090-ti"]),
        ("NVIDIA GH200 480GB", CAPACITIES["gh200-480gb"]),
        ("gh200 96GB", CAPACITIES["gh200-480gb"]),
        ("NVIDIA H100 NVL", CAPACITIES["h100-nvl"]),
        ("a800", CAPACITIES["a800-80gb"]),
        ("NVIDIA TITAN RTX", CAPACITIES["titan-rtx"]),
        ("NVIDIA RTX 4000 Ada Generation", CAPACITIES["rtx-4000-ada"]),
        ("Quadro RTX 8000", CAPACITIES["quadro-rtx-8000"]),
        ("1TiB", 2**40),
    ],
)
def test_sizes(text: str | float, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", "GiB", "24 G iB", "-1GiB", "1e9", "24gigs", "0", "0.4", "2000000TiB", "rtx-5", "Quadro RTX 4000"),
        *(0, -3, float("nan"), float("inf"), True, None, [24]),
    ],
)
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size") as caught:
        parse_size(text)
    assert str(caught.value).startswith(shown(text))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1GBi", "1GiB"),
        ("-24GiB", "24GiB"),
        ("24 G B", "24GiB"),
        ("24g.", "24GiB"),
        ("8000mibs", "8000MiB"),
        ("24XB", "24GiB"),
        ("rtx4090x", "rtx-4090"),
        ("5090ti", None),
        ("GiB", None),
    ],
)
def test_the_nearest_size_is_told(text: str, meant: str | None) -> None:
    with pytest.raises(ValueError, match="is not a size") as caught:
        parse_size(text)
    hint = str(caught.value).partition("; did you mean ")[2]
    assert hint == (f"{meant!r}?" if meant else "")


@pytest.mark.parametrize(
    ("text", "cards"),
    [
        ("rtx-409", "rtx-4090, rtx-5090, "),
        ("rtx4090ti", "rtx-4090, rtx-4070-ti, "),
        ("GiB", ", ".join(list(CAPACITIES)[:NEAREST])),
    ],
)
def test_few_cards_are_named_the_nearest_first(text: str, cards: str) -> None:
    with pytest.raises(ValueError, match="or a card: ") as caught:
        parse_size(text)
    named, told_by, _ = str(caught.value).partition("or a card: ")[2].partition(" (vrambench list cards tells all)")
    assert told_by
    assert f"{named}, ".startswith(cards)
    assert len(named.split(", ")) == NEAREST


def test_an_amount_is_a_size_and_no_card() -> None:
    assert [parse_amount(one) for one in ("512MiB", "2 GB", 200_000)] == [512 * 2**20, 2 * 10**9, 200_000]
    for text in ("rtx-4090", "4090ti", "a100"):
        with pytest.raises(ValueError, match=rf"^'{text}' is not a size; write 512MiB or 2GB"):
            parse_amount(text)
    with pytest.raises(ValueError, match="'-1GiB' is not a size; write 512MiB or 2GB; did you mean '1GiB'"):
        parse_amount("-1GiB")
    with pytest.raises(ValueError, match=r"'4090' would be bytes; write its unit, as in 24GiB$"):
        parse_amount("4090")


def test_a_part_is_a_size_or_a_share() -> None:
    assert [parse_part(one, 1000) for one in ("30%", " 12.5 % ", "100%")] == [300, 125, 1000]
    assert parse_part("6GiB", 1000) == 6 * 2**30
    for wrong, said in (
        ("130%", r"^'130%' is no share; write 6GiB, or up to 100%$"),
        ("0%", r"^'0%' is no share"),
        (0.3, r"^0.3 is not a size; write 6GiB or 30%; did you mean '30%'\?$"),
        ("rtx-4090", r"^'rtx-4090' is not a size; write 6GiB or 30%"),
        (-1, "is not a size of at least 128 KiB"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_part(wrong, 1000)


def test_a_card_that_may_be_two_is_said_to_be() -> None:
    with pytest.raises(ValueError, match=r"'a100' may be a100-40gb or a100-80gb$"):
        parse_size("a100")
    with pytest.raises(ValueError, match=r"'RTX 4080 Super' is a card of 16 GB, .* as in 15GiB "):
        parse_size("RTX 4080 Super")
    assert [card.name for card in cards_called("4070tisuper")] == ["rtx-4070-ti-super"]
    assert (
        why_unknown("AMD Instinct MI300X")
        == why_unknown("7900xtx")
        != why_unknown("gtx-1080 ti")
        == why_unknown("Tesla P40")
    )
    assert [card.name for card in CARDS.values() if why_unknown(card.name)] == []
    assert cards_called("a100 48gb") == cards_called("rtx") == cards_called("24gb") == ()


@pytest.mark.parametrize("text", ["128KiB", "512kb", "24GiB"])
def test_a_size_is_read_back_from_its_bytes(text: str) -> None:
    """As cells are, which hold bytes."""
    assert parse_size(parse_size(text)) == parse_size(text)


@pytest.mark.parametrize("number", [1, 24, "24", 24.5, 2**17 - 1])
def test_a_number_whose_unit_was_forgotten_is_none(number: int | float | str) -> None:
    with pytest.raises(ValueError, match="would be bytes; write its unit, as in 24GiB"):
        parse_size(number)


@given(st.integers(2**20, 2**59), st.sampled_from(["", "B"]))
def test_bytes_are_kept_to_a_double_s_precision(size: int, unit: str) -> None:
    assert parse_size(f"{size}{unit}") == pytest.approx(size, rel=1e-15)


def test_a_power_of_ten_is_not_taken_for_its_first_digit() -> None:
    with pytest.raises(ValueError, match="'1e400' is not a size") as caught:
        parse_size("1e400")
    assert "did you mean" not in str(caught.value)
