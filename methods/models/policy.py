"""What is trained: a language model that scores tokens, with a value head where the algorithm wants one, and critics.

The trunk runs over the whole sequence. For which positions the head makes logits, and whether all at once, is the loss' matter
(losses/); by default it is the scored positions, all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from vrambench.methods.models.losses import LOSSES, Loss
from vrambench.methods.models.parts import Inputs, hidden_states


class Scores(NamedTuple):
    """`logprobs` [B, R] fp32: of each scored token given all before it. `values` [B, R] fp32: expected return before that token,
    None without a value head. `logits`: those that a loss keeps as long as the scores that are trained on, else None."""

    logprobs: torch.Tensor
    values: torch.Tensor | None
    logits: torch.Tensor | None = None


class Policy(nn.Module):
    """`model`: a transformers causal language model, adapter and all. `value_head`: [hidden -> 1], trained with it, or None.
    `penalty`: what an adapter adds to the mean loss of labels."""

    def __init__(
        self,
        model: nn.Module,
        value_head: nn.Linear | None = None,
        loss: Loss = LOSSES["scored"],
        penalty: Callable[[nn.Module], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.value_head = value_head
        self.loss = loss
        self.penalty = penalty

    def forward(
        self, tokens: torch.Tensor | Inputs, start: int | None = None, temperature: float | None = 1.0
    ) -> Scores | torch.Tensor:
        """Scores of tokens[:, start:], for tokens [B, T] int64 and 1 <= start < T; what samples nothing has no temperature. Without
        `start`, the mean cross-entropy of all tokens but the first, or of what inputs have as labels, a scalar."""
        inputs = tokens if isinstance(tokens, Inputs) else Inputs(tokens)
        if start is None:
            mean = self.loss.mean(self.model, inputs)
            return mean if self.penalty is None else mean + self.penalty(self.model)
        tokens = inputs.tokens
        scorer = self.loss.scorer
        assert scorer is not None, "a rule rejects such cells"
        if temperature is None and scorer.plain is not None:
            made, logits = scorer.plain(self.model, tokens, start)
            return Scores(made, None, logits)
        states = hidden_states(self.model, inputs)
        prepared = scorer.prepare(self.model, states, start)
        values = None if self.value_head is None else scalar(self.value_head, states[:, start - 1 : -1])
        if scorer.frees:
            del states
        logprobs = scorer.logprobs(self.model, prepared, tokens, start, 1.0 if temperature is None else temperature)
        return Scores(logprobs, values, prepared if scorer.keeps and torch.is_grad_enabled() else None)


class Critic(nn.Module):
    """A separate value model: a scalar model that gives one value per token of the sequence."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """Values [B, T - start] fp32: the expected return before each of tokens[:, start:]."""
        return self.model(tokens)[:, start - 1 : -1]


class HeadedCritic(nn.Module):
    """A value model that is a language model's trunk, with whatever adapter is at work in it, and a head of its own."""

    def __init__(self, model: nn.Module, value_head: nn.Linear) -> None:
        super().__init__()
        self.model = model
        self.value_head = value_head

    def forward(self, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """As Critic's."""
        return scalar(self.value_head, hidden_states(self.model, Inputs(tokens))[:, start - 1 : -1])


def scalar(linear: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """A scalar head's [B, R] fp32 output on states [B, R, hidden], in the head's own type."""
    return linear(states.to(linear.weight.dtype)).squeeze(-1).float()
