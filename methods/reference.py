"""The frozen policy of before a run, whose log-probabilities algorithms compare with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vrambench.methods.device import Device
from vrambench.methods.models.policy import Policy
from vrambench.methods.offload.learner import Learner


@dataclass(frozen=True)
class Reference:
    """Frozen log-probabilities: `policy` with its adapter off, or a frozen copy of the first policy."""

    learner: Learner
    copy: Policy | None
    batch_size: int
    device: Device

    def logprobs(self, tokens: torch.Tensor, start: int, temperature: float | None = 1.0) -> torch.Tensor:
        """[B, T - start] fp32, for tokens [B, T], in batches of `batch_size` sequences."""
        policy: Any = self.copy or self.learner.module
        with self.learner.forward():
            if self.copy is not None:
                return self._scored(policy, tokens, start, temperature)
            with policy.model.disable_adapter():
                return self._scored(policy, tokens, start, temperature)

    def _scored(self, policy: Any, tokens: torch.Tensor, start: int, temperature: float | None) -> torch.Tensor:
        batches = tokens.split(self.batch_size)
        return torch.cat(self.device.map_alike(lambda batch: policy(batch, start, temperature).logprobs, batches))
