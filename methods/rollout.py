"""Rollouts: exactly `response_tokens` tokens for every prompt, over a static cache, the same work in every run.

End-of-sequence does not stop a response. The cache is allocated once at its full length; every decode step attends to the
filled part of it through a view, so there is no mask and, after the first step, every step allocates alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin

from vrambench.methods.device import Device, memory_named
from vrambench.methods.models.parts import logits, trunk, without_checkpointing


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy. `top_p` 1 keeps the whole distribution."""

    temperature: float = 1.0
    top_p: float = 1.0


GREEDY = Sampling(temperature=0.0)


class FilledLayer(CacheLayerMixin):
    """One layer's keys and values [B, heads, length, head size], allocated once; gives back what is filled: the first `filled`."""

    is_sliding = False

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length
        self.filled = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        batch, heads, _, size = key_states.shape
        with memory_named("kv_cache"):
            self.keys = key_states.new_empty((batch, heads, self._length, size))
            self.values = value_states.new_empty((batch, heads, self._length, value_states.shape[-1]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        end = self.filled + key_states.shape[2]
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled

    def get_max_length(self) -> int:
        return self._length

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


@torch.no_grad()
def generate(
    model: nn.Module, prompts: torch.Tensor, response_tokens: int, sampling: Sampling, device: Device
) -> torch.Tensor:
    """Prompts [B, P] int64 with `response_tokens` more tokens each: [B, P + response_tokens]."""
    batch, prompt_tokens = prompts.shape
    length = prompt_tokens + response_tokens
    tokens = torch.cat([prompts, prompts.new_zeros((batch, response_tokens))], dim=1)
    config: Any = model.config
    layers = [FilledLayer(length) for _ in range(config.num_hidden_layers)]
    cache = Cache(layers=layers)
    positions = torch.arange(length, device=prompts.device)[None]
    decoder = trunk(model)
    with without_checkpointing(model):
        for end in device.growing(range(prompt_tokens, length)):
            start = 0 if end == prompt_tokens else end - 1
            for layer in layers:
                layer.filled = start  # pretends that skipped steps ran
            states = decoder(
                input_ids=tokens[:, start:end],
                position_ids=positions[:, start:end],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            tokens[:, end] = next_tokens(logits(model, states[:, -1]), sampling)
    return tokens


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
