"""Pairs to learn a preference from: one prompt, with a response that is chosen and one that is rejected.

    source = open_pairs(workload, config, device)
    pairs = source.pairs(step, count)              # pairs.tokens [2 count, T]: the chosen first, then the rejected

`data: synthetic`: the chosen response goes on with the Markov chain of data.py, and the tokens of the rejected one are any of the
second half of the chain's. `data: PATH.jsonl`: lines with `prompt`, `chosen` and `rejected`. A prompt has `prompt_tokens` tokens
and a response `response_tokens`: of a longer prompt the last ones, of a longer response the first; what is shorter is filled up
with the end-of-sequence token, a prompt before its first token and a response behind its last, and what fills a response does not
count. Pairs depend on the workload's seed and the step alone, never on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedConfig

from vrambench.methods.data import CHAIN_TOKENS, Chain, Pairs, PairSource
from vrambench.methods.device import Device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.texts import Encoder, check_known, read_records, texts_of
from vrambench.methods.workload import Workload

FIELDS = ("prompt", "chosen", "rejected")


def open_pairs(workload: Workload, config: PreTrainedConfig, device: Device) -> PairSource:
    """What the workload's `data` names, in tokens of the model that `config` describes; shapes only on the simulated device.

    Raises ConfigurationError, about `data`, where a file is missing, malformed, or in tokens that the model does not have.
    """
    if device.simulated:
        return PairShapes(workload, device.torch)
    vocabulary = config.get_text_config().vocab_size
    if workload.data == "synthetic":
        return ChainPairs(workload, min(vocabulary, CHAIN_TOKENS), device.torch)
    encoder = Encoder(workload.model, config)
    rows = [_row([encoder.encode(text) for text in texts], encoder.end, workload) for texts in read_pairs(workload)]
    tokens, masks = (np.stack(part) for part in zip(*rows, strict=True))
    check_known(tokens, vocabulary, workload)
    return TextPairs(workload.seed, tokens, masks, encoder.end or 0, device.torch)


@dataclass(frozen=True)
class PairShapes:
    """Pairs on a device without values."""

    workload: Workload
    device: torch.device
    filler: int = -1

    def pairs(self, step: int, count: int) -> Pairs:
        tokens = (
            torch.zeros((2 * count, length), dtype=torch.long, device=self.device)
            for length in (self.workload.sequence_tokens, self.workload.response_tokens)
        )
        return Pairs(*tokens)


class ChainPairs:
    """The Markov chain, which the rejected responses leave with their first token."""

    filler = -1

    def __init__(self, workload: Workload, tokens: int, device: torch.device) -> None:
        self.workload = workload
        self.chain = Chain(workload.seed, tokens, torch.device("cpu"))
        self.device = device

    def pairs(self, step: int, count: int) -> Pairs:
        work = self.workload
        chosen = self.chain.sequences(step, count, work.sequence_tokens).numpy()
        rejected = chosen.copy()
        random = np.random.default_rng([work.seed, 5, step])
        drawn = random.integers(self.chain.tokens // 2, self.chain.tokens, size=(count, work.response_tokens))
        rejected[:, work.prompt_tokens :] = drawn
        tokens, mask = np.concatenate((chosen, rejected)), np.ones((2 * count, work.response_tokens), dtype=np.int64)
        return _on_device(tokens, mask, self.device)


class TextPairs:
    """A file's pairs, drawn from `seed` and the step: `tokens` [M, 2, T] and `masks` [M, 2, R], the chosen first."""

    def __init__(self, seed: int, tokens: np.ndarray, masks: np.ndarray, filler: int, device: torch.device) -> None:
        self.filler = filler
        self.seed = seed
        self.tokens = tokens
        self.masks = masks
        self.device = device

    def pairs(self, step: int, count: int) -> Pairs:
        drawn = np.random.default_rng([self.seed, 1, step]).integers(len(self.tokens), size=count)
        tokens, mask = (np.concatenate((part[drawn, 0], part[drawn, 1])) for part in (self.tokens, self.masks))
        return _on_device(tokens, mask, self.device)


def _on_device(tokens: np.ndarray, mask: np.ndarray, device: torch.device) -> Pairs:
    return Pairs(torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device))


def read_pairs(workload: Workload) -> list[tuple[str, ...]]:
    """Prompt, chosen and rejected text of each line of the file that `data` names. Raises ConfigurationError with the line and the
    field."""
    path = Path(workload.data)
    if path.suffix != ".jsonl":
        raise ConfigurationError(
            f"data: {workload.data!r} is no .jsonl file, and pairs are lines with prompt, chosen and rejected; or take 'synthetic'",
            field="data",
        )
    return [texts_of(record, FIELDS, where, ", ".join(FIELDS)) for where, record in read_records(path)]


def _row(texts: list[list[int]], end: int | None, workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [2, T] and mask [2, R] of one pair, from the tokens of its three texts."""
    prompt_tokens, response_tokens = workload.prompt_tokens, workload.response_tokens
    filler, tail = end or 0, [] if end is None else [end]
    prompt, *responses = texts
    prompt = prompt[-prompt_tokens:]
    begin = [filler] * (prompt_tokens - len(prompt)) + prompt
    rows, masks = [], []
    for response in responses:
        own = (response + tail)[:response_tokens] or [filler]
        lacking = response_tokens - len(own)
        rows.append(begin + own + [filler] * lacking)
        masks.append([1] * len(own) + [0] * lacking)
    return np.array(rows, dtype=np.int64), np.array(masks, dtype=np.int64)
