"""What of a card's memory lies outside PyTorch's allocator, and the hardware facts that operators' workspaces depend on.

In: a card of `vrambench.methods.cards`, or None where the target is only a number of bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from vrambench.methods.cards import CARDS, Card

STAND_IN = CARDS["rtx-3090"]
"""Whose hardware stands for that of a card nobody named: the most common one of 24 GB."""

# Of the CUDA programming guide, table of technical specifications per compute capability: threads that a multiprocessor
# holds, and bytes of shared memory that a block may ask for.
_PER_MULTIPROCESSOR: dict[tuple[int, int], tuple[int, int]] = {
    (7, 0): (2048, 96 * 1024),
    (7, 5): (1024, 64 * 1024),
    (8, 0): (2048, 163 * 1024),
    (8, 6): (1536, 99 * 1024),
    (8, 9): (1536, 99 * 1024),
    (9, 0): (2048, 227 * 1024),
    (10, 0): (2048, 227 * 1024),
    (12, 0): (1536, 99 * 1024),
    (12, 1): (1536, 99 * 1024),
}


@dataclass(frozen=True)
class Hardware:
    """What of a GPU decides the workspaces of operators on it. Shared memory in bytes per block."""

    capability: tuple[int, int]
    multiprocessors: int
    threads_per_multiprocessor: int
    shared_memory_bytes: int


class Outside(NamedTuple):
    """Bytes outside the allocator at the end of a job: lowest, expected, highest, and in one sentence why."""

    low_bytes: int
    expected_bytes: int
    high_bytes: int
    reason: str


def card_like(capability: tuple[int, int], total_bytes: int) -> Card | None:
    """The known card that a GPU of this compute capability and memory is: the nearest within a tenth of its bytes."""
    alike = [
        card
        for card in CARDS.values()
        if card.capability == capability and abs(card.marked_bytes - total_bytes) < total_bytes / 10
    ]
    return min(alike, key=lambda card: abs(card.marked_bytes - total_bytes), default=None)


def card_described(gpu: Mapping[str, Any] | None) -> Card | None:
    """The known card that the `gpu` of a result's environment is."""
    if not gpu or not gpu.get("total_bytes") or not gpu.get("compute_capability"):
        return None
    major, minor = gpu["compute_capability"].split(".")
    return card_like((int(major), int(minor)), gpu["total_bytes"])


def card_here() -> Card | None:
    """The known card that torch's first GPU is; initialises CUDA."""
    return card_like(torch.cuda.get_device_capability(0), torch.cuda.get_device_properties(0).total_memory)


def hardware(card: Card | None) -> Hardware:
    """Of `card`; of an RTX 3090 where there is none."""
    card = card or STAND_IN
    return Hardware(card.capability, card.multiprocessors, *_PER_MULTIPROCESSOR[card.capability])


def outside_allocator(card: Card | None, library_bytes: int = 0) -> Outside:
    """What a job on `card` is expected to hold outside PyTorch's allocator: its context, loaded kernels and libraries, of which
    `library_bytes` are those that not every job loads.

    Where nothing is known of the card itself, the interval over the known cards, those of its size if there are any,
    and never less than the card's bare context; expected is the middle.
    """
    if card is not None and card.outside_bytes is not None:
        return _outside(card, [card], f"seen at the end of real jobs on cards like the {card.name}", library_bytes)
    known = [other for other in CARDS.values() if other.outside_bytes is not None]
    if card is None:
        reason = "the middle of what was seen on all cards with known figures, since no card is named"
        return _outside(None, known, reason, library_bytes)
    alike = [other for other in known if other.marked_bytes == card.marked_bytes]
    which = f"on other cards of {card.marked_bytes / 2**30:.0f} GiB" if alike else "on other cards"
    reason = f"the middle of what was seen {which}, since no figure is known for the {card.name}"
    return _outside(card, alike or known, reason, library_bytes)


def _outside(card: Card | None, known: Iterable[Card], reason: str, library_bytes: int) -> Outside:
    seen = [found.outside_bytes for found in known if found.outside_bytes is not None]
    low = max(min(pair[0] for pair in seen), (card.context_bytes or 0) if card else 0)
    high = max(low, *(pair[1] for pair in seen))
    if library_bytes:
        reason += f"; {library_bytes / 2**20:.0f} MiB of them are libraries of this cell's values"
        low, high = low + library_bytes, high + library_bytes
    return Outside(low, (low + high) // 2, high, reason)
