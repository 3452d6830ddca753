"""Every kind of causal language model that transformers has: taken as it is, or refused; never another model with status ok.

Tiny configurations, with the fields that most architectures share. Those that these fields do not build are not in the lists, nor
are architectures that transformers has added since.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.attention import implementation
from vrambench.methods.models.config import model_config
from vrambench.methods.models.parts import head, logits

SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    "max_position_embeddings": 256, "ffn_dim": 96, "word_embed_proj_dim": 64,
}  # fmt: skip

TAKEN = (
    "apertus", "arcee", "bitnet", "cohere", "exaone4", "gemma", "gemma3_text", "glm", "glm4", "gpt2", "gpt_neox", "granite",
    "helium", "llama", "ministral", "mistral", "mixtral", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt",
    "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2",
)  # fmt: skip
OWN_ATTENTION = (
    "bloom",
    "codegen",
    "falcon",
    "falcon_h1",
    "gpt_neox_japanese",
    "gptj",
    "mamba",
    "mamba2",
    "rwkv",
    "xglm",
)
BOTH_WAYS = ("bert", "roberta", "electra")
ENCODER_DECODER = ("bart", "marian", "pegasus")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def tiny(kind: str, kernel: str, **fields: Any) -> nn.Module:
    config = CONFIG_MAPPING[kind](**SMALL | fields)
    for name in (
        "attention_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "dropout",
        "hidden_dropout",
        "router_jitter_noise",
    ):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    model: nn.Module = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(config, attn_implementation=kernel)
    return model.eval()


@pytest.mark.parametrize("kind", TAKEN)
def test_logits_are_those_of_transformers_own_attention_and_nothing_later_moves_them(kind: str) -> None:
    model: Any = tiny(kind, "eager")
    tokens = torch.randint(128, (2, 12), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 128
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
        model.set_attn_implementation(implementation("efficient"))
        first, again = (model(input_ids=tokens, use_cache=False).logits for _ in range(2))
        later = model(input_ids=changed, use_cache=False).logits
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.testing.assert_close(first[:, :8], later[:, :8], rtol=1e-5, atol=1e-6)


def saved(kind: str, folder: Any) -> str:
    CONFIG_MAPPING[kind]().save_pretrained(folder)
    return str(folder)


# What an architecture does to its logits, where it does something, and values for it that are not its defaults.
LOGIT_FIELDS: dict[str, dict[str, float]] = {
    "beam": {"final_logit_softcapping": 1.5},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3},
    "gemma2": {"final_logit_softcapping": 1.5},
    "gemma3_text": {"final_logit_softcapping": 1.5},
    "granite": {"logits_scaling": 4.0},
    "granitemoe": {"logits_scaling": 4.0},
    "hyperclovax": {"logits_scaling": 4.0},
    "falcon_h1": {"lm_head_multiplier": 0.3},
    "nanochat": {"final_logit_softcapping": 1.5},
    "recurrent_gemma": {"logits_soft_cap": 1.5},
    "vaultgemma": {"final_logit_softcapping": 1.5},
}


@pytest.mark.parametrize("kind", sorted({*TAKEN, *LOGIT_FIELDS}))
def test_our_head_gives_the_logits_of_the_whole_model(kind: str) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    model: Any = tiny(kind, "eager", **LOGIT_FIELDS.get(kind, {}))
    tokens = torch.randint(128, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_()
        expected = model(input_ids=tokens, use_cache=False).logits
        states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        assert torch.equal(logits(model, states), expected)
        if kind in LOGIT_FIELDS:
            assert not torch.allclose(head(model)(states), expected, atol=0.1)


@pytest.mark.parametrize("kind", ["bert", "ernie", "roc_bert", "electra"])
def test_a_decoder_that_transforms_states_before_its_head_is_refused(kind: str) -> None:
    model = tiny(kind, "eager", is_decoder=True)
    with pytest.raises(ConfigurationError, match=f"a {kind} transforms its hidden states before its output head"):
        head(model)


@pytest.mark.parametrize("kind", TAKEN)
def test_those_are_not_refused(kind: str, tmp_path: Any) -> None:
    assert model_config(saved(kind, tmp_path)).model_type == kind


@pytest.mark.parametrize("kind", OWN_ATTENTION)
def test_a_model_that_attends_by_code_of_its_own_is_refused(kind: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"is a {kind}, which attends by code of its own"):
        model_config(saved(kind, tmp_path))


@pytest.mark.parametrize("kind", BOTH_WAYS)
def test_an_encoder_is_refused(kind: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"is a {kind}, which reads in both directions"):
        model_config(saved(kind, tmp_path))


@pytest.mark.parametrize("kind", ENCODER_DECODER)
def test_an_encoder_decoder_is_refused(kind: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"is a {kind}, which has an encoder"):
        model_config(saved(kind, tmp_path))


def test_an_argument_that_no_kernel_here_knows_is_refused() -> None:
    model: Any = tiny("gpt_oss", implementation("efficient"))
    with pytest.raises(ConfigurationError, match=r"GptOssAttention.*'s_aux'"):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False)


def test_jitter_of_routers_is_switched_off_as_dropout_is(tmp_path: Any) -> None:
    CONFIG_MAPPING["phimoe"](router_jitter_noise=0.01).save_pretrained(tmp_path)
    assert model_config(str(tmp_path)).router_jitter_noise == 0
