"""Models that give scores: one for each token (values, rewards), or one for each sequence (classifiers).

model = load_scalar_model(setup, device, model="tiny", seed=0, trained=True)
model(tokens)                       [B,T] in fp32
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedConfig

from vrambench.methods.device import Device
from vrambench.methods.dtypes import DTYPES
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.attention import implementation
from vrambench.methods.models.config import hidden_width, model_config, read_config, shortened
from vrambench.methods.models.fill import build, fill
from vrambench.methods.models.load import load, read_weights, ready, seeded
from vrambench.methods.models.modeling import PreTrainedModel
from vrambench.methods.models.parts import placed, trunk
from vrambench.methods.setup import Setup


class ScalarModel(nn.Module):
    """A model with one score per token: a trunk and a linear head without bias."""

    def __init__(self, trunk: nn.Module, score: nn.Linear) -> None:
        super().__init__()
        self.trunk = trunk
        self.score = score

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids [B,T] -> scores [B,T] in fp32."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        decoder = trunk(self.trunk)
        hidden = decoder(input_ids=tokens, use_cache=False, **placed(decoder, positions)).last_hidden_state
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
    with seeded(device, seed):
        body: nn.Module = load(AutoModel, model, config, setup, device, field=field)
        if trained:
            body = setup.adapter.attach(body, setup.workload)
        body = ready(body, setup, device)
        width = hidden_width(config)
        head_dtype = dtype if full else DTYPES[setup.workload.adapter_dtype or "fp32"]
        score = nn.Linear(width, 1, bias=False, device=device.torch, dtype=head_dtype)
        nn.init.normal_(score.weight, std=(width + 1) ** -0.5)
    return ScalarModel(body, score).train()


class RewardModel(nn.Module):
    """A classifier of one label, which is trained: its score of a sequence is that of the last token which is not padding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids [B,T] -> scores [B] in fp32."""
        return self.model(input_ids=tokens, use_cache=False).logits.squeeze(-1).float()


def load_reward_model(setup: Setup, device: Device, *, model: str, seed: int, padding: int) -> RewardModel:
    """transformers' classifier of one label over the trunk of `model`, in the cell's precision and with its adapter, beside which
    PEFT trains a copy of the head. `padding`: the token behind sequences that are shorter than others, -1 for none.

    Raises ConfigurationError, about `model`, where transformers has no such classifier.
    """
    config = model_config(model)
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ConfigurationError(
            f"model: transformers has no classifier of sequences for {model!r} ({config.model_type}), which a reward model is",
            field="model",
        )
    config.num_labels = 1
    with seeded(device, seed):
        loaded = load(AutoModelForSequenceClassification, model, config, setup, device)
        loaded.config.get_text_config().pad_token_id = padding
        adapted = setup.adapter.attach(loaded, setup.workload)
    return RewardModel(ready(adapted, setup, device))


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
    config = read_config(model, "reward")
    if config.num_labels > 2:
        raise ConfigurationError(
            f"reward: {model!r} has {config.num_labels} labels; a reward takes one or two", field="reward"
        )
    _check_vocabulary(config, setup, model, "reward")
    tokens = setup.workload.sequence_tokens
    kernel = implementation(setup.workload.attention, config, tokens=tokens, simulated=device.simulated)
    config = shortened(config, device)
    if device.simulated:
        loaded = build(AutoModelForSequenceClassification, config, dtype, kernel)
        fill(loaded, device.torch)
    else:
        loaded = read_weights(
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


def _check_vocabulary(config: PreTrainedConfig, setup: Setup, model: str, field: str) -> None:
    known, used = config.get_text_config().vocab_size, model_config(setup.workload.model).get_text_config().vocab_size
    if known < used:
        raise ConfigurationError(
            f"{field}: {model!r} knows {known} tokens and the policy has {used}; it reads the policy's tokens",
            field=field,
        )
