"""Batches of sequences of several lengths: how they are drawn, and what rows are made of them.

    batches = Batches(workload)
    batches.of_step(3)                              the micro-batches of step 3: (Batch(rows=((256,), (1024,)), width=1024), ...)
    batches.worst, batches.usual                    those that may take the most memory, and one as most are

Source: TRL 1.12, data_utils.py (pack_dataset) and trainer/sft_trainer.py (DataCollatorForLanguageModeling). A dataset is packed
1,000 sequences at a time (datasets' map), so packs are made of so many here.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from vrambench.methods.lengths import SHORTEST, truncated
from vrambench.methods.workload import Workload

POOLED = 1000
"""Sequences that are packed together: datasets' map takes so many at a time."""
SAMPLED = 201
"""Batches of which the usual one is the middle one."""

Kind = Literal["drawn", "usual", "worst"]
Row = tuple[int, ...]
"""The tokens of each document in it."""


@dataclass(frozen=True)
class Batch:
    """`rows` of `width` tokens each, as the model is given them; what documents leave of a row is padding at its end. `flat`: there
    is one row, whose documents are kept apart by their positions, and no mask."""

    rows: tuple[Row, ...]
    width: int
    flat: bool = False

    @property
    def tokens(self) -> int:
        """Without padding."""
        return sum(map(sum, self.rows))

    @property
    def full(self) -> bool:
        """Without any padding."""
        return self.tokens == len(self.rows) * self.width

    @property
    def trained(self) -> int:
        """Tokens that are predicted: all but the first of each document."""
        return sum(length - 1 for row in self.rows for length in row)

    @property
    def documents(self) -> Row:
        """Of a flat batch, by their positions: padding is at position 0, so that each token of it is one of its own."""
        (row,) = self.rows
        return (*row, *(1,) * (self.width - sum(row)))


class Batches:
    """The batches of a workload with `lengths`. `order`: what the first steps have, on the simulated device; else all that warm up
    or are timed have drawn ones. Each step after those has the next of the worst."""

    def __init__(self, workload: Workload, order: Sequence[Kind] = ()) -> None:
        assert workload.lengths is not None
        assert workload.max_length is not None
        self._work = workload
        self._order = tuple(order) or ("drawn",) * (workload.warmup_steps + workload.steps)
        self._limit = workload.max_length
        whole = workload.packing in ("bfd_split", "wrapped")
        cut = workload.lengths if whole else truncated(workload.lengths, self._limit)
        self._lengths = np.array(sorted(cut))
        shares = np.array([cut[length] for length in sorted(cut)])
        self._shares = shares / shares.sum()

    def of_step(self, step: int) -> tuple[Batch, ...]:
        """A step's micro-batches, of which the last is the worst where the step has one."""
        size, count = self._work.batch_size, self._work.gradient_accumulation_steps
        kind = self._order[step] if step < len(self._order) else "worst"
        if kind == "usual":
            return (self.usual,) * count
        drawn = self._drawn(step, count * size, size)
        if kind == "drawn":
            return drawn
        number = self._order[:step].count("worst") + max(0, step - len(self._order))
        return (*drawn[:-1], self.worst[number % len(self.worst)])

    def of_evaluation(self, step: int, rows: int, size: int) -> tuple[Batch, ...]:
        """`rows` drawn as for a step, in batches of `size`; the last that has so many is the worst of them."""
        drawn = list(self._drawn(step, rows, size))
        drawn[max(0, rows // size - 1)] = self._worst(min(rows, size))[0]
        return tuple(drawn)

    def _drawn(self, step: int, rows: int, size: int) -> tuple[Batch, ...]:
        made = self._rows(np.random.default_rng([self._work.seed, 2, step]), rows)
        return tuple(self._batch(made[start : start + size]) for start in range(0, rows, size))

    @cached_property
    def usual(self) -> Batch:
        """The middle one of many, by its size."""
        size = self._work.batch_size
        made = self._rows(np.random.default_rng([self._work.seed, 3]), SAMPLED * size)
        drawn = [self._batch(made[start : start + size]) for start in range(0, len(made), size)]
        return sorted(drawn, key=lambda batch: (len(batch.rows) * batch.width, batch.tokens))[SAMPLED // 2]

    @cached_property
    def worst(self) -> tuple[Batch, ...]:
        """Of the largest batches, those of which one takes the most memory: where it can be, with the least padding, which takes a
        mask, and without."""
        return self._worst(self._work.batch_size)

    def _worst(self, size: int) -> tuple[Batch, ...]:
        longest = max(self._population, key=lambda row: (sum(row), len(row)))
        shorter = [row for row in self._population if sum(row) < sum(longest)]
        full = self._batch([longest] * size)
        if not shorter or size == 1 or self._work.one_row:
            return (full,)
        return self._batch([longest] * (size - 1) + [max(shorter, key=sum)]), full

    @property
    def worst_share(self) -> float:
        """Of all batches, how many are as large as the worst: those with one row that is longest or, flat, with such rows alone."""
        longest = max(map(sum, self._population))
        share = sum(share for row, share in self._population.items() if sum(row) == longest)
        size = self._work.batch_size
        return float(share**size if self._work.one_row else 1 - (1 - share) ** size)

    @cached_property
    def _population(self) -> Mapping[Row, float]:
        """Rows that there are, with their shares: of sequences, or of the packs of some thousand."""
        if self._work.packing == "none":
            return {
                (length,): share for length, share in zip(self._lengths.tolist(), self._shares.tolist(), strict=True)
            }
        random = np.random.default_rng([self._work.seed, 4])
        rows = [row for _ in range(10) for row in self._packed(random)]
        return {row: count / len(rows) for row, count in Counter(rows).items()}

    def _rows(self, random: np.random.Generator, count: int) -> list[Row]:
        if self._work.packing == "none":
            return [(int(length),) for length in random.choice(self._lengths, count, p=self._shares)]
        rows: list[Row] = []
        while len(rows) < count:
            rows += self._packed(random)
        return [rows[place] for place in random.permutation(len(rows))[:count]]

    def _packed(self, random: np.random.Generator) -> list[Row]:
        drawn = random.choice(self._lengths, POOLED, p=self._shares).tolist()
        if self._work.packing == "wrapped":
            return wrapped(drawn, self._limit)
        return best_fit_decreasing(split(drawn, self._limit), self._limit)

    def _batch(self, rows: Sequence[Row]) -> Batch:
        if self._work.one_row:
            row = tuple(length for row in rows for length in row)
            return Batch((row,), self._work.padded(sum(row)), flat=True)
        return Batch(tuple(rows), self._work.padded(max(map(sum, rows))))


def best_fit_decreasing(lengths: Iterable[int], limit: int) -> list[Row]:
    """Packs of at most `limit` tokens: each length, longest first, goes where it leaves the least room (`_pack_bfd`)."""
    packs: list[list[int]] = []
    spaces: list[int] = []
    with_space: defaultdict[int, deque[list[int]]] = defaultdict(deque)
    for length in sorted(lengths, reverse=True):
        place = bisect_left(spaces, length)
        if place == len(spaces):
            space = limit
            packs.append([])
            pack = packs[-1]
        else:
            space = spaces.pop(place)
            pack = with_space[space].popleft()
        pack.append(length)
        if space > length:
            insort(spaces, space - length)
            with_space[space - length].append(pack)
    return [tuple(pack) for pack in packs]


def split(lengths: Iterable[int], limit: int) -> list[int]:
    """Pieces of `limit` tokens, and what is left at the end of each length (`_pack_bfd`, on_seq_length_overflow="split"). Of bfd
    none is longer, since it truncates them."""
    return [min(limit, length - start) for length in lengths for start in range(0, length, limit)]


def wrapped(lengths: Iterable[int], limit: int) -> list[Row]:
    """All tokens in rows of `limit`, wherever documents end (`_pack_wrapped`); the last one is shorter."""
    full, rest = divmod(sum(lengths), limit)
    rows: list[Row] = [(limit,)] * full
    return [*rows, (rest,)] if rest >= SHORTEST else rows
