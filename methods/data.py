"""Token sequences to train on and to prompt with: a seeded process with something to learn, or a user's own text.

    data = open_data(workload, config, device)
    tokens = data.sequences(step, count, length)            # int64 [count, length] on the device

    data = Ahead(data)                                      # the same, made before they are asked for
    data.prepare(step, count, length)

    inputs = Batched(data, batches, device).of_step(step)   # with `lengths`: what the step's micro-batches are

`data: synthetic` is a Markov chain: every token has four successors, chosen with the same skewed probabilities. What is
left to guess after learning it is its entropy, `Chain.entropy`. `data: PATH` is a text file or JSON lines. Sequences
depend on the workload's seed and the step alone, never on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from transformers import PreTrainedConfig

from vrambench.methods.batches import Batch, Batches
from vrambench.methods.device import Device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.parts import IGNORED, Inputs
from vrambench.methods.reviews import WORDS, Reviews
from vrambench.methods.texts import check_known, read_documents, tokenize
from vrambench.methods.workload import Workload

SUCCESSORS = (0.7, 0.2, 0.07, 0.03)
"""How likely each of a token's successors is; 0.863 nats where they differ."""
CHAIN_TOKENS = 512
"""The chain uses the first so many tokens of a vocabulary, so that a short job sees each of them often."""

EVALUATION = 2**31
"""The step whose sequences are evaluated on: no training has so many."""


class Data(Protocol):
    """Where a job's tokens come from."""

    def sequences(self, step: int, count: int, length: int) -> torch.Tensor:
        """`count` sequences for step `step`: int64 [count, length] on the job's device; the same again for the same
        arguments."""


def open_data(workload: Workload, config: PreTrainedConfig, device: Device) -> Data:
    """What the workload's `data` names, in tokens of the model that `config` describes; shapes only on the simulated
    device.

    Raises ConfigurationError, about `data`, where a file is missing, malformed, too short for the workload's sequences,
    or in tokens that the model does not have.
    """
    if device.simulated:
        return Shapes(device.torch)
    vocabulary = config.get_text_config().vocab_size
    if workload.data == "synthetic":
        return Chain(workload.seed, min(vocabulary, CHAIN_TOKENS), device.torch)
    if workload.data == "reviews":
        if vocabulary < len(WORDS):
            raise ConfigurationError(
                f"data: reviews have {len(WORDS)} words, and the model {workload.model!r} has {vocabulary} tokens",
                field="data",
            )
        return Reviews(workload.seed, device.torch)
    documents = read_documents(Path(workload.data))
    tokens = tokenize(documents, workload.model, config)
    check_known(tokens, vocabulary, workload)
    if len(tokens) < workload.sequence_tokens:
        raise ConfigurationError(
            f"data: {workload.data!r} has {len(tokens)} tokens; one sequence takes {workload.sequence_tokens}",
            field="data",
        )
    return Text(workload.seed, tokens, device.torch)


class Batched:
    """Sequences of `source`, which makes them on the host, in `batches` on the device: as TRL's SFTTrainer collates them
    (trainer/sft_trainer.py: DataCollatorForLanguageModeling)."""

    def __init__(self, source: Data, batches: Batches, device: Device) -> None:
        self.source = source
        self.batches = batches
        self.device = device

    def of_step(self, step: int) -> list[tuple[Batch, Inputs]]:
        return self.collated(step, self.batches.of_step(step))

    def of_evaluation(self, rows: int, size: int) -> list[tuple[Batch, Inputs]]:
        """`rows` that no step trains on, in batches of `size`."""
        return self.collated(EVALUATION, self.batches.of_evaluation(EVALUATION, rows, size))

    def collated(self, step: int, batches: Sequence[Batch]) -> list[tuple[Batch, Inputs]]:
        """`batches`, and each on the device."""
        if self.device.simulated:
            return [(batch, _shapes(batch, self.device.torch)) for batch in batches]
        lengths = [length for batch in batches for row in batch.rows for length in row]
        documents = iter(self.source.sequences(step, len(lengths), max(lengths)).numpy())
        return [(batch, _collated(batch, documents, self.device.torch)) for batch in batches]


def _shapes(batch: Batch, device: torch.device) -> Inputs:
    """`batch` on a device without values."""
    tokens, labels, third = (
        torch.zeros((len(batch.rows), batch.width), dtype=torch.long, device=device) for _ in range(3)
    )
    return _inputs(batch, tokens, labels, third)


def _collated(batch: Batch, documents: Iterator[np.ndarray], device: torch.device) -> Inputs:
    """`batch` of the next of `documents`."""
    shape = len(batch.rows), batch.width
    tokens, labels = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED)
    mask, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for number, row in enumerate(batch.rows):
        end = 0
        for length in row:
            start, end = end, end + length
            tokens[number, start:end] = labels[number, start:end] = next(documents)[:length]
            positions[number, start:end] = np.arange(length)
            if batch.flat:
                labels[number, start] = IGNORED
        mask[number, :end] = 1
    made = (torch.from_numpy(one).to(device) for one in (tokens, labels, positions if batch.flat else mask))
    return _inputs(batch, *made)


def _inputs(batch: Batch, tokens: torch.Tensor, labels: torch.Tensor, third: torch.Tensor) -> Inputs:
    """`third`: the positions of a flat batch, else the mask."""
    mask, positions = (None, third) if batch.flat else (third, None)
    return Inputs(tokens, labels, mask, positions, batch.trained)


class Pairs(NamedTuple):
    """`tokens` [2N, T] int64: N chosen sequences, then the rejected ones of the same prompts. `mask` [2N, R] int64: 1 on a
    response's own tokens, of which its first is one."""

    tokens: torch.Tensor
    mask: torch.Tensor

    @property
    def halves(self) -> tuple[Pairs, Pairs]:
        """The chosen, and the rejected."""
        tokens, masks = self.tokens.chunk(2), self.mask.chunk(2)
        return Pairs(tokens[0], masks[0]), Pairs(tokens[1], masks[1])

    def split(self, size: int) -> list[Pairs]:
        """`size` pairs at a time."""
        if len(self.tokens) <= 2 * size:
            return [self]
        chosen, rejected = self.halves
        places = range(0, len(chosen.tokens), size)
        return [
            Pairs(
                *(
                    torch.cat((one[at : at + size], other[at : at + size]))
                    for one, other in zip(chosen, rejected, strict=True)
                )
            )
            for at in places
        ]


class PairSource(Protocol):
    """Where a job's pairs come from. `filler`: the token behind responses that are shorter than others, -1 where none are."""

    @property
    def filler(self) -> int: ...

    def pairs(self, step: int, count: int) -> Pairs:
        """`count` pairs for step `step`, on the job's device; the same again for the same arguments."""


class Ahead:
    """`source`, whose sequences for a step can be made before the step begins: they are no work of the step's. With `lengths` a
    step takes its inputs from `batched` instead, and an algorithm that learns from pairs those of `paired`.

    What was prepared is given out once, so that whoever asked for it alone holds it; what was not is made when it is asked for.
    """

    def __init__(self, source: Data, batched: Batched | None = None, paired: PairSource | None = None) -> None:
        self.source = source
        self.batched = batched
        self.paired = paired
        self._prepared: dict[tuple[int, int, int], torch.Tensor] = {}
        self._inputs: dict[int, list[tuple[Batch, Inputs]]] = {}
        self._pairs: dict[tuple[int, int], Pairs] = {}

    def prepare(self, step: int, count: int, length: int) -> None:
        """Makes what `sequences`, `inputs` or `pairs` will be asked for next, in place of whatever was made and not asked for."""
        if self.paired:
            self._pairs = {(step, count // 2): self.paired.pairs(step, count // 2)}
            return
        if self.batched:
            self._inputs = {}
            self._inputs = {step: self.batched.of_step(step)}
            return
        self._prepared = {(step, count, length): self.source.sequences(step, count, length)}

    def sequences(self, step: int, count: int, length: int) -> torch.Tensor:
        prepared = self._prepared.pop((step, count, length), None)
        return self.source.sequences(step, count, length) if prepared is None else prepared

    def inputs(self, step: int) -> list[tuple[Batch, Inputs]]:
        """The micro-batches of a step, of several lengths."""
        assert self.batched is not None
        prepared = self._inputs.pop(step, None)
        return self.batched.of_step(step) if prepared is None else prepared

    def pairs(self, step: int, count: int) -> Pairs:
        """`count` pairs for a step."""
        assert self.paired is not None
        prepared = self._pairs.pop((step, count), None)
        return self.paired.pairs(step, count) if prepared is None else prepared

    def evaluated(self, rows: int, size: int) -> list[tuple[Batch, Inputs]]:
        """`rows` of several lengths that no step trains on, in batches of `size`."""
        assert self.batched is not None
        return self.batched.of_evaluation(rows, size)


@dataclass(frozen=True)
class Shapes:
    """Sequences on a device without values."""

    device: torch.device

    def sequences(self, step: int, count: int, length: int) -> torch.Tensor:
        return torch.zeros((count, length), dtype=torch.long, device=self.device)


class Chain:
    """A Markov chain over `tokens` tokens, drawn from `seed`.

    Successor j of every token is given by a permutation, so all tokens are equally frequent and the first one of a
    sequence is drawn uniformly; the loss of a perfect model is then exactly `entropy` at every predicted position.
    """

    def __init__(self, seed: int, tokens: int, device: torch.device) -> None:
        self.seed = seed
        self.tokens = tokens
        self.device = device
        random = np.random.default_rng([seed, 0])
        self.successors = np.stack([random.permutation(tokens) for _ in SUCCESSORS])

    @property
    def entropy(self) -> float:
        """Nats per token, given the token before: the mean over tokens of -sum p log p of their next one."""
        table = np.zeros((self.tokens, self.tokens))
        for probability, permutation in zip(SUCCESSORS, self.successors, strict=True):
            np.add.at(table, (np.arange(self.tokens), permutation), probability)
        used = table[table > 0]
        return float(-(used * np.log(used)).sum() / self.tokens)

    def sequences(self, step: int, count: int, length: int) -> torch.Tensor:
        random = np.random.default_rng([self.seed, 1, step])
        out = np.empty((count, length), dtype=np.int64)
        out[:, 0] = random.integers(self.tokens, size=count)
        choices = np.searchsorted(np.cumsum(SUCCESSORS)[:-1], random.random((length, count)), side="right")
        for position in range(1, length):
            out[:, position] = self.successors[choices[position], out[:, position - 1]]
        return torch.from_numpy(out).to(self.device)


class Text:
    """Windows of one long row of tokens [N] int64, at positions drawn from `seed` and the step."""

    def __init__(self, seed: int, tokens: np.ndarray, device: torch.device) -> None:
        self.seed = seed
        self.tokens = tokens
        self.device = device

    def sequences(self, step: int, count: int, length: int) -> torch.Tensor:
        """Raises ValueError where `length` is more than the whole text."""
        starts = np.random.default_rng([self.seed, 1, step]).integers(len(self.tokens) - length + 1, size=count)
        windows = self.tokens[starts[:, None] + np.arange(length)]
        return torch.from_numpy(windows).to(self.device)
