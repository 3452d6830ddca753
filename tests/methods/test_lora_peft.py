"""LoRA as it is configured in practice, against PEFT itself: the same trained parameters, by name, shape and type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.config import model_config
from vrambench.methods.models.load import load_model
from vrambench.methods.models.parts import head, trunk

CPU, META = get_device("cpu"), get_device("meta")
MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
PHI3: dict[str, Any] = {
    "model_type": "phi3", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Presets, and two architectures that are none."""
    named = {name: name for name in ("tiny", "tiny-gpt2", "tiny-opt", "tiny-neox", "tiny-mistral")}
    for name, config in (("mixtral", MIXTRAL), ("phi3", PHI3)):
        folder: Path = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps(config))
        named[name] = str(folder)
    return named


def cell_of(precision: str = "bf16", **settings: Any) -> Cell:
    axes = {"precision": precision, "adapter": "lora", "optimizer": "adamw_torch", "offload": "none"}
    return resolve(axes | {"algorithm": "sft"}, settings)


def trained(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (each.shape, each.dtype) for name, each in model.named_parameters() if each.requires_grad}


def by_peft(config: PreTrainedConfig, **lora: Any) -> nn.Module:
    base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **lora))


@pytest.mark.parametrize("device", [CPU, META], ids=lambda device: device.kind)
@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        *((name, {}, {}) for name in ("tiny", "tiny-gpt2", "tiny-opt", "tiny-neox", "tiny-mistral")),
        ("mixtral", {}, {"target_modules": ["q_proj", "v_proj"]}),
        ("phi3", {}, {"target_modules": "all-linear"}),
        ("tiny", {"lora_target_modules": "all-linear"}, {"target_modules": "all-linear"}),
        ("mixtral", {"lora_target_modules": "all-linear"}, {"target_modules": "all-linear"}),
        ("mixtral", {"lora_target_modules": "q_proj,w1,w2,w3"}, {"target_modules": ["q_proj", "w1", "w2", "w3"]}),
        (
            "tiny",
            {"lora_target_modules": r"model\.layers\.1\..*\.(q|v)_proj"},
            {"target_modules": r"model\.layers\.1\..*\.(q|v)_proj"},
        ),
        (
            "mixtral",
            {
                "lora_target_modules": [],
                "lora_target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            },
            {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
        ),
        (
            "mixtral",
            {"lora_target_modules": "q_proj,o_proj", "lora_target_parameters": "0.mlp.experts.down_proj"},
            {"target_modules": ["q_proj", "o_proj"], "target_parameters": ["0.mlp.experts.down_proj"]},
        ),
        ("tiny", {"lora_modules_to_save": "embed_tokens,lm_head"}, {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("tiny", {"lora_modules_to_save": ["norm"]}, {"modules_to_save": ["norm"]}),
        ("tiny-gpt2", {"lora_modules_to_save": ["wte"]}, {"modules_to_save": ["wte"]}),  # tied
        ("tiny-gpt2", {"lora_modules_to_save": ["wte", "lm_head"]}, {"modules_to_save": ["wte", "lm_head"]}),
        ("tiny", {"use_rslora": True, "lora_dropout": 0.1}, {"use_rslora": True, "lora_dropout": 0.1}),
    ],
)
def test_what_is_trained_is_what_peft_trains(
    name: str, ours: dict[str, Any], theirs: dict[str, Any], device: Any, models: dict[str, str]
) -> None:
    cell = cell_of(model=models[name], lora_r=4, lora_alpha=8, **ours)
    mine, real = load_model(cell.setup, device, seed=0), by_peft(model_config(models[name]), **theirs)
    assert trained(mine) == trained(real)
    scales = [
        {path: part.scaling["default"] for path, part in model.named_modules() if isinstance(part, BaseTunerLayer)}
        for model in (mine, real)
    ]
    assert scales[0] == scales[1]
    assert scales[0]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("nf4", torch.bfloat16)]
)
def test_whole_modules_are_of_their_weights_type_and_factors_of_the_adapters(
    precision: str, dtype: torch.dtype
) -> None:
    model = load_model(cell_of(precision, lora_modules_to_save="embed_tokens,lm_head").setup, CPU, seed=0)
    whole = {each for name, (_, each) in trained(model).items() if "modules_to_save" in name}
    factors = {each for name, (_, each) in trained(model).items() if "lora_" in name}
    assert (whole, factors) == ({dtype}, {torch.float32})


def test_whole_modules_learn_and_switched_off_it_is_the_base() -> None:
    cell = cell_of("fp32", lora_modules_to_save="embed_tokens,lm_head")
    model: Any = load_model(cell.setup, CPU, seed=0)
    tokens = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))

    def logits() -> torch.Tensor:
        return head(model)(trunk(model)(input_ids=tokens, use_cache=False).last_hidden_state)

    before = logits().detach()
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.5)
    logits().square().mean().backward()
    whole = [each for name, each in model.named_parameters() if "modules_to_save" in name]
    assert len(whole) == 2
    assert all(each.grad is not None and each.grad.abs().max() > 0 for each in whole)
    optimizer.step()
    assert not torch.allclose(logits(), before)
    with model.disable_adapter():
        torch.testing.assert_close(logits(), before)


def test_a_value_model_takes_what_it_has_of_the_whole_modules() -> None:
    from vrambench.methods.models.scalar import load_scalar_model

    cell = cell_of("bf16", lora_modules_to_save="embed_tokens,lm_head")
    model = load_scalar_model(cell.setup, CPU, model="tiny", seed=0, trained=True)
    whole = {name for name in trained(model) if "modules_to_save" in name}
    assert whole == {"trunk.base_model.model.embed_tokens.modules_to_save.default.weight"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_target_modules": ["q_proj", "v_porj"]}, "'v_porj' is no layer of the model; did you mean 'v_proj'"),
        ({"lora_target_modules": ["query_key_value"]}, r"'query_key_value' is no layer of the model.*q_proj"),
        ({"lora_target_modules": ["input_layernorm"]}, "'input_layernorm' is no layer of the model"),
        (
            {"lora_target_modules": r"self_attn\.q_proj"},
            r"matches the whole path of no layer \(one is model.embed_tokens",
        ),
        (
            {"lora_target_modules": r".*mlp.*"},
            r"^lora_target_modules: '\.\*mlp\.\*' takes in a whole LlamaMLP, and an adapter goes on single layers: write an "
            r"expression that matches these alone$",
        ),
        (
            {"lora_target_parameters": "mlp.experts.down_porj"},
            r"'mlp.experts.down_porj' is no parameter of the model.*mlp\.down_proj\.weight, mlp\.gate_proj\.weight",
        ),
        (
            {"lora_modules_to_save": "embed_token,lm_haed"},
            "'embed_token' is no module of the model; did you mean 'embed_tokens'",
        ),
        ({"precision": "nf4", "lora_modules_to_save": "o_proj"}, "'o_proj' is quantised"),
    ],
)
def test_names_of_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        load_model(cell_of(**settings).setup, META, seed=0)
    assert caught.value.field == next(name for name in settings if name.startswith("lora_"))


def test_half_of_what_experts_fuse_is_refused(models: dict[str, str]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^lora_target_modules: Cannot convert PEFT target.* w1 without also targeting w3"
    ):
        load_model(cell_of(model=models["mixtral"], lora_target_modules="w1,w2").setup, META, seed=0)
