"""Amounts of memory as people write them: `24GiB`, `24G`, `16 GB`, or a card's name for what it offers to a process.

parse_size("rtx-4090")          25383061422
"""

from __future__ import annotations

import re
from collections.abc import Collection

from vrambench.methods.called import NUMBERS, cards_called, why_unknown
from vrambench.methods.cards import CAPACITIES, DRIVERS_SHARE, GIB
from vrambench.methods.errors import NEAREST, did_you_mean, most_alike, nearest, shown

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "t": 2**40,
}
"""One letter alone is a power of two, as Docker, Slurm and the JVM read it."""


SMALLEST = 2**17
"""No job holds fewer bytes: a number below it is one whose unit was forgotten, the MiB of 128 GiB at most."""


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")


def parse_size(value: object) -> int:
    """Bytes of `24GiB`, `24G`, `16 GB`, a plain number of bytes, or a card, whatever people call it (its usable capacity). Raises
    ValueError."""
    card_bytes = _card_bytes(value) if isinstance(value, str) and not _has_unit(value) else None
    if card_bytes is not None:
        return card_bytes
    near = most_alike(str(value), CAPACITIES) or list(CAPACITIES)[:NEAREST]
    return _bytes(value, f"24GiB, 16GB or a card: {', '.join(near)} (vrambench list cards tells all)", CAPACITIES)


def parse_amount(value: object) -> int:
    """Bytes of `512MiB`, `2 GB` or a plain number of bytes: as `parse_size`, and a card is none. Raises ValueError."""
    return _bytes(value, "512MiB or 2GB")


def parse_part(value: object, whole_bytes: int) -> int:
    """Bytes of `6GiB`, as `parse_amount`, or of `30%`, a share of a whole of so many bytes. Raises ValueError."""
    if isinstance(value, str) and (match := _SHARE.fullmatch(value)):
        if not 0 < float(match[1]) <= 100:
            raise ValueError(f"{shown(value)} is no share; write 6GiB, or up to 100%")
        return int(whole_bytes * float(match[1]) / 100)
    if isinstance(value, float) and 0 < value < 1:
        raise ValueError(f"{value} is not a size; write 6GiB or 30%; did you mean '{100 * value:g}%'?")
    return _bytes(value, "6GiB or 30%")


def _has_unit(text: str) -> bool:
    match = _SIZE.fullmatch(text)
    return bool(match and match[2] and match[2].lower() in UNITS)


def _card_bytes(text: str) -> int | None:
    """What the card that is called so offers; None where none is."""
    called = cards_called(text)
    if len(called) > 1:
        raise ValueError(f"{shown(text)} may be {' or '.join(card.name for card in called)}")
    for card in called:
        if card.usable_bytes is None:
            raise ValueError(
                f"{shown(text)} is a card of {card.marked_bytes // GIB} GB, of which a process gets less; how much is not known "
                f"here: write it, as in {int((1 - DRIVERS_SHARE) * card.marked_bytes / GIB)}GiB (PyTorch's out-of-memory message "
                "gives it as total capacity)"
            )
        return card.usable_bytes
    why = why_unknown(text)
    if why and not text.strip().isdigit():
        raise ValueError(f"{shown(text)} is {why}; a size, as in 24GiB, asks for a job under CUDA on an Ampere GPU")
    return None


def _bytes(value: object, forms: str, cards: Collection[str] = ()) -> int:
    """Bytes of a number and its unit. `forms`: what may be written, `cards`: which of them are cards."""
    unlike = f"{shown(value)} is not a size; write {forms}"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(unlike)
    unit, size = "", 0.0
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if not match or match[2].lower() not in UNITS:
            raise ValueError(unlike + (did_you_mean(value, cards) or _meant(value)))
        unit = match[2].lower()
        size = float(match[1]) * UNITS[unit]
    else:
        size = float(value)
    if unit == "" and 1 <= size < SMALLEST:
        meant = nearest(str(value), NUMBERS) if cards else None
        hint = f"; did you mean {NUMBERS[meant]!r}?" if meant else ""
        raise ValueError(f"{shown(value)} would be bytes; write its unit, as in 24GiB{hint}")
    if not SMALLEST <= size < 2**60:
        raise ValueError(f"{shown(value)} is not a size of at least 128 KiB and less than 1 EiB")
    return int(size)


def _meant(text: str) -> str:
    """Of what is no size, the one that it begins like: `-24GiB`, `24 G B`, `1GBi`, `24XB`."""
    begun = re.match(r"[^a-z0-9]*(\d+(?:\.\d+)?)\s*([kmgt])?", text.lower())
    if not begun or re.search(r"\de[+-]?\d", text.lower()) or (begun[2] not in ("k", "m") and float(begun[1]) >= 1024):
        return ""
    return f"; did you mean '{begun[1]}{(begun[2] or 'g').upper()}iB'?"
