"""The table of cards: one place for a capacity, and nothing made up."""

from __future__ import annotations

import pytest

from vrambench.methods.called import card_of
from vrambench.methods.cards import CAPACITIES, CARDS, Card
from vrambench.methods.sizes import parse_size


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.name)
def test_a_card_s_numbers_agree_with_each_other(card: Card) -> None:
    assert CARDS[card.name] is card
    assert card.name == card.name.lower()
    assert card.source
    assert card.capability >= (7, 0)
    assert 0 < card.multiprocessors < 256
    if card.usable_bytes is not None:
        assert 0.9 * card.marked_bytes < card.usable_bytes < card.marked_bytes
    if card.outside_bytes is not None:
        low, high = card.outside_bytes
        assert 0 < low < high < 2**30


def test_a_budget_names_the_cards_whose_capacity_is_known() -> None:
    known = {card.name: card.usable_bytes for card in CARDS.values() if card.usable_bytes is not None}
    assert known == CAPACITIES
    assert [card_of(size) for size in known.values()] == [CARDS[name] for name in known]
    for name, size in known.items():
        assert parse_size(name) == size
    for name in CARDS.keys() - known.keys():
        with pytest.raises(ValueError, match=r"is a card of .* how much is not known here: write it, as in"):
            parse_size(name)
