"""The loss on the whole sequence's logits, as transformers' models and TRL's PPO compute it: `loss: nll`,
`nll_4_46` and `nll_4_45`.

For labels it is the model's own forward pass with labels, whatever its architecture does there (transformers 5.23,
loss/loss_utils.py: ForCausalLMLoss): logits of every position in the model's type, a copy in fp32, labels shifted and padded, the
log-softmax. Until it returns, the logits in the model's type and the last hidden states are held as well. 10 bytes a logit in
the forward pass of a model in half precision, 12 in the backward pass. What trainers do with the logits between the two is not
done here, and mostly stays below that: accelerate's copy of them in fp32 under autocast, and TRL's entropies and accuracies for
its log. Under autocast those come to 12 bytes a logit too (log-softmax, logits in fp32, a copy without each sequence's last), and
to 1,536 more for each word of the vocabulary: three times 128 tokens in fp32 (trainer/utils.py: entropy_from_logits).

For log-probabilities it is what TRL 1.12 does in PPO (experimental/ppo/ppo_trainer.py; trainer/utils.py: selective_log_softmax):
logits of every position, those of the response divided by the temperature in place, and a log-softmax of one sequence after the
other in the logits' own type (in fp32: a logarithm of the sum of exponentials). The trainer holds the logits until the backward
pass is over. TRL scores its rollout with the logits that generation gave, which it stacks; here rollouts are scored by a pass
of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vrambench.methods.amp import autocast_dtype, forget_casts
from vrambench.methods.models import parts

EPSILON = 1e-7
"""Added to the temperature before anything is divided by it (ppo_trainer.py)."""


def mean(model: nn.Module, inputs: parts.Inputs) -> torch.Tensor:
    """The mean cross-entropy of labels[:, 1:] that are learnt."""
    base: Any = parts.unwrapped(model)
    if parts.virtual_tokens(model):  # PEFT's own forward pass makes their logits as well
        output = model(input_ids=inputs.tokens, attention_mask=inputs.mask, labels=inputs.wanted, use_cache=False)
    else:
        output = base(labels=inputs.wanted, **parts.arguments(base, inputs))
    loss: torch.Tensor = output.loss
    return loss


def mean_4_46(model: nn.Module, inputs: parts.Inputs) -> torch.Tensor:
    """The same with the loss function of transformers 4.46 to 4.48: 14 bytes a logit in the forward pass."""
    base: Any = parts.unwrapped(model)
    base.loss_function = loss_4_46
    return mean(model, inputs)


def loss_4_46(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **kwargs: Any) -> torch.Tensor:
    """ForCausalLMLoss as it was: it copies the logits in fp32 once more, to shift them instead of the labels."""
    logits = logits.float()
    shifted = logits[..., :-1, :].contiguous()
    wanted = labels[..., 1:].contiguous()
    return F.cross_entropy(shifted.view(-1, vocab_size), wanted.view(-1))


def mean_4_45(model: nn.Module, inputs: parts.Inputs) -> torch.Tensor:
    """The same as models of transformers 4.45 and before did in their forward pass: all logits in fp32, once more in fp32 to shift
    them, and none in the model's type. 12 bytes a logit, beside the last hidden states."""
    states = parts.hidden_states(model, inputs)
    logits = parts.logits(model, states).float()
    return loss_4_46(logits, inputs.wanted, logits.shape[-1])


def logits(model: nn.Module, states: torch.Tensor, start: int) -> torch.Tensor:
    """[B, T, V], in the model's type."""
    return parts.logits(model, states)


def logprobs(
    model: nn.Module, logits: torch.Tensor, tokens: torch.Tensor, start: int, temperature: float
) -> torch.Tensor:
    """Of tokens[:, start:]. Changes `logits` [B, T, V] in place."""
    response = logits[:, start - 1 : -1]
    response /= temperature + EPSILON
    return selective_log_softmax(response, tokens[:, start:]).float()


def plain(model: nn.Module, tokens: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of tokens[:, start:], and the logits, as in TRL's DPOTrainer (trainer/dpo_trainer.py: _compute_loss): log-probabilities of
    all tokens, of which the response's are taken. Under autocast logits are in fp32, as accelerate gives them (utils/operations.py:
    convert_outputs_to_fp32)."""
    made = parts.logits(model, parts.hidden_states(model, parts.Inputs(tokens)))
    if autocast_dtype(made.device) is not None:
        forget_casts(made.device)  # accelerate leaves autocast with the model's forward pass
        made = made.float()
    every = selective_log_softmax(made[:, :-1], tokens[:, 1:])
    return every[:, start - 1 :].float(), made


def entropies(logits: torch.Tensor, chunk: int = 128) -> torch.Tensor:
    """[B, T] of logits [B, T, V], as TRL logs them (trainer/utils.py: entropy_from_logits): so many tokens at a time."""
    found = []
    for some in logits.reshape(-1, logits.shape[-1]).split(chunk):
        logprobs = F.log_softmax(some, dim=-1)
        found.append(-(torch.exp(logprobs) * logprobs).sum(-1))
    return torch.cat(found).reshape(logits.shape[:-1])


def selective_log_softmax(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [B, R] of tokens [B, R] under logits [B, R, V], in their type."""
    wanted = tokens.unsqueeze(-1)
    if logits.dtype in (torch.float32, torch.float64):
        selected = torch.gather(logits, dim=-1, index=wanted)
        sums = torch.stack([torch.logsumexp(row, dim=-1) for row in logits])
        return (selected - sums.unsqueeze(-1)).squeeze(-1)
    rows = []
    for row, words in zip(logits, wanted, strict=True):
        row_logprobs = F.log_softmax(row, dim=-1)
        rows.append(row_logprobs.gather(dim=-1, index=words))
    return torch.stack(rows).squeeze(-1)
