"""The loss in eight pieces, as torchtune 0.7 computes it: `loss: linear_cross_entropy` and `loss: chunked_output`.

Both copy one piece's logits to fp32 at a time, and keep the log-softmax of every piece for the backward pass: 4 bytes a logit.
torchtune's LinearCrossEntropyLoss (modules/loss/cross_entropy_loss.py), its recipes' default, makes a piece's logits then, too,
of the tokens that are learnt alone. Its older CEWithChunkedOutputLoss (modules/loss/ce_chunked_output_loss.py) has the model make
all logits before, eight pieces of every sequence, and holds them until the loss is there: 2 bytes a logit more in half precision.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vrambench.methods.models import parts

PIECES = 8
"""num_output_chunks."""


def mean(model: nn.Module, inputs: parts.Inputs) -> torch.Tensor:
    """The mean cross-entropy of labels[:, 1:] that are learnt, from hidden states of these alone."""
    states = parts.hidden_states(model, inputs)[:, :-1].flatten(0, 1)
    labels = inputs.wanted[:, 1:].flatten()
    valid = labels != parts.IGNORED
    learnt = valid.to(torch.int8).argsort(descending=True, stable=True)[: inputs.predicted]
    states, labels = states.index_select(0, learnt), labels.index_select(0, learnt)
    loss = states.new_zeros((), dtype=torch.float32)
    for some, wanted in zip(states.tensor_split(PIECES), labels.tensor_split(PIECES), strict=True):
        loss = loss + _summed(parts.logits(model, some), wanted)
    return loss / valid.sum()


def mean_of_outputs(model: nn.Module, inputs: parts.Inputs) -> torch.Tensor:
    """The same, from logits of all tokens, each sequence's last one, too."""
    states = parts.hidden_states(model, inputs)
    labels = F.pad(inputs.wanted[:, 1:], (0, 1), value=parts.IGNORED)
    made = [parts.logits(model, some) for some in states.tensor_split(PIECES, dim=1)]
    loss = states.new_zeros((), dtype=torch.float32)
    for logits, wanted in zip(made, labels.tensor_split(PIECES, dim=1), strict=True):
        loss = loss + _summed(logits.flatten(0, 1), wanted.flatten())
    return loss / (labels != parts.IGNORED).sum()


def _summed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=parts.IGNORED, reduction="sum")
