"""Axis `algorithm`: what one training step does. Each algorithm is one file that can be read alone, beside its paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from vrambench.methods.registry import AxisValue, Registry

if TYPE_CHECKING:
    from vrambench.methods.job import Job

Metrics = dict[str, torch.Tensor]

ROLLOUT_FIELDS = ("rollout_batch", "reference", "reward", "reward_model")


class Trainer(Protocol):
    """One algorithm at work on its job's roles."""

    train_tokens: int
    """Tokens trained on in one step, counted once whatever the number of epochs."""
    generated_tokens: int
    """Tokens sampled in one step."""
    samples: int
    """Sequences trained on in one step."""

    def step(self, index: int) -> Metrics:
        """Does step number `index`; gives scalars on the device: `loss`, and `reward` and `kl` where there is a rollout."""


@dataclass(frozen=True, kw_only=True)
class Algorithm(AxisValue):
    """`trainer`: sets the algorithm up on a job (it asks the job for the roles that it needs). `learning_rate`: its usual one, used
    where the workload names none. `roles`: the models it can hold."""

    trainer: Callable[[Job], Trainer]
    learning_rate: float
    roles: tuple[str, ...]


ALGORITHMS = Registry(
    "algorithm",
    Algorithm,
    {
        "sft": "vrambench.methods.algorithms.sft:SFT",
        "ppo": "vrambench.methods.algorithms.ppo:PPO",
        "remax": "vrambench.methods.algorithms.remax:REMAX",
    },
)
