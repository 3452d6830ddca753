"""What TRL's trainers are given to train on: the job's token ids, in words of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from vrambench.methods.algorithms import Stage


def tokenizer(vocabulary: int, padding: int, *, ends: bool) -> Any:
    """A word `w12` for token 12, and so on; `<pad>` for `padding`. What `ends` a text is no token of the model's; else nothing is,
    so that TRL, which ends responses of pairs that have no end, adds nothing to them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    class Words(PreTrainedTokenizerFast):
        eos_token = "<eos>" if ends else ""
        eos_token_id = vocabulary if ends else None

    words = {f"w{token}": token for token in range(vocabulary) if token != padding}
    words |= {"<eos>": vocabulary, "<pad>": padding if padding >= 0 else vocabulary + 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return Words(tokenizer_object=tokenizer, pad_token="<pad>")


def texts(rows: Iterable[torch.Tensor], padding: int = -1) -> list[str]:
    """In the words of `tokenizer`."""
    return [" ".join("<pad>" if token == padding else f"w{token}" for token in row.tolist()) for row in rows]


def sequences(stage: Stage, index: int, count: int) -> dict[str, list[Any]]:
    return {"input_ids": stage.data.sequences(index, count, stage.workload.sequence_tokens).tolist()}


def padding_of(stage: Stage) -> int:
    """The token behind responses that are shorter than others; -1 where none are."""
    return stage.data.paired.filler if stage.data.paired else -1


def prompts(stage: Stage, index: int, count: int) -> dict[str, list[Any]]:
    return {"prompt": texts(stage.data.sequences(index, count, stage.workload.prompt_tokens))}


def pairs(stage: Stage, index: int, count: int) -> dict[str, list[Any]]:
    """Responses without what fills them up."""
    start, padding = stage.workload.prompt_tokens, padding_of(stage)
    rows: dict[str, list[Any]] = {}
    for name, half in zip(("chosen", "rejected"), stage.data.pairs(index, count).halves, strict=True):
        rows["prompt"] = texts(half.tokens[:, :start], padding)
        own = [row[: int(mask.sum())] for row, mask in zip(half.tokens[:, start:], half.mask, strict=True)]
        rows[name] = [f" {text}" for text in texts(own, padding)]
    return rows
