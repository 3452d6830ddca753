"""The loss on logits of the scored positions alone, in fp32: `loss: scored`.

Per scored position and word of the vocabulary: the logits in the model's type, their copy in fp32, and the log-softmax.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vrambench.methods.models import parts


def mean(model: nn.Module, inputs: parts.Inputs) -> torch.Tensor:
    """The mean cross-entropy of labels[:, 1:] that are learnt."""
    made = _all_logprobs(model, inputs)
    return -made.mean() if inputs.labels is None else -made.sum() / inputs.predicted


def _all_logprobs(model: nn.Module, inputs: parts.Inputs) -> torch.Tensor:
    """Of labels[:, 1:]; 0 for those that are not learnt."""
    return logprobs(model, logits(model, parts.hidden_states(model, inputs), 1), inputs.wanted, 1, 1.0)


def logits(model: nn.Module, states: torch.Tensor, start: int) -> torch.Tensor:
    """[B, R, V] of the positions before tokens[:, start:], in the model's type."""
    return parts.logits(model, states[:, start - 1 : -1])


def logprobs(
    model: nn.Module, logits: torch.Tensor, tokens: torch.Tensor, start: int, temperature: float
) -> torch.Tensor:
    """Of tokens[:, start:]."""
    return token_logprobs(logits, tokens[:, start:], temperature)


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities [B, R] in fp32 of tokens [B, R] under logits [B, R, V] of any float type; 0 of what is IGNORED."""
    scaled = logits.float()
    if temperature != 1.0:
        scaled = scaled / temperature
    flat = F.cross_entropy(scaled.flatten(0, 1), tokens.flatten(), reduction="none")
    return -flat.view(tokens.shape)
