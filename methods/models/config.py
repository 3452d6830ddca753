"""Models' configurations by name: a preset, a folder with a config.json, or a hub id; checked before anything is built of them.

config = model_config("llama-2-7b")
shortened(config, device)           with as many layers as the simulated device builds
"""

from __future__ import annotations

import functools
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vrambench.methods.device import Device
from vrambench.methods.errors import ConfigurationError, shown
from vrambench.methods.models.attention import own_code, settled
from vrambench.methods.models.config_file import check_config_file, unknown_type
from vrambench.methods.models.fill import build
from vrambench.methods.models.parts import DEPTH, layer_stacks
from vrambench.methods.models.presets import PRESETS, check_name, hint

MOST_WORDS = 200
"""Letters of a library's reason that are told."""

NOISE = ("pdrop", "dropout", "dropout_prob", "layerdrop", "jitter_noise")
"""How fields end that make a model's passes differ from each other."""

MOST: dict[str, int] = {
    "num_hidden_layers": 2048,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**13,
    "hidden_size": 2**18,
    "intermediate_size": 2**20,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**31,
}
"""Sizes that every architecture has, by the names that transformers gives them, and the largest that is taken: some tens of times
the largest that is published."""
MOST_ELSEWHERE = 2**40
"""For a number of any other name."""


def model_config(name: str, *, field: str = "model") -> PreTrainedConfig:
    """The configuration of a causal language model: a preset, a folder with a config.json, or a hub id. Dropout is
    zero.

    Raises ConfigurationError, about `field`, where there is no such model or it is of a kind that cannot be trained
    here.
    """
    with readable(name, field):
        return _model_config(name, field)


@contextmanager
def readable(name: str, field: str) -> Iterator[None]:
    """What transformers cannot make a model of, for whatever reason, is a mistake in the config.json, in one sentence."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"{field}: {name!r}: no model can be made of its config.json: {_reason(error)}", field=field
        ) from error


def _reason(error: Exception) -> str:
    """What a library says of a configuration, without the names of its classes where the words tell by themselves."""
    cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    said = " ".join(lines[:2])[:MOST_WORDS].rstrip(".")
    return said[:1].lower() + said[1:] if " " in said else f"{type(cause).__name__}: {said}"


def _model_config(name: str, field: str) -> PreTrainedConfig:
    config = read_config(name, field)
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigurationError(
            f"{field}: {name!r} is a {config.model_type}, not a causal language model", field=field
        )
    _check_attends_as_told(config, name, field)
    return config


_ONE_BY_ONE = "picks its tokens in a loop over queries that wants every sequence's positions: take a qwen3_next"
_DRAFTS = "drafts for another model, and reads that one's keys and values: take the other model"

UNLIKE: dict[str, str] = {
    "blt": "joins bytes to patches by masks of their values, which no kernel here takes",
    "cpmant": "reads what it is given in both directions",
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
    "prophetnet": "scores tokens from states of its n-gram streams, not from its last hidden states",
    "qwen4_exp": _ONE_BY_ONE,
    "qwen4_exp_text": _ONE_BY_ONE,
    "reformer": "puts tokens into buckets by random hashes, and has a backward pass of its own that fails beside an adapter",
}
"""Model types that cannot be trained here as transformers would, with the reason, as it was seen at a tiny size."""


def _check_attends_as_told(config: PreTrainedConfig, name: str, field: str) -> None:
    """Raises ConfigurationError where a model would attend in both directions."""
    why = None
    if config.is_encoder_decoder:
        why = "has an encoder, and only decoders are trained here" + (
            "" if config.sub_configs else "; with is_encoder_decoder: false in its config.json it is its decoder alone"
        )
    elif getattr(config, "is_decoder", None) is False and hasattr(config, "add_cross_attention"):
        why = "reads in both directions; with is_decoder: true in its config.json it is a decoder"
    elif getattr(config, "attn_type", None) == "bi" or getattr(config, "causal", True) is False:
        why = "reads in both directions"
    elif config.model_type in UNLIKE:
        why = UNLIKE[config.model_type]
    if why:
        raise ConfigurationError(f"{field}: {name!r} is a {config.model_type}, which {why}", field=field)


def read_config(name: str, field: str) -> PreTrainedConfig:
    if name in PRESETS:
        config = PRESETS[name].config()
    else:
        check_name(name, field)
        if Path(name).exists():
            check_config_file(Path(name), field)
        try:
            offline = _hub_is_out_of_reach()
            written = PreTrainedConfig.get_config_dict(name, local_files_only=offline)[0]
            _check_sizes(written, name, field)
            if "model_type" in written and (wrong := unknown_type(written)):
                raise ValueError(wrong)
            config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=offline)
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, ConfigurationError):
                raise
            reason = str(error).strip().splitlines()[0][:MOST_WORDS] if str(error).strip() else type(error).__name__
            raise ConfigurationError(
                f"{field}: {name!r} cannot be read: {reason}{hint(name, field)}", field=field
            ) from error
        _check_sizes(_sizes(text_of(config)), name, field)
    for part in {id(part): part for part in (config, text_of(config))}.values():
        _switch_dropout_off(part)
    return config


def text_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of `config` that is about text. With an encoder there are two, and none is asked for."""
    return config if config.is_encoder_decoder else config.get_text_config()


def _sizes(config: PreTrainedConfig) -> dict[str, object]:
    """A configuration's sizes by the names of MOST, but for those that its class computes."""
    known = {
        size: getattr(config, size, None)
        for size in MOST
        if not isinstance(getattr(type(config), size, None), property)
    }
    return {size: value for size, value in known.items() if value is not None}


@functools.cache
def _hub_is_out_of_reach() -> bool:
    """Whether the hub's name cannot be resolved, and no proxy would do it: its client would try for a minute, each time."""
    try:
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, None)
    except OSError:
        return not getproxies()
    return False


def _check_sizes(values: object, name: str, field: str) -> None:
    """Raises ConfigurationError where a size in a config.json is no whole number, or one that no model has."""
    if isinstance(values, list):
        for value in values[: MOST["num_hidden_layers"]]:
            _check_sizes(value, name, field)
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        most = MOST.get(key) or (MOST["num_hidden_layers"] if "layers" in str(key) else MOST_ELSEWHERE)
        wrong = isinstance(value, int | float) and abs(value) > most
        if key in MOST and value is not None and not isinstance(value, list):
            wrong = wrong or not isinstance(value, int) or isinstance(value, bool) or value < 1
        if wrong:
            told = shown(value) if len(shown(value)) < MOST_WORDS else "a value of that length"
            raise ConfigurationError(
                f"{field}: {name!r}: {key} in its config.json is {told}, and must be a whole number from 1 to {most}",
                field=field,
            )
        _check_sizes(value, name, field)


@functools.lru_cache(maxsize=256)
def attention_of(name: str, asked: str, preferred: str) -> str:
    """How the model called `name` attends where `asked` is wanted: eager where it attends by code of its own; with `auto`,
    `preferred` or what comes next. A model that cannot be read is taken to do as asked; its job says why it cannot."""
    try:
        config = model_config(name)
    except ConfigurationError:
        return preferred if asked == "auto" else asked
    if own_code(config):
        return "eager"
    return settled(config, preferred) if asked == "auto" else asked


def _switch_dropout_off(config: PreTrainedConfig) -> None:
    for attribute, value in list(vars(config).items()):
        if attribute.endswith(NOISE) and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, attribute, 0.0)


def shortened(config: PreTrainedConfig, device: Device) -> PreTrainedConfig:
    """`config` with as many layers as the device builds, where the model's layers are all alike from the second on; else as it
    is."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if device.layers is None or hasattr(text, "decoder_layers"):  # num_hidden_layers is its encoder's
        return config
    if text.num_hidden_layers <= device.layers or len(set(kinds or ())) > 1:
        return config
    if not _alike(config.to_json_string()):
        return config
    depth = text.num_hidden_layers
    try:
        text.num_hidden_layers = device.layers
    except NotImplementedError:  # ProphetNet's is a sum
        return config
    setattr(text, DEPTH, depth)
    if kinds and len(text.layer_types) > device.layers:  # some make it of the number of layers
        text.layer_types = kinds[: device.layers]
    return config


@functools.lru_cache(maxsize=64)
def _alike(config_json: str) -> bool:
    """Whether every layer but the first has the same parameters as the second, in the whole model of that configuration: some have
    dense layers first, or experts in every other one. The model is built on meta, once for each configuration."""
    values = PreTrainedConfig._decode_special_floats(json.loads(config_json))
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    auto = AutoModel if type(config) in AutoModel._model_mapping else AutoModelForCausalLM
    whole = build(auto, config, torch.bfloat16, "eager")
    for stack in layer_stacks(whole):
        shapes = [
            [(name, parameter.shape, parameter.dtype) for name, parameter in layer.named_parameters()]
            for layer in stack.layers[1:]
        ]
        if any(one != shapes[0] for one in shapes):
            return False
    return True


def hidden_size(name: str) -> int:
    """What transformers takes for the hidden size of the model called `name`, of several the largest. Raises ConfigurationError."""
    config = text_of(model_config(name))
    size = getattr(config, "hidden_size", None) or max(getattr(config, "hidden_sizes", None) or [0])
    if not size:
        raise ConfigurationError(f"model: {name!r} has no hidden size in its config.json", field="model")
    return int(size)


def hidden_width(config: PreTrainedConfig) -> int:
    """How many numbers a trunk gives per token: OPT may project its hidden states down to its embeddings' width."""
    return getattr(config, "word_embed_proj_dim", None) or config.hidden_size
