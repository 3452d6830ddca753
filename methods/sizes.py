"""Amounts of memory as people write them: `24GiB`, `24G`, `16 GB`, or a card's name for what it offers to a process.

parse_size("rtx-4090")          25383061422
"""

from __future__ import annotations

import re

from vrambench.methods.called import NUMBERS, cards_called, why_unknown
from vrambench.methods.cards import CAPACITIES, DRIVERS_SHARE, GIB
from vrambench.methods.errors import did_you_mean, nearest, shown

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


def parse_size(value: object) -> int:
    """Bytes of `24GiB`, `24G`, `16 GB`, a plain number of bytes, or a card, whatever people call it (its usable capacity)."""
    unlike = f"{shown(value)} is not a size; write 24GiB, 16GB or a card: {', '.join(CAPACITIES)}"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(unlike)
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", value.lower())
        called = () if match and match[2] and match[2] in UNITS else cards_called(value)
        if len(called) > 1:
            raise ValueError(f"{shown(value)} may be {' or '.join(card.name for card in called)}")
        for card in called:
            if card.usable_bytes is not None:
                return card.usable_bytes
            raise ValueError(
                f"{shown(value)} is a card of {card.marked_bytes // GIB} GB, of which a process gets less; how much is not known "
                f"here: write it, as in {int((1 - DRIVERS_SHARE) * card.marked_bytes / GIB)}GiB (PyTorch's out-of-memory message "
                "gives it as total capacity)"
            )
        why = why_unknown(value)
        if why and not (match and match[2] in UNITS):
            raise ValueError(
                f"{shown(value)} is {why}; a size, as in 24GiB, asks for a job under CUDA on an Ampere GPU"
            )
        if not match or match[2] not in UNITS:
            raise ValueError(unlike + (did_you_mean(value, CAPACITIES) or _meant(value)))
        unit = match[2]
        size = float(match[1]) * UNITS[unit]
    else:
        unit, size = "", float(value)
    if unit == "" and 1 <= size < SMALLEST:
        meant = nearest(str(value), NUMBERS)
        hint = f"; did you mean {NUMBERS[meant]!r}?" if meant else ""
        raise ValueError(f"{shown(value)} would be bytes; write its unit, as in 24GiB{hint}")
    if not SMALLEST <= size < 2**60:
        raise ValueError(f"{shown(value)} is not a size of at least 128 KiB and less than 1 EiB")
    return int(size)


def _meant(text: str) -> str:
    """Of what is no size, the one that it begins like: `-24GiB`, `24 G B`, `1GBi`, `24XB`."""
    begun = re.match(r"[^a-z0-9]*(\d+(?:\.\d+)?)\s*([kmgt])?", text.lower())
    if not begun or (begun[2] not in ("k", "m") and float(begun[1]) >= 1024):
        return ""
    return f"; did you mean '{begun[1]}{(begun[2] or 'g').upper()}iB'?"
