"""The loss in chunks, never holding all logits, as TRL 1.12 computes it: `loss: chunked_nll`.

For labels it is SFTTrainer's default (trainer/sft_trainer.py: _chunked_cross_entropy_loss): 256 tokens at a time, each chunk under
gradient checkpointing, so that its logits are made once more in the backward pass. Products are in fp32: each chunk copies the
whole head to fp32, and has accuracy and entropy computed for the trainer's log.

For log-probabilities it is what TRL's AsyncGRPOTrainer does (trainer/utils.py: _ChunkedLogProbFunction): 8,192 words of the
vocabulary at a time, for all tokens, with an entropy for the log; the head's gradient is summed in fp32, even where the head
is frozen. TRL's PPO does not do this; its values and ours are the same.

TRL knows Cohere's scale of logits and Gemma's soft-capping; Granite's division it leaves out of both. It is not left out here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vrambench.methods.amp import recompute_contexts
from vrambench.methods.models import parts

TOKENS = 256
"""sft_trainer.py: _CHUNKED_LM_HEAD_CHUNK_SIZE."""
WORDS = 8192
"""async_grpo_trainer.py: the chunk_size of patch_chunked_lm_head."""


def mean(model: nn.Module, inputs: parts.Inputs) -> torch.Tensor:
    """The mean cross-entropy of labels[:, 1:] that are learnt."""
    states = parts.hidden_states(model, inputs)
    head = parts.plain_head(model, "loss: chunked_nll")
    return cross_entropy(states, head.weight, inputs.wanted, inputs.predicted, parts.logit_changes(model), head.bias)


def cross_entropy(
    states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    predicted: int,
    changes: parts.LogitChanges,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mean cross-entropy of labels [B, T], of which so many are `predicted`, from hidden states [B, T, hidden]. Chunks that
    would hold none are left out."""
    states = states[..., :-1, :].reshape(-1, states.shape[-1])
    labels = labels[..., 1:].reshape(-1)
    valid = labels != parts.IGNORED
    count = valid.sum()
    correct = states.new_zeros((), dtype=torch.float32)
    entropies = states.new_zeros((), dtype=torch.float32)
    order = valid.to(torch.int8).argsort(descending=True, stable=True)
    states = states[order]
    labels = labels[order]
    loss = states.new_zeros((), dtype=torch.float32)
    recomputing: dict[str, Any] = {"context_fn": recompute_contexts} if states.is_meta else {}
    for start in _starts(max(1, predicted), TOKENS, states.is_meta):
        chunk_states, chunk_labels = states[start : start + TOKENS], labels[start : start + TOKENS]
        chunk: tuple[torch.Tensor, ...] = checkpoint(
            _chunk, chunk_states, weight, bias, chunk_labels, changes, use_reentrant=False, **recomputing
        )
        loss = loss + chunk[0]
        correct = correct + chunk[1]
        entropies = entropies + chunk[2]
    return loss / count.clamp(min=1)


def _starts(length: int, chunk: int, simulated: bool) -> list[int]:
    """Where chunks begin. All but the last do the same, so on the simulated device there are two and the last; where each leaves
    something on the host, there are all."""
    starts = list(range(0, length, chunk))
    few = simulated and len(starts) > 3 and not parts.saves_elsewhere()
    return [*starts[:2], starts[-1]] if few else starts


def _chunk(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    changes: parts.LogitChanges,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum of a chunk's cross-entropies, how many of its tokens the model would have chosen, and the sum of its entropies."""
    logits = states.float() @ weight.float().t()
    if bias is not None:
        logits = logits + bias.float()
    if changes.scale != 1.0:
        logits = logits * changes.scale
    if changes.cap is not None:
        logits = changes.cap * torch.tanh(logits / changes.cap)
    logprobs = F.log_softmax(logits, dim=-1)
    loss = F.nll_loss(logprobs, labels, ignore_index=parts.IGNORED, reduction="sum")
    valid = labels != parts.IGNORED
    correct = ((logits.argmax(dim=-1) == labels) & valid).sum().float()
    entropy = (-(logprobs.exp() * logprobs).sum(dim=-1) * valid).sum()
    return loss, correct, entropy


def states(model: nn.Module, states: torch.Tensor, start: int) -> torch.Tensor:
    """The states before tokens[:, start:], [B, R, hidden]: no logits are made yet."""
    return states[:, start - 1 : -1]


def logprobs(
    model: nn.Module, states: torch.Tensor, tokens: torch.Tensor, start: int, temperature: float
) -> torch.Tensor:
    """Of tokens[:, start:]."""
    head = parts.plain_head(model, "loss: chunked_nll", bias=False)
    wanted = tokens[:, start:]
    flat = states.reshape(-1, states.shape[-1])
    found: tuple[torch.Tensor, torch.Tensor] = _LogProbs.apply(
        flat, head.weight, wanted.reshape(-1), temperature, parts.logit_changes(model)
    )
    return found[0].reshape(wanted.shape)


class _LogProbs(torch.autograd.Function):
    """Log-probabilities [N] of tokens [N], and entropies [N], from states [N, hidden] and a head's weight [V, hidden]; a running
    logarithm of the sum of exponentials over chunks of words."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        tokens: torch.Tensor,
        temperature: float,
        changes: parts.LogitChanges,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, device, words = len(states), states.device, len(weight)
        highest = torch.full((rows,), float("-inf"), device=device, dtype=torch.float32)
        total = torch.zeros((rows,), device=device, dtype=torch.float32)
        weighted = torch.zeros((rows,), device=device, dtype=torch.float32)
        chosen = torch.zeros((rows,), device=device, dtype=torch.float32)
        product = torch.empty((rows, WORDS), device=device, dtype=states.dtype)
        buffer = torch.empty((rows, WORDS), device=device, dtype=torch.float32)
        for start in range(0, words, WORDS):
            end = min(start + WORDS, words)
            part = weight[start:end].to(states.dtype)
            logits = _logits(states, part, product, buffer)
            logits.mul_(changes.scale)
            if changes.cap is not None:
                logits.div_(changes.cap).tanh_().mul_(changes.cap)
            logits.mul_(1 / temperature)
            chunk_highest = logits.amax(dim=-1)
            new_highest = torch.maximum(highest, chunk_highest)
            rescale = torch.exp(highest - new_highest)
            exponentials = torch.exp(logits - new_highest.unsqueeze(-1))
            total = total * rescale + exponentials.sum(dim=-1)
            weighted = weighted * rescale + (exponentials * logits).sum(dim=-1)
            highest = new_highest
            inside = (tokens >= start) & (tokens < end)
            local = torch.clamp(tokens - start, 0, end - start - 1)
            chosen += logits[torch.arange(rows, device=device), local] * inside
        normalizer = highest + torch.log(total)
        logprobs = chosen - normalizer
        entropy = normalizer - weighted / total
        ctx.save_for_backward(states, weight, tokens, normalizer)
        ctx.temperature = temperature
        ctx.changes = changes
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprobs: torch.Tensor, grad_entropy: torch.Tensor) -> tuple[Any, ...]:
        states, weight, tokens, normalizer = ctx.saved_tensors
        changes: parts.LogitChanges = ctx.changes
        inverse = 1 / ctx.temperature
        rows, device, words = len(states), states.device, len(weight)
        grad_states = torch.zeros(states.shape, device=device, dtype=torch.float32)
        grad_weight = torch.zeros(weight.shape, device=device, dtype=torch.float32)
        product = torch.empty((rows, WORDS), device=device, dtype=states.dtype)
        buffer = torch.empty((rows, WORDS), device=device, dtype=torch.float32)
        gradient = grad_logprobs.to(torch.float32)
        row = torch.arange(rows, device=device)
        for start in range(0, words, WORDS):
            end = min(start + WORDS, words)
            part = weight[start:end]
            logits = _logits(states, part, product, buffer)
            logits.mul_(changes.scale)
            if changes.cap is not None:
                capped = torch.tanh(logits / changes.cap)
                logits.copy_(capped * changes.cap)
            logits.mul_(inverse)
            probabilities = torch.exp(logits - normalizer.unsqueeze(-1))
            grad_logits = (-gradient).unsqueeze(-1) * probabilities
            inside = (tokens >= start) & (tokens < end)
            local = torch.clamp(tokens - start, 0, end - start - 1)
            grad_logits[row, local] += gradient * inside
            grad_logits = grad_logits * inverse
            if changes.cap is not None:
                grad_logits.mul_(1 - capped.pow(2))
            grad_logits = grad_logits * changes.scale
            grad_states.add_(grad_logits @ part.float())
            grad_weight[start:end].add_(grad_logits.t() @ states.float())
        return grad_states.to(states.dtype), grad_weight.to(weight.dtype), None, None, None


def _logits(states: torch.Tensor, part: torch.Tensor, product: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """The logits of some words in fp32, in `buffer`, by way of `product` in the states' type."""
    count = len(part)
    torch.mm(states, part.t(), out=product[:, :count])
    logits = buffer[:, :count]
    logits.copy_(product[:, :count])
    return logits
