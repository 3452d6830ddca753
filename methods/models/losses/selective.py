"""The loss on the scored positions' logits, one sequence after the other, as TRL's GRPO and RLOO compute it: `loss: selective`.

TRL 1.12, trainer/grpo_trainer.py and rloo_trainer.py (_get_per_token_logps_and_entropies), trainer/utils.py
(selective_log_softmax, entropy_from_logits): the model makes the logits of the scored positions and of the last one
(`logits_to_keep`) and lets go of its hidden states; under autocast accelerate copies the logits to fp32, and they are divided by
the temperature into a tensor of their own. In fp32 a logarithm of the sum of exponentials is taken of each sequence, which keeps
those divided logits for the backward pass; in 16 bit a log-softmax of each sequence, which is kept. Where there is a backward
pass, entropies are computed for the log, 128 tokens at a time, while all these are held.

While TRL scores a rollout, it holds the last batch's logits and their quotient, B (2 R + 1) V numbers of the model's type, while
the next batch runs; here they are let go of, so that phase stays so much below TRL's (tests/trainers/test_groups_beside.py).
"""

from __future__ import annotations

import torch
from torch import nn

from vrambench.methods.amp import autocast_dtype, forget_casts
from vrambench.methods.models import parts
from vrambench.methods.models.losses.whole import entropies, selective_log_softmax


def mean(model: nn.Module, inputs: parts.Inputs) -> torch.Tensor:
    """The mean cross-entropy of labels[:, 1:] that are learnt."""
    wanted = inputs.wanted
    made = logits(model, parts.hidden_states(model, inputs), 1)
    found = logprobs(model, made, wanted.clamp(min=0), 1, 1.0)
    return -(found * (wanted[:, 1:] != parts.IGNORED)).sum() / inputs.predicted


def logits(model: nn.Module, states: torch.Tensor, start: int) -> torch.Tensor:
    """[B, R + 1, V] of the positions before tokens[:, start:] and of the last one."""
    made = parts.logits(model, states[:, start - 1 :])
    if autocast_dtype(states.device) is None:
        return made
    forget_casts(states.device)  # accelerate's autocast ends with the model's forward pass
    return made.float()


def logprobs(
    model: nn.Module, logits: torch.Tensor, tokens: torch.Tensor, start: int, temperature: float
) -> torch.Tensor:
    """Of tokens[:, start:]."""
    wanted = tokens[:, start:]
    scored = logits[:, :-1, :]
    scored = scored[:, -wanted.shape[1] :, :]  # a view that the backward pass makes a tensor of its own for
    scored = scored / temperature
    found = selective_log_softmax(scored, wanted)
    if torch.is_grad_enabled():
        with torch.no_grad():
            entropies(scored)
    return found.float()
