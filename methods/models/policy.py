"""What is trained: a language model that scores tokens, with a value head where the algorithm wants one, and critics.

A policy never makes logits for positions that nobody asked for: the trunk runs over the whole sequence, the head over the
scored positions only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from vrambench.methods.models.parts import as_head_wants, head, placed, trunk


class Scores(NamedTuple):
    """`logprobs` [B, R] fp32: of each scored token given all before it. `values` [B, R] fp32: expected return before that token,
    None without a value head."""

    logprobs: torch.Tensor
    values: torch.Tensor | None


class Policy(nn.Module):
    """`model`: a transformers causal language model, adapter and all. `value_head`: [hidden -> 1], trained with it, or None."""

    def __init__(self, model: nn.Module, value_head: nn.Linear | None = None) -> None:
        super().__init__()
        self.model = model
        self.value_head = value_head

    def forward(self, tokens: torch.Tensor, start: int, temperature: float = 1.0) -> Scores:
        """Scores of tokens[:, start:], for tokens [B, T] int64 and 1 <= start < T."""
        states = hidden_states(self.model, tokens)[:, start - 1 : -1]
        logits = head(self.model)(states)
        values = None if self.value_head is None else scalar(self.value_head, states)
        return Scores(token_logprobs(logits, tokens[:, start:], temperature), values)


class Critic(nn.Module):
    """A separate value model: a scalar model that gives one value per token of the sequence."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """Values [B, T - start] fp32: the expected return before each of tokens[:, start:]."""
        return self.model(tokens)[:, start - 1 : -1]


def hidden_states(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Last hidden states [B, T, hidden] of tokens [B, T], no padding, no cache."""
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    decoder = trunk(model)
    states = decoder(input_ids=tokens, use_cache=False, **placed(decoder, positions)).last_hidden_state
    return as_head_wants(states, head(model))


def scalar(linear: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """A scalar head's [B, R] fp32 output on states [B, R, hidden], in the head's own type."""
    return linear(states.to(linear.weight.dtype)).squeeze(-1).float()


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities [B, R] in fp32 of tokens [B, R] under logits [B, R, V] of any float type."""
    scaled = logits.float()
    if temperature != 1.0:
        scaled = scaled / temperature
    flat = F.cross_entropy(scaled.flatten(0, 1), tokens.flatten(), reduction="none")
    return -flat.view(tokens.shape)
