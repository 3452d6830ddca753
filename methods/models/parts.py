"""The parts of a transformers model, whatever is wrapped around it: trunk, head, stacks of layers.

states = hidden_states(policy, Inputs(tokens))
logits(policy, states)                                             the same as policy(tokens).logits
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedConfig

from vrambench.methods.dtypes import HALF
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.modeling import PreTrainedModel

IGNORED = -100
"""A label that no loss counts, and what stands where a sequence is shorter than others."""

DEPTH = "full_num_hidden_layers"
"""Where a shortened model's configuration keeps how many layers there are."""


def freeze(model: nn.Module) -> nn.Module:
    """The same model, with nothing in it trained."""
    return model.requires_grad_(False)


def trunk(model: nn.Module) -> nn.Module:
    """The model below its output head: gives `last_hidden_state` [B,T,hidden]. Adapters inside it stay at work."""
    whole = unwrapped(model)
    below = whole.base_model
    if below is whole and whole.get_output_embeddings() is not None:
        below = whole.model  # an architecture's base has a name of its own, as in Llama 4
    # A decoder without its encoder (BART's) is wrapped in a module that hands on whatever it is given.
    return below.decoder if type(below).__name__.endswith("DecoderWrapper") else below


def placed(trunk: nn.Module, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """`positions` [1,T], from 0, as an argument of `trunk`, where it takes any: ALiBi and states of fixed size know them
    themselves."""
    if "position_ids" not in inspect.signature(trunk.forward).parameters:
        return {}
    first = first_position(unwrapped(trunk).config)
    return {"position_ids": positions + first if first else positions}


AFTER_PADDING = (
    "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Architectures whose positions begin after the padding token's id."""


def first_position(config: PreTrainedConfig) -> int:
    """The position of a sequence's first token."""
    return int(config.pad_token_id or 0) + 1 if config.model_type in AFTER_PADDING else 0


def head(model: nn.Module) -> nn.Module:
    """The output head: hidden states [...,hidden] to logits [...,vocabulary]."""
    return unwrapped(model).get_output_embeddings()


class Inputs(NamedTuple):
    """What a model is trained on. `tokens` [B,T]. `labels` [B,T]: which tokens are learnt, IGNORED for the others; None for all.
    `mask` [B,T]: 1 where no padding is. `positions` [1,T]: of each token in its document, where several are in one row. `trained`:
    how many labels are predicted, where not all are."""

    tokens: torch.Tensor
    labels: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    trained: int | None = None

    @property
    def wanted(self) -> torch.Tensor:
        """The labels, or the tokens where all are learnt."""
        return self.tokens if self.labels is None else self.labels

    @property
    def predicted(self) -> int:
        """How many labels are."""
        return self.tokens.numel() - len(self.tokens) if self.trained is None else self.trained


def arguments(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """What `model`, whole or its trunk, is called with for `inputs`, but labels."""
    tokens, positions = inputs.tokens, inputs.positions
    if positions is None:
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    given: dict[str, Any] = {"input_ids": tokens, "use_cache": False, **placed(model, positions)}
    return given if inputs.mask is None else given | {"attention_mask": inputs.mask}


STATES_DIVISOR = "logits_mup_width_multiplier"
WORDS = "unpadded_vocab_size"
"""Fields of configurations that say by what last hidden states are divided, and how many logits are kept (Inkling)."""


def before_head(model: nn.Module) -> dict[str, nn.Module]:
    """By name, what lies between trunk and output head, as BERT's `cls` does; the head itself may be in it."""
    known = (trunk(model), head(model))
    parts = [(name, part) for name, part in unwrapped(model).named_children() if known[0] not in part.modules()]
    return {name: part for name, part in parts if part is not known[1] and any(True for _ in part.parameters())}


def as_head_gets(model: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """The trunk's `states` [...,hidden] as they reach the output head."""
    output: Any = head(model)
    width = getattr(unwrapped(model).config.get_text_config(), STATES_DIVISOR, None)
    if width is not None:
        states = states / width
    for part in before_head(model).values():
        with _handing_on(output):
            states = part(states)
    if "lm_head" in (unwrapped(model)._keep_in_fp32_modules_strict or ()):
        return states.to(output.weight.dtype)
    return as_head_wants(states, output)


@contextmanager
def _handing_on(module: nn.Module) -> Iterator[None]:
    """Within, `module` gives what it is given."""
    module.forward = lambda given: given
    try:
        yield
    finally:
        del module.forward


def hidden_states(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """Last hidden states [B, T, hidden], no cache."""
    decoder = trunk(model)
    return decoder(**arguments(decoder, inputs)).last_hidden_state


class LogitChanges(NamedTuple):
    """What an architecture does to its logits after the head, in this order; None for nothing. `upcast`: to fp32."""

    factor: float | None = None
    divisor: float | None = None
    cap: float | None = None
    upcast: bool = False

    @property
    def scale(self) -> float:
        """Factor and divisor together."""
        return (1.0 if self.factor is None else self.factor) / (1.0 if self.divisor is None else self.divisor)


FACTORS = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling",)
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Fields of configurations that say what is done to logits (Cohere, Falcon H1; Granite; Gemma 2, RecurrentGemma,
xLSTM)."""
MULTIPLIED_BY_DIVISOR = ("hyperclovax",)
UPCAST = ("beam",)
"""Architectures in which the divisor is a factor, and that soft-cap in fp32."""


def logit_changes(model: nn.Module) -> LogitChanges:
    return configured_changes(unwrapped(model).config)


def configured_changes(config: PreTrainedConfig) -> LogitChanges:
    """As transformers' models of that configuration do in their forward pass."""
    text = config.get_text_config()

    def first(names: tuple[str, ...]) -> float | None:
        values = [value for name in names if (value := getattr(text, name, None)) is not None]
        return values[0] if values else None

    factor, divisor = first(FACTORS), first(DIVISORS)
    if text.model_type in MULTIPLIED_BY_DIVISOR:
        factor, divisor = divisor, None
    return LogitChanges(factor, divisor, first(CAPS), text.model_type in UPCAST)


def logits(model: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Logits [..., vocabulary] of hidden states [..., hidden], as the model's own forward pass makes them."""
    changes, output = logit_changes(model), head(model)
    made = output(as_head_gets(model, states))
    words = getattr(unwrapped(model).config.get_text_config(), WORDS, None)
    if words is not None and words < made.shape[-1]:
        made = made[..., :words]
    if changes.factor is not None:
        made = made * changes.factor
    if changes.divisor is not None:
        made = made / changes.divisor
    if changes.cap is not None:
        if changes.upcast:
            made = made.float()
        made = made / changes.cap
        made = torch.tanh(made)
        made = made * changes.cap
    return made


def plain_head(model: nn.Module, asked: str, *, bias: bool = True) -> Any:
    """The head, whose weight is read as it is. Raises ConfigurationError, about what was `asked`, where that would leave something
    out: an adapter on the head, or (with bias=False) a bias."""
    found: Any = head(model)
    if hasattr(found, "base_layer"):
        raise ConfigurationError(
            f"{asked} reads the output head's weight as it is and would leave out the adapter on it: take the head from "
            "lora_target_modules, or another loss",
            field="loss",
        )
    between = ", ".join(before_head(model))
    if between or getattr(unwrapped(model).config.get_text_config(), STATES_DIVISOR, None) is not None:
        what = f"layers before it ({between})" if between else "scaling before it"
        raise ConfigurationError(
            f"{asked} reads the output head's weight as it is and would leave out the {what}: take loss: scored, or nll",
            field="loss",
        )
    if not bias and getattr(found, "bias", None) is not None:
        raise ConfigurationError(f"{asked} knows no bias of the output head, and this model's has one", field="loss")
    return found


def cap_alone(model: nn.Module, loss: str, kernels: str) -> float | None:
    """At what the model caps its logits, for `kernels` that do nothing else to them. Raises ConfigurationError, about `loss`, where
    the model scales them."""
    changes = logit_changes(model)
    if changes.scale != 1.0:
        raise ConfigurationError(
            f"loss: {loss!r}: {kernels} soft-capping of logits alone, and this model scales them by {changes.scale:g}",
            field="loss",
        )
    return changes.cap


def as_head_wants(states: torch.Tensor, output: nn.Module) -> torch.Tensor:
    """fp32 states in the type of a head of half precision, as Mamba casts its residual stream; all others as they are."""
    wanted = getattr(getattr(output, "weight", None), "dtype", None)
    return states.to(wanted) if states.dtype == torch.float32 and wanted in HALF else states


def heads(module: nn.Module) -> set[nn.Module]:
    """The output heads of every transformers model in `module`, with what is inside them where an adapter wraps them."""
    models = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    found = [model.get_output_embeddings() for model in models]
    return {inner for part in found if part is not None for inner in part.modules()}


def head_paths(module: nn.Module) -> set[str]:
    """Their paths below `module`."""
    found = heads(module)
    return {path for path, part in module.named_modules() if part in found}


def stacked(module: nn.Module) -> list[str]:
    """The names of `module`'s own parameters that are stacks of matrices, one for each expert [experts, ., .]."""
    if isinstance(module, _ConvNd):
        return []
    own = module.named_parameters(recurse=False)
    return [name for name, parameter in own if parameter.dim() == 3 and parameter.is_floating_point()]


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
            count = getattr(config, "num_hidden_layers", None)
            for part in model.modules():
                if isinstance(part, nn.ModuleList) and len(part) == count:
                    stacks.setdefault(part, LayerStack(list(part), getattr(config, DEPTH, count)))
    return list(stacks.values())


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


def saves_elsewhere() -> bool:
    """Whether what autograd saves now does not stay as it is (hooks on saved tensors)."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


ARGUMENTS = ("past_key_values", "cache_params")
"""Under which names a model takes its cache."""


def virtual_tokens(model: Any) -> int:
    """By how many tokens an adapter makes every sequence longer."""
    config = getattr(model, "active_peft_config", None)
    return config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0


def unwrapped(model: Any) -> Any:
    """The transformers model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
