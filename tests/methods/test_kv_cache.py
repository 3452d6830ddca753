"""Caches of decoding: what each kind of layer keeps, and gives back."""

from __future__ import annotations

import pytest
import torch

from vrambench.methods.kv_cache import FilledLayer, WindowLayer, cache_for
from vrambench.methods.models.config import model_config


def tokens_of(first: int, last: int) -> torch.Tensor:
    """Keys [1,1,n,2] of tokens first to last - 1, each its number."""
    return torch.arange(first, last, dtype=torch.float32).view(1, 1, -1, 1).expand(1, 1, -1, 2)


@pytest.mark.parametrize("prompt", [1, 3, 4, 5, 8, 9, 11])
def test_a_window_gives_the_last_tokens_in_any_order(prompt: int) -> None:
    layer = WindowLayer(4)
    assert layer.get_mask_sizes(prompt) == (prompt, 0)
    keys, _ = layer.update(tokens_of(0, prompt), 10 * tokens_of(0, prompt))
    assert torch.equal(keys, tokens_of(0, prompt)), "the prompt sees itself whole"
    for token in range(prompt, prompt + 9):
        seen, offset = layer.get_mask_sizes(1)
        assert (seen, offset) == (min(4, token + 1), max(0, token - 3))
        keys, values = layer.update(tokens_of(token, token + 1), 10 * tokens_of(token, token + 1))
        assert sorted(keys[0, 0, :, 0].tolist()) == list(range(offset, token + 1))
        assert torch.equal(values, 10 * keys)
    assert layer.keys is not None
    assert layer.keys.shape[2] == 4


def test_a_cache_keeps_a_window_where_the_sequence_is_longer() -> None:
    config = model_config("tiny-mistral")
    assert {type(layer) for layer in cache_for(config, 1024).layers} == {FilledLayer}
    layers = cache_for(config, 1025).layers
    assert {(type(layer), layer.get_max_length()) for layer in layers} == {(WindowLayer, 1024)}
