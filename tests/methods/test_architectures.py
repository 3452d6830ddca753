"""Every kind of causal language model that transformers has: taken as it is, or refused; never another model with status ok.

Tiny configurations, with the fields that most architectures share. Those that these fields do not build are not in the lists, nor
are architectures that transformers has added since. Sequences are three times as long as sliding windows.
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

from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.kv_cache import unable_to_decode
from vrambench.methods.models.attention import implementation, own_code, settled, sight, unable
from vrambench.methods.models.config import model_config
from vrambench.methods.models.parts import Inputs, head, hidden_states, logits
from vrambench.methods.rollout import GREEDY, generate

CPU = get_device("cpu")
WINDOW, LENGTH = 4, 12
SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    "max_position_embeddings": 256, "ffn_dim": 96, "word_embed_proj_dim": 64,
}  # fmt: skip
OTHERWISE: dict[str, dict[str, Any]] = {
    "falcon": {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "head_dim": None},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    "codegen": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4},
    "xglm": {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96},
    "gpt_neo": {
        "hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW,
    },
    "beam": {"num_group": 2, "n_group": 2, "topk_group": 1},
    "llama4_text": {"attention_chunk_size": WINDOW, "intermediate_size_mlp": 96},
    "deepseek_v3": {
        "head_dim": None, "num_key_value_heads": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16,
        "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    },
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 2},
    "recurrent_gemma": {"attention_window_size": WINDOW, "lru_width": 64},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 8, "mamba_chunk_size": 8, "attn_layer_indices": [1]},
    "falcon_h1": {
        "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_ssm": 128, "mamba_d_state": 8, "mamba_chunk_size": 8,
    },
    "mamba2": {"num_heads": 4, "head_dim": 32, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "qwen3_next": {
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 32,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
}  # fmt: skip

ALL_SEEN = (
    "apertus", "arcee", "bitnet", "cohere", "gemma", "glm", "glm4", "gpt2", "gpt_neox", "granite", "helium", "llama", "nanochat",
    "nemotron", "olmo", "olmo2", "olmoe", "opt", "persimmon", "phi", "phimoe", "qwen2_moe", "qwen3_moe", "seed_oss", "smollm3",
    "deepseek_v3", "stablelm", "biogpt",
)  # fmt: skip
WINDOWED = (
    "cohere2", "exaone4", "gemma3_text", "ministral", "mistral", "mixtral", "olmo3", "phi3", "qwen2", "qwen3", "starcoder2",
)  # fmt: skip
EAGER = ("gemma2", "gpt_oss", "vaultgemma")
"""Those that cap scores or have sinks."""
OWN_ATTENTION = ("bloom", "codegen", "falcon", "gpt_neo", "gpt_neox_japanese", "gptj", "mpt", "xglm")
STATES = ("bamba", "falcon_h1", "jamba", "lfm2", "mamba", "mamba2", "qwen3_next", "recurrent_gemma")
BOTH_WAYS = ("bert", "roberta", "electra")
ENCODER_DECODER = ("bart", "marian", "pegasus")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def configured(kind: str) -> Any:
    own = OTHERWISE.get(kind, {})
    values = SMALL | {"sliding_window": WINDOW} if kind in (*WINDOWED, *EAGER) else SMALL
    values = {name: value for name, value in (values | own).items() if value is not None or name.endswith("_id")}
    if kind in ("falcon", "gptj", "codegen", "mpt", "xglm", "gpt_neo"):
        values = {"vocab_size": 128} | {name: value for name, value in own.items() if value is not None}
    config = CONFIG_MAPPING[kind](**values)
    for name, value in list(vars(config).items()):
        if name.endswith(("dropout", "pdrop", "jitter_noise")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def tiny(config: Any, kernel: str) -> nn.Module:
    torch.manual_seed(0)
    made = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model: nn.Module = made._from_config(config, attn_implementation=kernel)
    return model.eval()


def tokens_of(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(1, 127, (2, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kernel", ["flash", "efficient", "math", "sdpa", "eager"])
@pytest.mark.parametrize("kind", [*ALL_SEEN, *WINDOWED, *EAGER, *OWN_ATTENTION, *STATES, "llama4_text"])
@torch.no_grad()
def test_states_are_those_of_transformers_own_attention_and_nothing_later_moves_them(kind: str, kernel: str) -> None:
    config = configured(kind)
    assert (sight(config) == WINDOW) == (kind in (*WINDOWED, *EAGER, "recurrent_gemma", "llama4_text"))
    if unable(config, kernel) or (own_code(config) and kernel != "eager"):
        pytest.skip(f"{kind} does not attend so")
    if kind == "llama4_text" and kernel in ("flash", "math"):
        pytest.skip("chunks need a mask, as a rule says")
    model: Any = tiny(config, "eager")
    tokens = tokens_of()
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 127
    expected = model(input_ids=tokens, use_cache=False).logits
    model.set_attn_implementation(implementation(kernel, config, tokens=LENGTH))
    with CPU.attention(kernel):
        first, again, later = (hidden_states(model, Inputs(given)) for given in (tokens, tokens, changed))
        logits = model(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.testing.assert_close(first[:, :8], later[:, :8], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("kind", [*ALL_SEEN, *WINDOWED, *EAGER, *OWN_ATTENTION, *STATES, "llama4_text"])
@torch.no_grad()
def test_cached_decoding_is_one_plain_pass(kind: str, kernel: str) -> None:
    config = configured(kind)
    kernel = settled(config, "efficient") if kernel == "auto" else kernel
    if unable(config, kernel) or (own_code(config) and kernel != "eager"):
        pytest.skip(f"{kind} does not attend so")
    model: Any = tiny(config, implementation(kernel, config, tokens=LENGTH))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(3)  # random weights of their usual size barely prefer one token to another
    for prompt in (2, 7):
        made = generate(model, tokens_of(prompt), LENGTH - prompt, GREEDY, CPU)
        logits = model(input_ids=made, use_cache=False).logits
        assert torch.equal(made[:, prompt:], logits[:, prompt - 1 : -1].argmax(-1))


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "jamba", "bloom", "gpt_oss"])
def test_half_precision_generates_and_learns(kind: str) -> None:
    model: Any = tiny(configured(kind), "eager").to(torch.bfloat16)
    assert generate(model, tokens_of(5), 3, GREEDY, CPU).shape == (2, 8)
    made = logits(model, hidden_states(model, Inputs(tokens_of())))
    assert made.dtype == torch.bfloat16
    made.float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.lm_head.parameters())


@pytest.mark.parametrize("kind", ["rwkv", "openai-gpt"])
def test_what_keeps_no_common_cache_is_said_not_to_generate(kind: str) -> None:
    assert "SFT works" in (unable_to_decode(CONFIG_MAPPING[kind]()) or "")


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [("llama", "flash"), ("mistral", "flash"), ("gemma2", "eager"), ("gpt_oss", "eager"), ("deepseek_v3", "efficient")],
)
def test_auto_is_what_the_architecture_can(kind: str, kernel: str) -> None:
    assert settled(configured(kind), "flash") == kernel


def test_a_transformers_that_lets_capped_scores_be_left_out_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured("gemma2")
    monkeypatch.setattr(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], "_supports_sdpa", True)  # as before 5.20
    assert settled(config, "flash") == "eager"
    assert "caps its scores" in (unable(config, "sdpa") or "")


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


@pytest.mark.parametrize("kind", sorted({*ALL_SEEN, *LOGIT_FIELDS}))
def test_our_head_gives_the_logits_of_the_whole_model(kind: str) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    config = configured(kind)
    for name, value in LOGIT_FIELDS.get(kind, {}).items():
        setattr(config, name, value)
    model: Any = tiny(config, "eager")
    tokens = torch.randint(128, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_()
        expected = model(input_ids=tokens, use_cache=False).logits
        states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        assert torch.equal(logits(model, states), expected)
        if kind in LOGIT_FIELDS:
            assert not torch.allclose(head(model)(states), expected, atol=0.1)


@pytest.mark.parametrize("kind", sorted({*ALL_SEEN, *WINDOWED, *OWN_ATTENTION, *STATES}))
def test_those_are_not_refused(kind: str, tmp_path: Any) -> None:
    assert model_config(saved(kind, tmp_path)).model_type == kind


@pytest.mark.parametrize("kind", BOTH_WAYS)
def test_an_encoder_is_refused(kind: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"is a {kind}, which reads in both directions"):
        model_config(saved(kind, tmp_path))


@pytest.mark.parametrize("kind", ENCODER_DECODER)
def test_an_encoder_decoder_is_refused(kind: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"is a {kind}, which has an encoder"):
        model_config(saved(kind, tmp_path))


def test_an_argument_that_no_kernel_here_knows_is_refused() -> None:
    model: Any = tiny(configured("gpt_oss"), implementation("efficient"))
    with pytest.raises(ConfigurationError, match=r"GptOssAttention.*'s_aux'"):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False)


def test_jitter_of_routers_is_switched_off_as_dropout_is(tmp_path: Any) -> None:
    CONFIG_MAPPING["phimoe"](router_jitter_noise=0.01).save_pretrained(tmp_path)
    assert model_config(str(tmp_path)).router_jitter_noise == 0
