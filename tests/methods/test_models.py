"""Models by name: published sizes, refusals with a reason, and heads apart from trunks without a difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.config import hidden_width, model_config, read_config
from vrambench.methods.models.load import load_model
from vrambench.methods.models.parts import freeze, head, trunk, without_checkpointing
from vrambench.methods.models.presets import PRESETS
from vrambench.methods.models.presets.tiny import TINY
from vrambench.methods.models.scalar import load_classifier, load_scalar_model
from vrambench.methods.tensors import shapes_only

CPU, META = get_device("cpu"), get_device("meta")
ARCHITECTURES = ("tiny", "tiny-gpt2", "tiny-opt", "tiny-neox", "tiny-mistral")
PRECISIONS = ("fp32", "bf16", "fp16", "bf16_amp", "int8", "nf4")

# Counted by the models' publishers (the hub's `safetensors.total`, without a head that is a second copy of the embeddings), or by
# formula from the published shape.
PUBLISHED = {
    "gpt2": 124_439_808,
    "opt-1.3b": 1_315_758_080,
    # 2 V h for embeddings and head, per layer 4 h^2 + 3 h i + 2 h, and the last norm.
    "llama-1b": 2 * 32000 * 2048 + 24 * (4 * 2048**2 + 3 * 2048 * 5461 + 2 * 2048) + 2048,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "deepseek-r1-distill-llama-8b": 8_030_261_248,
    "deepseek-r1-distill-llama-70b": 70_553_706_496,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "yi-6b": 6_061_035_520,
    "yi-9b": 8_829_407_232,
    "yi-34b": 34_388_917_248,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "deepseek-r1-distill-qwen-1.5b": 1_777_088_000,
    "deepseek-r1-distill-qwen-7b": 7_615_616_512,
    "deepseek-r1-distill-qwen-14b": 14_770_033_664,
    "deepseek-r1-distill-qwen-32b": 32_763_876_352,
    "qwen3-0.6b": 751_632_384 - 151936 * 1024,
    "qwen3-1.7b": 2_031_739_904 - 151936 * 2048,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    # Counted over 262,144 tokens; the embeddings have 64 more.
    "gemma-3-4b": 3_880_099_328 + 64 * 2560,
    "gemma-3-12b": 11_765_788_416 + 64 * 3840,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "ministral-8b": 8_019_808_256,
    "mixtral-8x7b": 46_702_792_704,
    "phi-3-mini": 3_821_079_552,
    "phi-3.5-mini": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "phi-4-mini": 3_836_021_760,
    "gpt-neox-20b": 20_554_567_680,
    "gpt-oss-20b": 20_914_757_184,
    "smollm3-3b": 3_075_098_624,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "deepseek-v2-lite": 15_706_484_224,
    "glm-4-9b": 9_399_951_360,
    "falcon-7b": 7_217_189_760 - 65024 * 4544,
    # V h for embeddings, per layer 2 h (h + k) + 2 h i with biases 2 h + 2 k + i + h and norms 4 h, and the last norm; k: width of
    # keys and of values.
    "starcoder2-3b": 49152 * 3072 + 30 * (2 * 3072 * (3072 + 256 + 12288) + 7 * 3072 + 2 * 256 + 12288) + 2 * 3072,
    "starcoder2-7b": 49152 * 4608 + 32 * (2 * 4608 * (4608 + 512 + 18432) + 7 * 4608 + 2 * 512 + 18432) + 2 * 4608,
    "starcoder2-15b": 15_957_889_024,
    "granite-3.3-2b": 2_533_539_840,
    "granite-3.3-8b": 8_170_864_640,
}


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


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_their_published_sizes(name: str) -> None:
    with shapes_only():
        model = AutoModelForCausalLM.from_config(PRESETS[name].config())
    count = sum(parameter.numel() for parameter in model.parameters())
    if name in TINY:
        assert count < 300_000
    else:
        assert count == PUBLISHED[name]


def test_llama_1b_is_galores() -> None:
    assert PUBLISHED["llama-1b"] == 1_339_082_752


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_taken_and_says_what_it_was_read_from(name: str) -> None:
    preset = PRESETS[name]
    assert model_config(name).model_type == preset.architecture
    assert name == name.lower()
    assert (preset.published is None) == (name in TINY)


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_has_dropout(name: str) -> None:
    fields = vars(read_config(name, "model"))
    dropout = {key: value for key, value in fields.items() if "drop" in key and isinstance(value, int | float)}
    assert set(dropout.values()) <= {0.0}
    assert dropout


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
            r"neither a preset \(qwen2.5-7b, qwen2.5-0.5b, qwen2.5-3b, qwen2.5-32b; docs/config.md has all of them\)",
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
    with pytest.raises(ConfigurationError, match=r"the hub; the preset 'llama-3.1-8b' has its shape$"):
        model_config("meta-llama/Llama-3.1-8B")


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
