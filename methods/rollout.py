"""Rollouts: exactly `response_tokens` tokens for every prompt, over a static cache, the same work in every run.

End-of-sequence does not stop a response. The cache is allocated once (kv_cache.py); every decode step attends to the filled part of
it through a view, so, after the first step, every step allocates alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vrambench.methods.device import Device
from vrambench.methods.kv_cache import cache_argument, cache_for
from vrambench.methods.models.parts import logits, placed, trunk, virtual_tokens, without_checkpointing


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy. `top_p` 1 keeps the whole distribution."""

    temperature: float = 1.0
    top_p: float = 1.0


GREEDY = Sampling(temperature=0.0)


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: torch.Tensor,
    response_tokens: int,
    sampling: Sampling,
    device: Device,
    at_a_time: int | None = None,
) -> torch.Tensor:
    """Prompts [B, P] int64 with `response_tokens` more tokens each: [B, P + response_tokens]. `at_a_time`: how many are generated
    together, None for all.

    Raises ConfigurationError where the model has layers that keep something else than keys and values between tokens.
    """
    batch, prompt_tokens = prompts.shape
    tokens = torch.cat([prompts, prompts.new_zeros((batch, response_tokens))], dim=1)
    for part in device.alike(tokens.split(at_a_time or batch)):
        _fill(model, part, prompt_tokens, sampling, device)
    return tokens


def _fill(model: nn.Module, tokens: torch.Tensor, prompt_tokens: int, sampling: Sampling, device: Device) -> None:
    """Generates tokens[:, prompt_tokens:], with a cache of their own."""
    length = tokens.shape[1]
    config: Any = model.config
    virtual = virtual_tokens(model)
    cache = cache_for(config, virtual + length)
    positions = torch.arange(length, device=tokens.device)[None]
    decoder = trunk(model)
    argument = cache_argument(decoder)
    with without_checkpointing(model):
        for end in device.growing(range(prompt_tokens, length)):
            start = 0 if end == prompt_tokens else end - 1
            cache.rewind(virtual + start if start else 0)  # pretends that skipped steps ran
            states = decoder(
                input_ids=tokens[:, start:end],
                use_cache=True,
                **{argument: cache},
                **placed(decoder, positions[:, start:end]),
            ).last_hidden_state
            tokens[:, end] = next_tokens(logits(model, states[:, -1]), sampling)


def next_tokens(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """One token [B] for each row of logits [B, V]; random numbers from torch's own seeded generator.

    Drawing is a race of exponentials (the argmax of p / e with e ~ Exp(1) is distributed as p), which never waits for the device.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits.float() / sampling.temperature).softmax(dim=-1)
    if sampling.top_p >= 1:
        return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(dim=-1)
    ordered, ids = probabilities.sort(dim=-1, descending=True)
    kept = ordered.where(ordered.cumsum(dim=-1) - ordered < sampling.top_p, 0.0)
    choice = (kept / torch.empty_like(kept).exponential_()).argmax(dim=-1, keepdim=True)
    return ids.gather(-1, choice).squeeze(-1)
