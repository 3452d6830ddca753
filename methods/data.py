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

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedConfig

from vrambench.methods.batches import Batch, Batches
from vrambench.methods.device import Device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.parts import IGNORED, Inputs
from vrambench.methods.models.presets import PRESETS
from vrambench.methods.reviews import WORDS, Reviews
from vrambench.methods.workload import Workload

SUCCESSORS = (0.7, 0.2, 0.07, 0.03)
"""How likely each of a token's successors is; 0.863 nats where they differ."""
CHAIN_TOKENS = 512
"""The chain uses the first so many tokens of a vocabulary, so that a short job sees each of them often."""

MADE = ("synthetic", "reviews")
"""Data that is made here, and is no file."""
GIVE = f"give a text or .jsonl file, a data set's hub id, or {' or '.join(map(repr, MADE))}"

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
    tokens = _tokenize(documents, workload.model, config)
    largest = int(tokens.max())
    if largest >= vocabulary:
        raise ConfigurationError(
            f"data: {workload.data!r} needs token {largest}, and the model {workload.model!r} has {vocabulary}",
            field="data",
        )
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


class Ahead:
    """`source`, whose sequences for a step can be made before the step begins: they are no work of the step's. With `lengths` a
    step takes its inputs from `batched` instead.

    What was prepared is given out once, so that whoever asked for it alone holds it; what was not is made when it is asked for.
    """

    def __init__(self, source: Data, batched: Batched | None = None) -> None:
        self.source = source
        self.batched = batched
        self._prepared: dict[tuple[int, int, int], torch.Tensor] = {}
        self._inputs: dict[int, list[tuple[Batch, Inputs]]] = {}

    def prepare(self, step: int, count: int, length: int) -> None:
        """Makes what `sequences`, or `inputs`, will be asked for next, in place of whatever else was made and not asked for."""
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


def read_documents(path: Path) -> list[str]:
    """The documents of a file: one per line of a `.jsonl` file, else the whole text as one.

    A line holds `text`, or `prompt` with `completion` or `response`, and so does a row of a data set (`is_data_set`), of which the
    split `train` is read. Raises ConfigurationError with the file, line and field.
    """
    if is_data_set(path):
        return _documents_of(str(path))
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(
            f"data: {str(path)!r} cannot be read: {reason}; {GIVE}",
            field="data",
        ) from error
    if path.suffix == ".jsonl":
        lines = enumerate(content.splitlines(), start=1)
        documents = [_document(line, f"data: {str(path)!r} line {number}") for number, line in lines if line.strip()]
    else:
        documents = [content]
    if not any(document.strip() for document in documents):
        raise ConfigurationError(f"data: {str(path)!r} is empty", field="data")
    return documents


def is_data_set(path: Path) -> bool:
    """Whether `path` is like a hub id (`stanfordnlp/imdb`), and no file that is there or lacks in a folder that is."""
    like = len(path.parts) == 2 and not path.suffix and path.parts[0] not in ("/", "..", "~")
    return like and (path.is_dir() or not path.parent.exists())


def _documents_of(name: str) -> list[str]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigurationError(
            f"data: {name!r} is no file here, and a data set of the hub needs the package datasets, which is not installed",
            field="data",
        ) from error
    try:
        rows = load_dataset(name, split="train")
    except Exception as error:  # whatever the library raises, there is no such data set
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(f"data: {name!r} cannot be read: {reason}; {GIVE}", field="data") from error
    return [_joined(row, f"data: {name!r} row {number}") for number, row in enumerate(rows, start=1)]


def _document(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{where}: not JSON ({error.msg})", field="data") from error
    if not isinstance(record, dict):
        raise ConfigurationError(f"{where}: a {type(record).__name__}, not an object", field="data")
    return _joined(record, where)


def _joined(record: dict[str, Any], where: str) -> str:
    answer = "completion" if "completion" in record else "response"
    fields = ("text",) if "text" in record else ("prompt", answer)
    for field in fields:
        if field not in record:
            raise ConfigurationError(
                f"{where}: no field {field!r} (there are {', '.join(record) or 'none'}); a line needs text, or prompt "
                "with completion or response",
                field="data",
            )
        if not isinstance(record[field], str):
            raise ConfigurationError(f"{where}: {field} is a {type(record[field]).__name__}, not text", field="data")
    return "".join(record[field] for field in fields)


def _tokenize(documents: list[str], model: str, config: PreTrainedConfig) -> np.ndarray:
    """All documents in one row [N] int64, each ended by the end-of-sequence token where there is one."""
    if model in PRESETS:
        rows = [list(document.encode()) for document in documents]
        end = config.get_text_config().eos_token_id
    else:
        tokenizer = _tokenizer(model)
        rows = [tokenizer.encode(document, add_special_tokens=False) for document in documents]
        end = tokenizer.eos_token_id
    end = end[0] if isinstance(end, list) else end
    tail = [] if end is None else [end]
    return np.array([token for row in rows for token in row + tail], dtype=np.int64)


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # whatever the tokenizer libraries raise, the user has no tokenizer there
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"data: the model {model!r} has no tokenizer that can be read: {reason}", field="data"
        ) from error
