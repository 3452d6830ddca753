"""Models by name: refusals with a reason, and heads apart from trunks without a difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.config import hidden_width, model_config
from vrambench.methods.models.load import load_model
from vrambench.methods.models.parts import freeze, head, trunk, without_checkpointing
from vrambench.methods.models.presets import PRESETS
from vrambench.methods.models.scalar import load_classifier, load_scalar_model

CPU, META = get_device("cpu"), get_device("meta")
ARCHITECTURES = ("tiny", "tiny-gpt2", "tiny-opt", "tiny-neox", "tiny-mistral")
PRECISIONS = ("fp32", "bf16", "fp16", "bf16_amp", "int8", "nf4")


def cell_of(precision: str = "fp32", adapter: str = "none", **settings: Any) -> Cell:
    axes = {
        "precision": precision,
        "adapter": adapter,
        "optimizer": "adamw_torch",
        "offload": "none",
        "algorithm": "sft",
    }
    return resolve(axes, settings)


def tokens_of(length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (2, length), generator=torch.Generator().manual_seed(seed))


def logits_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    return head(model)(trunk(model)(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state)


def test_a_folder_with_only_a_config_is_enough(tmp_path: Path) -> None:
    config = PRESETS["tiny-gpt2"].config()
    config.attn_pdrop = config.resid_pdrop = config.embd_pdrop = 0.3
    config.save_pretrained(tmp_path)
    read = model_config(str(tmp_path))
    assert (read.attn_pdrop, read.resid_pdrop, read.embd_pdrop) == (0.0, 0.0, 0.0)
    model = load_model(cell_of(model=str(tmp_path)).setup, CPU, seed=0)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.0}
    torch.testing.assert_close(logits_of(model, tokens_of()), logits_of(model, tokens_of()))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lama-2-7b", "neither a preset .* did you mean 'llama-2-7b'"),
        ("./nowhere", "neither a preset"),
        (
            "qwen2.5-70b",
            r"neither a preset \(qwen2.5-7b, qwen2.5-0.5b, qwen2.5-3b, qwen2.5-32b; vrambench list models tells all\)",
        ),
    ],
)
def test_unknown_models_are_named_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        model_config(name)
    assert caught.value.field == "model"
    assert repr(name) in str(caught.value)


def test_a_hub_id_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("We couldn't connect to the hub\nand a page of advice")

    monkeypatch.setattr("transformers.PreTrainedConfig.get_config_dict", offline)
    with pytest.raises(
        ConfigurationError, match=r"model: 'some/model' cannot be read: We couldn't connect to the hub$"
    ):
        model_config("some/model")
    with pytest.raises(
        ConfigurationError, match=r"the hub; the preset 'llama-3.1-8b' has its shape \(--model llama-3.1-8b\)$"
    ):
        model_config("meta-llama/Llama-3.1-8B")
    for name in ("meta-llama/Meta-Llama-3.1-8B-Instruct", "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit"):
        said = (
            r"the hub; the preset 'llama-3.1-8b' has the shape of meta-llama/Llama-3.1-8B, after which it is named "
            r"\(--model llama-3.1-8b\)$"
        )
        with pytest.raises(ConfigurationError, match=said):
            model_config(name)
    with pytest.raises(
        ConfigurationError, match=r"the preset 'llama-3-8b' has the shape of meta-llama/Meta-Llama-3-8B-Inst"
    ):
        model_config("meta-llama/Meta-Llama-3-8B")
    with pytest.raises(ConfigurationError, match=r"\(--set reward_model=llama-2-7b\)$"):
        model_config("NousResearch/Llama-2-7b-hf", field="reward_model")
    with pytest.raises(ConfigurationError, match=r"the hub$"):
        model_config("meta-llama/Meta-Llama-3-405B")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model_type": "t5"}, "is a t5, not a causal language model"),
        ({"model_type": "no-such-thing"}, "cannot be read"),
        ({}, "cannot be read"),
    ],
)
def test_configurations_that_cannot_be_trained_here(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=said) as caught:
        model_config(str(tmp_path))
    assert caught.value.field == "model"


@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_head_over_trunk_is_the_whole_model(name: str, adapter: str) -> None:
    model = load_model(cell_of(adapter=adapter, model=name, lora_dropout=0.0).setup, CPU, seed=0)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.1)  # LoRA's B starts at zero and would hide what it does
    tokens = tokens_of()
    whole, apart = model(input_ids=tokens).logits, logits_of(model, tokens)
    torch.testing.assert_close(apart, whole, rtol=0, atol=0)
    if adapter == "lora":
        with model.disable_adapter():
            assert not torch.equal(logits_of(model, tokens), whole)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trunk_is_as_wide_as_said(name: str) -> None:
    model = load_model(cell_of(model=name).setup, META, seed=0)
    states = trunk(model)(
        input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"), use_cache=False
    ).last_hidden_state
    assert states.shape[-1] == hidden_width(model_config(name))


@pytest.mark.parametrize("device", [CPU, META], ids=lambda device: device.kind)
@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_model_is_on_its_device_in_its_precision_in_train_mode(precision: str, adapter: str, device: Any) -> None:
    cell = cell_of(precision, adapter, compute_dtype="bf16")
    model = load_model(cell.setup, device, seed=0)
    assert model.training
    assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {device.torch}
    base = {p.dtype for name, p in model.named_parameters() if "lora_" not in name}
    stored = {"int8": {torch.int8}, "nf4": {torch.uint8}}.get(precision, set())
    assert base == stored | {cell.precision_value.dtype(cell.workload)}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained) == (adapter == "lora")


def test_a_padding_token_is_never_looked_for(tmp_path: Path) -> None:
    """transformers would read values back from the device to warn about it, which meta has not and CUDA waits for."""
    config = model_config("tiny-gpt2")
    config.pad_token_id = 0
    config.save_pretrained(tmp_path)
    model = load_model(cell_of(model=str(tmp_path)).setup, META, seed=0)
    assert logits_of(model, tokens_of().to("meta")).shape == (2, 12, 256)


@pytest.mark.parametrize("precision", ["fp32", "int8", "nf4"])
def test_a_frozen_copy_is_the_same_base(precision: str) -> None:
    cell = cell_of(precision, "lora", compute_dtype="fp32")
    policy = load_model(cell.setup, CPU, seed=4)
    copy = freeze(load_model(cell.setup, CPU, adapter=False, seed=4))
    other = load_model(cell.setup, CPU, adapter=False, seed=5)
    tokens = tokens_of()
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    torch.testing.assert_close(logits_of(copy, tokens), logits_of(policy, tokens))
    assert not torch.allclose(logits_of(copy, tokens), logits_of(other, tokens))


def test_loading_leaves_the_jobs_random_numbers_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_model(cell_of(adapter="lora").setup, CPU, seed=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_checkpointing_changes_memory_and_nothing_else(adapter: str) -> None:
    tokens = tokens_of()
    grads = []
    for checkpointing in (False, True):
        model = load_model(cell_of(adapter=adapter, gradient_checkpointing=checkpointing).setup, CPU, seed=0)
        calls = []
        trunk(model).layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        logits_of(model, tokens).square().mean().backward()
        assert len(calls) == (2 if checkpointing else 1)
        grads.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_cache_is_filled_without_checkpointing_and_it_comes_back(adapter: str) -> None:
    model = load_model(cell_of(adapter=adapter, gradient_checkpointing=True).setup, CPU, seed=0)
    tokens = tokens_of()

    def cached() -> int:
        with torch.no_grad():
            cache = trunk(model)(input_ids=tokens, use_cache=True).past_key_values
        return 0 if cache is None else cache.get_seq_length()

    assert cached() == 0
    with without_checkpointing(model):
        assert cached() == tokens.shape[1]
    assert cached() == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
@pytest.mark.parametrize("name", ["tiny", "tiny-gpt2", "tiny-opt"])
def test_pretrained_weights_are_read_in_the_cells_precision(tmp_path: Path, name: str, precision: str) -> None:
    reference = load_model(cell_of(model=name).setup, CPU, seed=0)
    reference.save_pretrained(tmp_path)
    cell = cell_of(precision, "lora", model=str(tmp_path), weights="pretrained", compute_dtype="fp32")
    model = load_model(cell.setup, CPU, seed=1)
    expected, got = logits_of(reference, tokens_of()), logits_of(model, tokens_of())
    tolerance = {"fp32": 1e-6, "bf16": 0.02, "int8": 0.05, "nf4": 0.35}[precision]
    assert ((got.float() - expected).norm() / expected.norm()).item() < tolerance
    kinds = {type(module).__name__ for module in model.modules()}
    assert ("Linear8bitLt" in kinds, "Linear4bit" in kinds) == (precision == "int8", precision == "nf4")
    shapes = [(n, tuple(p.shape), p.dtype) for n, p in model.named_parameters()]
    simulated = load_model(cell.setup, META, seed=1)
    assert shapes == [(n, tuple(p.shape), p.dtype) for n, p in simulated.named_parameters()]
    got.float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_pretrained_needs_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="model: 'tiny' is a preset, a shape without weights"):
        load_model(cell_of(weights="pretrained").setup, CPU, seed=0)
    model_config("tiny").save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        load_model(cell_of(weights="pretrained", model=str(tmp_path)).setup, CPU, seed=0)


@pytest.mark.parametrize("precision", ["fp32", "int8", "nf4"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scalar_models_score_every_token(name: str, precision: str) -> None:
    cell = cell_of(precision, "lora", compute_dtype="bf16")
    model = load_scalar_model(cell.setup, CPU, model=name, seed=0, trained=True)
    scores = model(tokens_of())
    assert scores.shape == (2, 12)
    assert scores.dtype == torch.float32
    scores.square().mean().backward()
    trained = {label: p.grad for label, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in trained.values())
    assert "score.weight" in trained
    assert all("lora_" in label for label in trained if label != "score.weight")
    on_meta = load_scalar_model(cell.setup, META, model=name, seed=0, trained=True)(tokens_of().to("meta"))
    assert (on_meta.shape, on_meta.dtype) == (scores.shape, scores.dtype)


def test_scalar_models_without_training_are_plain_and_repeatable() -> None:
    cell = cell_of("bf16", "lora")
    first, again, other = (
        freeze(load_scalar_model(cell.setup, CPU, model="tiny", seed=seed, trained=False)) for seed in (0, 0, 1)
    )
    assert not any("lora_" in name for name, _ in first.named_parameters())
    assert {parameter.dtype for parameter in first.parameters()} == {torch.bfloat16}
    assert torch.equal(first(tokens_of()), again(tokens_of()))
    assert not torch.equal(first(tokens_of()), other(tokens_of()))
    assert not hasattr(first.trunk, "lm_head")


def test_scalar_models_score_a_token_from_what_came_before() -> None:
    model = load_scalar_model(cell_of().setup, CPU, model="tiny", seed=0, trained=False)
    tokens = tokens_of()
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 256
    torch.testing.assert_close(model(changed)[:, :8], model(tokens)[:, :8])
    assert not torch.allclose(model(changed)[:, 8:], model(tokens)[:, 8:])


def classifier_folder(folder: Path, name: str, labels: int, **fields: Any) -> str:
    config = model_config(name)
    config.num_labels = labels
    config.pad_token_id = 0
    for field, value in fields.items():
        setattr(config, field, value)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("name", ["tiny", "tiny-gpt2", "tiny-neox"])
def test_classifiers_give_one_score_per_sequence(tmp_path: Path, name: str, labels: int) -> None:
    folder = classifier_folder(tmp_path, name, labels)
    model = load_classifier(cell_of().setup, CPU, model=folder, dtype=torch.float32)
    tokens = tokens_of().clamp_min(1)
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    logits = plain(input_ids=tokens).logits
    expected = logits[:, 0] if labels == 1 else logits[:, 1] - logits[:, 0]
    torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-4)
    # A sampled token that happens to be the padding token is no padding.
    padded = tokens.clone()
    padded[:, -1] = 0
    assert not torch.allclose(model(padded), model(tokens[:, :-1]))
    on_meta = load_classifier(cell_of().setup, META, model=folder, dtype=torch.float32)(tokens.to("meta"))
    assert on_meta.shape == (2,)


def test_classifiers_may_look_both_ways(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=256, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_labels=2
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    plain = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    logits = plain(input_ids=tokens_of()).logits
    model = load_classifier(cell_of().setup, CPU, model=str(tmp_path), dtype=torch.float32)
    torch.testing.assert_close(model(tokens_of()), logits[:, 1] - logits[:, 0], atol=1e-5, rtol=1e-4)


def test_classifiers_that_are_no_reward(tmp_path: Path) -> None:
    many = classifier_folder(tmp_path / "many", "tiny", 3)
    with pytest.raises(ConfigurationError, match="has 3 labels"):
        load_classifier(cell_of().setup, CPU, model=many, dtype=torch.float32)
    small = classifier_folder(tmp_path / "small", "tiny", 1, vocab_size=100)
    with pytest.raises(ConfigurationError, match="knows 100 tokens and the policy has 256") as caught:
        load_classifier(cell_of().setup, CPU, model=small, dtype=torch.float32)
    assert caught.value.field == "reward"
