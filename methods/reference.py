"""The frozen policy of before a run, whose log-probabilities algorithms compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from vrambench.methods.device import Device
from vrambench.methods.models.policy import Policy, Scores
from vrambench.methods.offload.learner import Learner


@dataclass(frozen=True)
class Reference:
    """Frozen log-probabilities: `policy` with its adapter off, or a frozen copy of the first policy. `cast_whole`: autocast keeps
    its casts of the copy's weights until a pass is over, as it does of weights that are not frozen, such as TRL's reference."""

    learner: Learner
    copy: Policy | None
    batch_size: int
    device: Device
    cast_whole: bool = False
    here: Callable[[], AbstractContextManager[None]] = nullcontext
    """The context in which the copy is on the device."""

    def logprobs(self, tokens: torch.Tensor, start: int, temperature: float | None = 1.0) -> torch.Tensor:
        """[B, T - start] fp32, for tokens [B, T], in batches of `batch_size` sequences."""
        batches = tokens.split(self.batch_size)
        with self._at_work() as policy:
            return torch.cat(self.device.map_alike(lambda batch: policy(batch, start, temperature).logprobs, batches))

    def scores(self, tokens: torch.Tensor, start: int) -> Scores:
        """Of tokens [B, T], at once and without temperature."""
        with self._at_work() as policy:
            scores: Scores = policy(tokens, start, None)
        return scores

    @contextmanager
    def _at_work(self) -> Iterator[Any]:
        policy: Any = self.copy or self.learner.module
        base = nullcontext() if self.copy is not None else policy.model.disable_adapter()
        with self.here(), self.learner.forward(), base:
            if not self.cast_whole:
                yield policy
                return
            policy.requires_grad_(True)
            yield policy
            policy.requires_grad_(False)
