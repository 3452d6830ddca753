"""Evaluation as transformers' Trainer does it: what its batches leave on the device, and when that goes to the host.

    losses = evaluate(learner.module, batches, predict, accumulation, device)

Source: transformers 5.23, trainer.py (evaluation_loop) and trainer_pt_utils.py (EvalLoopContainer, nested_concat). What TRL's
SFTTrainer adds, the entropy of a batch's logits, comes after the loss, whose copies in fp32 are gone: it takes less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from vrambench.methods.device import Device
from vrambench.methods.models.parts import IGNORED

Item = TypeVar("Item")


class Predicted(NamedTuple):
    """Of one batch: its mean `loss`, and `logits` [B,T,V] and `labels` [B,T] where they are kept."""

    loss: torch.Tensor
    logits: torch.Tensor | None = None
    labels: torch.Tensor | None = None


class Kept:
    """What an evaluation keeps of its batches, one after the other in the first dimension: in `held` on the device, else on the
    host."""

    def __init__(self) -> None:
        self.held: torch.Tensor | None = None
        self._on_host: torch.Tensor | None = None

    def add(self, more: torch.Tensor | None) -> None:
        if more is not None:
            self.held = more if self.held is None else joined(self.held, more)

    def to_host(self) -> None:
        """What is held goes to the host, in a type that NumPy has."""
        if self.held is None:
            return
        if not self.held.is_meta:
            moved = self.held.cpu()
            moved = moved.float() if moved.dtype == torch.bfloat16 else moved
            self._on_host = moved if self._on_host is None else joined(self._on_host, moved)
        self.held = None


def joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Both in one tensor, `second` below `first`, with IGNORED where one is longer than the other."""
    if first.dim() == 1 or first.shape[1] == second.shape[1]:
        return torch.cat((first, second))
    longest = max(first.shape[1], second.shape[1])
    whole = first.new_full((len(first) + len(second), longest, *first.shape[2:]), IGNORED)
    whole[: len(first), : first.shape[1]] = first
    whole[len(first) :, : second.shape[1]] = second
    return whole


def evaluate(
    module: Any,
    batches: Sequence[Item],
    predict: Callable[[Item], Predicted],
    accumulation: int | None,
    device: Device,
    *,
    rows: Callable[[Item], int],
) -> torch.Tensor:
    """The mean loss of `batches`, each of which `predict` is called with, `module` in eval mode; `rows`: how many a batch has.
    What is kept goes to the host after every `accumulation` batches, and cached memory back to the driver; without, it stays to
    the end."""
    losses, kept_logits, kept_labels = Kept(), Kept(), Kept()
    mean = []
    module.eval()
    for number, batch in enumerate(batches, 1):
        # The last batch's logits are held by their name until the next one's are there, as the Trainer does.
        loss, logits, labels = predict(batch)
        mean.append(loss)
        losses.add(loss.repeat(rows(batch)))
        kept_logits.add(logits)
        kept_labels.add(labels)
        if accumulation is not None and number % accumulation == 0:
            for kept in (losses, kept_logits, kept_labels):
                kept.to_host()
            del loss, logits, labels
            device.empty_cache()
    for kept in (losses, kept_logits, kept_labels):
        kept.to_host()
    module.train()
    return torch.stack(mean).mean()
