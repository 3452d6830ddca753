"""What people call a card, and which one they mean: `rtx-4090`, `4090`, `NVIDIA GeForce RTX 4090`, `A100-SXM4-80GB`, `h100`.

card_called("4090")             CARDS["rtx-4090"]
cards_called("a100")            both of them
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from vrambench.methods.cards import CARDS, GIB, Card

_MAKERS = {"nvidia", "geforce", "tesla", "gpu", "generation", "workstation", "server", "edition"}
_FORMS = {"pcie", "sxm", "sxm2", "sxm3", "sxm4", "sxm5", "hbm2", "hbm2e", "hbm3", "hbm3e"}
"""Words of a card's full name that tell no two apart here."""


def cards_called(text: str) -> tuple[Card, ...]:
    """The cards that people call so: `rtx-4090`, `4090`, `NVIDIA GeForce RTX 4090`, `A100-SXM4-80GB`, `h100`. Several where it is
    not said which of them (`a100`)."""
    wanted = _words(text)
    whole = tuple(card for card in CARDS.values() if _words(card.name) == wanted)
    if whole:
        return whole
    if not any(char.isdigit() for word in wanted - _sizes(wanted) for char in word):
        return ()
    found = [
        card for card in CARDS.values() if wanted - _sizes(wanted) <= _words(card.name) and _holds(card, _sizes(wanted))
    ]
    plain = [card for card in found if _words(card.name) - _sizes(_words(card.name)) <= wanted | {"rtx"}]
    return tuple(plain or found)


def card_called(text: object) -> Card | None:
    """The one card that people call so."""
    found = cards_called(text) if isinstance(text, str) else ()
    return found[0] if len(found) == 1 else None


def card_of(budget_bytes: int) -> Card | None:
    """The card whose usable capacity is exactly the budget: a card's name is stored as those bytes."""
    return next((card for card in CARDS.values() if card.usable_bytes == budget_bytes), None)


def budget_called(budget_bytes: int) -> str:
    """A budget as people write it, in the fewest characters: a card's name, `24GiB`, or the bytes."""
    card = card_of(budget_bytes)
    return card.name if card else f"{budget_bytes // GIB}GiB" if budget_bytes % GIB == 0 else str(budget_bytes)


def has_bf16(budget_bytes: int) -> bool:
    """Whether the card whose memory the budget is has bf16 arithmetic and flash attention. Of no card's, it has."""
    card = card_of(budget_bytes)
    return card is None or card.has_bf16


@lru_cache(maxsize=1024)
def _words(text: str) -> frozenset[str]:
    """Of a card's name, in lower case; `80 GB` is one, `rtx4090` and `4070ti` are two each."""
    joined = re.sub(r"\b(\d+)\s*gi?b\b", r"\1gb", text.lower())
    split = re.sub(r"\b(rtx|gtx)(?=\w?\d)", r"\1 ", joined)
    split = re.sub(r"(?<=\d{4})(ti)?(super)?\b", r" \1 \2", split)
    return frozenset(re.findall(r"[a-z0-9]+", split)) - _MAKERS - _FORMS


def _sizes(words: frozenset[str]) -> frozenset[str]:
    """Those that say how much memory there is."""
    return frozenset(word for word in words if re.fullmatch(r"\d+gb", word))


def _holds(card: Card, sizes: frozenset[str]) -> bool:
    """Whether all `sizes` are its own: those of its name, or what it promises."""
    return all(size in (f"{card.marked_bytes // GIB}gb", *_words(card.name)) for size in sizes)


_UNKNOWN = {
    r"amd|radeon|instinct|gfx\d+|rx \d{4} ?\w*|\d{4} ?xtx?|mi ?\d{2,3}[a-z]?|strix halo": (
        "a GPU of AMD's, and only CUDA is predicted: kernels, libraries and drivers take other memory under ROCm"
    ),
    r"apple|m[1-5] ?(pro|max|ultra)|arc|gaudi ?\d?|tpu\w*|ascend": "no GPU of NVIDIA's, and only CUDA is predicted",
    r"[pkm](4|40|60|80|100|6000)|gtx (9|10)\d0( ?ti)?|10[5-8]0( ?ti)?|titan (x|xp)": (
        "a GPU from before compute capability 7.0, whose kernels are not known here"
    ),
}
"""Of what is in no table, by the words that people use: why."""


def why_unknown(text: str) -> str | None:
    """What a GPU called so is, where that is no card of the table and the reason is known."""
    words = " ".join(re.findall(r"[a-z0-9]+", text.lower()))
    return next((why for pattern, why in _UNKNOWN.items() if re.search(rf"\b({pattern})\b", words)), None)


NUMBERS: Mapping[str, str] = {
    word: card.name for card in reversed(list(CARDS.values())) for word in _words(card.name) if word.isdigit()
}
"""Cards by the number in their name, where it stands alone: `4090`. Of several, the first."""
