"""Models by name: configurations, policies, models with one score per token, and classifiers.

    config = model_config("llama-2-7b")                                a preset, a folder, or a hub id
    policy = load_model(setup, device, seed=0)                         in the cell's precision, with its adapter
    hidden = trunk(policy)(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
    logits = head(policy)(hidden)                                      the same as policy(tokens).logits

Every model comes in train mode with dropout probabilities of zero: `eval()` would also switch gradient checkpointing
off.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vrambench.methods.amp import recompute_contexts
from vrambench.methods.device import Device
from vrambench.methods.dtypes import DTYPES
from vrambench.methods.errors import ConfigurationError, did_you_mean
from vrambench.methods.models.attention import implementation
from vrambench.methods.models.fill import build, fill
from vrambench.methods.models.presets import PRESETS
from vrambench.methods.precision.nf4 import forbid_repacking
from vrambench.methods.setup import Setup

NOISE = ("pdrop", "dropout", "dropout_prob", "layerdrop", "jitter_noise")
"""How fields end that make a model's passes differ from each other."""

DEPTH = "full_num_hidden_layers"
"""Where a shortened model's configuration keeps how many layers there are."""

# Fields by which an architecture changes logits after the head. Heads are applied here, in chunks, and would skip that.
LOGIT_FIELDS = {
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "lm_head_multiplier": 1.0,
}


def model_config(name: str, *, field: str = "model") -> PreTrainedConfig:
    """The configuration of a causal language model: a preset, a folder with a config.json, or a hub id. Dropout is
    zero.

    Raises ConfigurationError, about `field`, where there is no such model or it is of a kind that cannot be trained
    here.
    """
    config = _read_config(name, field)
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigurationError(
            f"{field}: {name!r} is a {config.model_type}, not a causal language model", field=field
        )
    _check_attends_as_told(config, name, field)
    for attribute, neutral in LOGIT_FIELDS.items():
        value = getattr(config, attribute, neutral)
        if value not in (None, neutral):
            raise ConfigurationError(
                f"{field}: {name!r} changes its logits after the head ({attribute} {value}), which is not supported",
                field=field,
            )
    return config


def _check_attends_as_told(config: PreTrainedConfig, name: str, field: str) -> None:
    """Raises ConfigurationError where a model would attend in another way than by the kernels here: by code of its own, which often
    masks nothing unless it is asked to, or in both directions."""
    made = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    why = None
    if config.is_encoder_decoder:
        why = "has an encoder, and only decoders are trained here"
    elif getattr(config, "is_decoder", None) is False and hasattr(config, "add_cross_attention"):
        why = "reads in both directions; with is_decoder: true in its config.json it is a decoder"
    elif made is not None and not getattr(made, "_supports_attention_backend", False):
        why = "attends by code of its own, which transformers' attention functions do not reach"
    if why:
        raise ConfigurationError(f"{field}: {name!r} is a {config.model_type}, which {why}", field=field)


def load_model(setup: Setup, device: Device, *, model: str | None = None, adapter: bool = True, seed: int) -> nn.Module:
    """The cell's causal language model (or `model`), on `device`, in the cell's precision, with the cell's adapter.

    With adapter=False it is the base alone: loaded again with the same seed it has the same weights, so it serves as a
    frozen copy. Weights are random or pretrained as the workload says; on the simulated device there are shapes only.
    """
    name = model or setup.workload.model
    config = model_config(name)
    with _seeded(device, seed):
        loaded = _load(AutoModelForCausalLM, name, config, setup, device)
        result = setup.adapter.attach(loaded, setup.workload) if adapter else loaded
    return _ready(result, setup, device)


def freeze(model: nn.Module) -> nn.Module:
    """The same model, with nothing in it trained."""
    return model.requires_grad_(False)


def trunk(model: nn.Module) -> nn.Module:
    """The model below its output head: gives `last_hidden_state` [B,T,hidden]. Adapters inside it stay at work."""
    return _unwrapped(model).base_model


def head(model: nn.Module) -> nn.Module:
    """The output head: hidden states [...,hidden] to logits [...,vocabulary]."""
    return _unwrapped(model).get_output_embeddings()


def heads(module: nn.Module) -> set[nn.Module]:
    """The output heads of every transformers model in `module`."""
    models = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    found = [model.get_output_embeddings() for model in models]
    return {part for part in found if part is not None}


class LayerStack(NamedTuple):
    """A model's equal layers, in order; `depth` is how many the model really has where fewer are built."""

    layers: list[nn.Module]
    depth: int


def layer_stacks(module: nn.Module) -> list[LayerStack]:
    """The stacks of layers of every transformers model in `module`, each once."""
    stacks: dict[nn.ModuleList, LayerStack] = {}
    for model in module.modules():
        if isinstance(model, PreTrainedModel):
            config = model.config.get_text_config()
            count = config.num_hidden_layers
            for part in model.modules():
                if isinstance(part, nn.ModuleList) and len(part) == count:
                    stacks.setdefault(part, LayerStack(list(part), getattr(config, DEPTH, count)))
    return list(stacks.values())


def _shortened(config: PreTrainedConfig, device: Device) -> PreTrainedConfig:
    """`config` with as many layers as the device builds, where the model's layers are all alike from the second on; else as it
    is."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if device.layers is None or text.num_hidden_layers <= device.layers or len(set(kinds or ())) > 1:
        return config
    if not _alike(config.to_json_string()):
        return config
    setattr(text, DEPTH, text.num_hidden_layers)
    text.num_hidden_layers = device.layers
    if kinds:
        text.layer_types = kinds[: device.layers]
    return config


@functools.lru_cache(maxsize=64)
def _alike(config_json: str) -> bool:
    """Whether every layer but the first has the same parameters as the second, in the whole model of that configuration: some have
    dense layers first, or experts in every other one. The model is built on meta, once for each configuration."""
    values = json.loads(config_json)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    whole = build(AutoModel, config, torch.bfloat16, implementation("efficient"))
    for stack in layer_stacks(whole):
        shapes = [
            [(name, parameter.shape, parameter.dtype) for name, parameter in layer.named_parameters()]
            for layer in stack.layers[1:]
        ]
        if any(one != shapes[0] for one in shapes):
            return False
    return True


@contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Gradient checkpointing off, for rollouts: transformers drops the key-value cache of a training model that has it
    on."""
    active = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in active:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in active:
            module.gradient_checkpointing = True  # type: ignore[assignment]


class ScalarModel(nn.Module):
    """A model with one score per token: a trunk and a linear head without bias."""

    def __init__(self, trunk: nn.Module, score: nn.Linear) -> None:
        super().__init__()
        self.trunk = trunk
        self.score = score

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids [B,T] -> scores [B,T] in fp32."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        hidden = trunk(self.trunk)(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
        return self.score(hidden.to(self.score.weight.dtype)).squeeze(-1).float()


def load_scalar_model(setup: Setup, device: Device, *, model: str, seed: int, trained: bool) -> ScalarModel:
    """A value or reward model over the trunk of `model`, on `device`, in the cell's precision; the head is never
    quantised.

    Where it is `trained` it carries the cell's adapter, as the policy does, and the head is of the adapter's type;
    otherwise it is as built, for the caller to freeze. The head starts as N(0, 1/sqrt(width+1)), as in Stiennon et al.,
    Learning to summarize from human feedback. Raises ConfigurationError, about `model` or `reward_model`, where there
    is no such model or it knows fewer tokens than the cell's, whose tokens it reads.
    """
    field = "model" if trained else "reward_model"
    config = model_config(model, field=field)
    _check_vocabulary(config, setup, model, field)
    full = not trained or setup.adapter.trains_base
    dtype = setup.precision.dtype(setup.workload)
    with _seeded(device, seed):
        body: nn.Module = _load(AutoModel, model, config, setup, device, field=field)
        if trained:
            body = setup.adapter.attach(body, setup.workload)
        body = _ready(body, setup, device)
        width = hidden_width(config)
        head_dtype = dtype if full else DTYPES[setup.workload.adapter_dtype or "fp32"]
        score = nn.Linear(width, 1, bias=False, device=device.torch, dtype=head_dtype)
        nn.init.normal_(score.weight, std=(width + 1) ** -0.5)
    return ScalarModel(body, score).train()


def hidden_width(config: PreTrainedConfig) -> int:
    """How many numbers a trunk gives per token: OPT may project its hidden states down to its embeddings' width."""
    return getattr(config, "word_embed_proj_dim", None) or config.hidden_size


class Classifier(nn.Module):
    """A sequence classifier that gives one score per sequence."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids [B,T] -> scores [B] in fp32: the only label's logit, or the second's minus the first's."""
        # Embeddings, not ids: decoders then score the last position and look for no padding token before it.
        logits = self.model(inputs_embeds=self.model.get_input_embeddings()(tokens)).logits.float()
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def load_classifier(setup: Setup, device: Device, *, model: str, dtype: torch.dtype) -> Classifier:
    """The sequence classifier in a folder or under a hub id, weights of type `dtype`, as a reward; on meta only its
    shape.

    Raises ConfigurationError, about `reward`, where it has more than two labels or knows fewer tokens than the cell's
    model: a reward reads the policy's tokens as they are.
    """
    config = _read_config(model, "reward")
    if config.num_labels > 2:
        raise ConfigurationError(
            f"reward: {model!r} has {config.num_labels} labels; a reward takes one or two", field="reward"
        )
    _check_vocabulary(config, setup, model, "reward")
    kernel = implementation(setup.workload.attention)
    config = _shortened(config, device)
    if device.simulated:
        loaded = build(AutoModelForSequenceClassification, config, dtype, kernel)
        fill(loaded, device.torch)
    else:
        loaded = _read_weights(
            AutoModelForSequenceClassification,
            model,
            "reward",
            config=config,
            dtype=dtype,
            attention=kernel,
            device=device,
        )
    # Decoders without a padding token refuse more than one sequence; here no token is padding.
    loaded.config.get_text_config().pad_token_id = -1
    return Classifier(loaded).train()


def _read_config(name: str, field: str) -> PreTrainedConfig:
    if name in PRESETS:
        config = PRESETS[name].config()
    else:
        hint = did_you_mean(name, PRESETS)
        if not Path(name).exists() and ("/" not in name or name.startswith((".", "/", "~"))):
            raise ConfigurationError(
                f"{field}: {name!r} is neither a preset ({', '.join(PRESETS)}) nor a folder nor a hub id{hint}",
                field=field,
            )
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigurationError(f"{field}: {name!r} cannot be read: {reason}{hint}", field=field) from error
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        _switch_dropout_off(part)
    return config


def _switch_dropout_off(config: PreTrainedConfig) -> None:
    for attribute, value in list(vars(config).items()):
        if attribute.endswith(NOISE) and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, attribute, 0.0)


def _check_vocabulary(config: PreTrainedConfig, setup: Setup, model: str, field: str) -> None:
    known, used = config.get_text_config().vocab_size, model_config(setup.workload.model).get_text_config().vocab_size
    if known < used:
        raise ConfigurationError(
            f"{field}: {model!r} knows {known} tokens and the policy has {used}; it reads the policy's tokens",
            field=field,
        )


def _load(
    auto: Any, name: str, config: PreTrainedConfig, setup: Setup, device: Device, *, field: str = "model"
) -> PreTrainedModel:
    """What `auto` makes of `config`, in the cell's precision, on the device; weights as the workload says."""
    workload, precision = setup.workload, setup.precision
    config = _shortened(config, device)
    dtype, kernel = precision.dtype(workload), implementation(workload.attention)
    if workload.weights == "pretrained" and not device.simulated:
        model = _read_weights(
            auto,
            name,
            field,
            config=config,
            dtype=dtype,
            attention=kernel,
            device=device,
            quantization=_quantization_config(setup),
        )
        forbid_repacking(model)
    else:
        model = build(auto, config, dtype, kernel)
        quantize = precision.quantize
        fill(
            model,
            device.torch,
            quantize=quantize and (lambda linear: quantize(linear, workload)),
            keep=[output for output in [model.get_output_embeddings()] if output is not None],
        )
        _tell_peft(model)
    # Nothing here is padded, and transformers would read tokens back from the device to warn about padding without a
    # mask.
    model.config.get_text_config().pad_token_id = None
    return model


def _ready(model: nn.Module, setup: Setup, device: Device) -> nn.Module:
    """In train mode, with gradient checkpointing as the workload says. After the adapter: PEFT would add hooks for it
    again."""
    if setup.workload.gradient_checkpointing:
        base = _unwrapped(model)
        # Its name until transformers 5.22 was gradient_checkpointing_enable.
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        # Checkpointing itself takes autocast from forward to recomputation, but the simulated device's it does not know.
        enable({"use_reentrant": False} | ({"context_fn": recompute_contexts} if device.simulated else {}))
    return model.train()


def _read_weights(
    auto: Any,
    name: str,
    field: str,
    *,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    attention: str,
    device: Device,
    quantization: Any = None,
) -> PreTrainedModel:
    """The checkpoint `name`, straight to the device; transformers quantises it as it reads."""
    if name in PRESETS:
        raise ConfigurationError(
            f"{field}: {name!r} is a preset, a shape without weights; pretrained weights need a folder or a hub id",
            field=field,
        )
    try:
        return auto.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            device_map={"": device.torch},
            quantization_config=quantization,
            trust_remote_code=False,
        )
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(f"{field}: {name!r} cannot be loaded: {reason}", field=field) from error


def _quantization_config(setup: Setup) -> Any:
    """transformers' settings for the cell's precision, None where that is not quantised."""
    precision = setup.precision
    if precision.quantize is None:
        return None
    if precision.quantization_config is None:
        raise ConfigurationError(f"precision: {precision.summary!r} cannot read pretrained weights", field="precision")
    return precision.quantization_config(setup.workload)


def _tell_peft(model: PreTrainedModel) -> None:
    """PEFT asks these flags, which from_pretrained sets, before it looks for bitsandbytes' layers."""
    kinds = {type(module).__name__ for module in model.modules()}
    model.is_loaded_in_8bit = "Linear8bitLt" in kinds
    model.is_loaded_in_4bit = "Linear4bit" in kinds


def _unwrapped(model: Any) -> Any:
    """The transformers model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _seeded(device: Device, seed: int) -> Iterator[None]:
    """Draws from `seed` inside, and leaves the job's own random numbers as they were."""
    devices = [device.torch] if device.kind == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
