"""What decoding keeps of the tokens before: a static cache, each layer's part as that layer needs it.

    cache = cache_for(model.config, length=512)         layers that see all, sliding windows, states of fixed size
    cache.rewind(8)                                     as if eight tokens were in it

A layer that sees all keeps keys and values of every token; one with a sliding window keeps the window's, a new token in the place
of the oldest one; linear attention and convolutions keep a state, which transformers' own cache layers hold.
"""

from __future__ import annotations

import copy
import inspect
import sys
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from vrambench.methods.device import memory_named
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.attention import chunked
from vrambench.methods.models.parts import ARGUMENTS


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


class WindowLayer(FilledLayer):
    """A layer that sees `window` tokens, of which it keeps as many: token number t lies at t modulo window. One query sees all of
    them, and attention does not ask for their order. `filled`: tokens that it was given."""

    is_sliding = True

    def __init__(self, window: int) -> None:
        super().__init__(window)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        window, count = self._length, key_states.shape[2]
        if self.filled + count <= window:
            return super().update(key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        assert count == 1 or self.filled == 0, "several tokens at once are the prompt's"
        start, end = max(self.filled, self.filled + count - window), self.filled + count
        turn = end - end % window  # the tokens from here on lie at the beginning
        for first, last in ((start, max(start, turn)), (max(start, turn), end)):
            if first < last:
                places, given = (
                    slice(first % window, first % window + last - first),
                    slice(first - end, (last - end) or None),
                )
                self.keys[:, :, places] = key_states[:, :, given]
                self.values[:, :, places] = value_states[:, :, given]
        self.filled = end
        return (self.keys, self.values) if count == 1 else (key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        seen = min(self.filled + query_length, self._length) if self.filled else query_length
        return seen, self.filled + query_length - seen


class StaticCache(Cache):
    """A cache whose layers are allocated once."""

    def rewind(self, filled: int) -> None:
        """Pretends that so many tokens are in it."""
        for layer in self.layers:
            if isinstance(layer, FilledLayer):
                layer.filled = filled


def cache_for(config: PreTrainedConfig, length: int) -> StaticCache:
    """The cache of a model for sequences of `length`. Raises ConfigurationError where it cannot be decoded with one."""
    why = unable_to_decode(config)
    if why:
        raise ConfigurationError(f"model: its architecture ({config.model_type}) {why}", field="model")
    return StaticCache(layers=[_static(layer, config, length) for layer in _layers(config)])


def cache_argument(trunk: torch.nn.Module) -> str:
    """Under which name a model's trunk takes its cache."""
    taken = inspect.signature(trunk.forward).parameters
    return next(name for name in ARGUMENTS if name in taken)


def unable_to_decode(config: PreTrainedConfig) -> str | None:
    """Why a model of that configuration gives no tokens here, in words that follow its name; None where it does."""
    made = AutoModel._model_mapping.get(type(config), None)
    taken = inspect.signature(made.forward).parameters if made else {}
    if not any(name in taken for name in ARGUMENTS):
        return "keeps no cache of the kind that transformers' models share, so nothing is generated with it (SFT works)"
    own = [name for name, one in vars(sys.modules[made.__module__]).items() if _is_own_cache(one, made)]
    if own:
        return f"keeps a cache of its own ({', '.join(own)}), so nothing is generated with it (SFT works)"
    try:
        kinds = {type(layer).__name__ for layer in _layers(config)}
    except (AttributeError, KeyError, TypeError, ValueError):
        kinds = {"of its own"}
    unknown = ", ".join(sorted(kinds - KINDS.keys()))
    if unknown:
        return (
            f"keeps a cache of a kind that is not known here ({unknown}), so nothing is generated with it (SFT works)"
        )
    return None


def _is_own_cache(one: object, model: type) -> bool:
    """Whether `one` is a whole cache, and no layer of one, written beside `model`."""
    if not isinstance(one, type) or one.__module__ != model.__module__:
        return False
    return one.__name__.endswith("Cache") and not issubclass(one, CacheLayerMixin)


KINDS = {
    "DynamicLayer": "all",
    "DynamicSlidingWindowLayer": "window",
    "LinearAttentionLayer": "state",
    "LinearAttentionAndFullAttentionLayer": "state and all",
    "DummyLayer": "nothing",
}
"""What transformers' cache layers keep of the tokens before."""


def _layers(config: PreTrainedConfig) -> list[Any]:
    """transformers' own cache layers of a model."""
    depth = getattr(config, "decoder_layers", None)
    if depth:  # what is called num_hidden_layers there is the encoder's
        config = copy.copy(config)
        config.num_hidden_layers = depth
    layers: list[Any] = DynamicCache(config=config).layers
    return layers


def _static(layer: Any, config: PreTrainedConfig, length: int) -> Any:
    kind = KINDS[type(layer).__name__]
    if kind == "all":
        return FilledLayer(length)
    if kind == "window":
        whole = chunked(config) or layer.sliding_window >= length
        return FilledLayer(length) if whole else WindowLayer(layer.sliding_window)
    if kind == "state and all":
        layer = _with_state(layer, length)
    if kind != "nothing":
        _name_memory(layer)
    return layer


def _with_state(layer: Any, length: int) -> Any:
    """transformers' layer of a linear attention beside an attention to all, the latter's part static."""
    state: Any = type(layer).__mro__[1]

    class StateAndFilledLayer(state, FilledLayer):
        def __init__(self) -> None:
            FilledLayer.__init__(self, length)
            state.__init__(self, number_of_states=layer.number_of_states)

        def lazy_initialization(self, *tensors: torch.Tensor, **states: Any) -> None:
            chosen: Any = FilledLayer if tensors else state
            chosen.lazy_initialization(self, *tensors, **states)

    return StateAndFilledLayer()


def _name_memory(layer: Any) -> None:
    """What the layer allocates for good is the cache's."""
    make = layer.lazy_initialization

    def named(*args: Any, **kwargs: Any) -> None:
        with memory_named("kv_cache"):
            make(*args, **kwargs)

    layer.lazy_initialization = named
