"""Presets equal what is published: their fields as published.yaml has them, their numbers of parameters as the publishers do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from vrambench.methods.models.config import model_config, read_config
from vrambench.methods.models.presets import PRESETS
from vrambench.methods.models.presets.tiny import TINY
from vrambench.methods.tensors import shapes_only

PUBLISHED = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text())
NOT_COMPARED = "not compared with a published file"

# Counted by the models' publishers (the hub's `safetensors.total`, without a head that is a second copy of the embeddings), or by
# formula from the published shape.
PARAMETERS = {
    "gpt2": 124_439_808,
    "opt-1.3b": 1_315_758_080,
    "llama-1b": 1_339_082_752,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
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


def differences(have: Any, stated: Mapping[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
    """What `have`, a configuration or a dictionary of it, has otherwise than `stated`: its own value, and the stated one."""
    found = {}
    for name, value in stated.items():
        own = have[name] if isinstance(have, Mapping) else getattr(have, name)
        if isinstance(value, Mapping):
            found |= differences(own, value, f"{path}{name}.")
        elif own != value:
            found[path + name] = own, value
    return found


def layer_types(pattern: int, layers: int) -> list[str]:
    """Of every `pattern` layers the last sees all tokens."""
    return ["sliding_attention" if layer % pattern else "full_attention" for layer in range(1, layers + 1)]


def test_every_preset_says_what_it_was_compared_with() -> None:
    assert PUBLISHED.keys() == PRESETS.keys() - TINY.keys()
    for entry in PUBLISHED.values():
        assert ("fields" not in entry) == (entry["file"] == NOT_COMPARED)
        owner, _, path = entry["file"].partition(" ")
        assert entry["file"] == NOT_COMPARED or (path and (owner == "hub" or "/" in owner))


@pytest.mark.parametrize("name", [name for name, entry in PUBLISHED.items() if "fields" in entry])
def test_presets_have_their_published_fields(name: str) -> None:
    config = PRESETS[name].config()
    fields = dict(PUBLISHED[name]["fields"])
    if pattern := fields.pop("sliding_window_pattern", None):
        fields["layer_types"] = layer_types(pattern, config.num_hidden_layers)
    assert differences(config, fields) == {}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_their_published_sizes(name: str) -> None:
    with shapes_only():
        model = AutoModelForCausalLM.from_config(PRESETS[name].config())
    count = sum(parameter.numel() for parameter in model.parameters())
    if name in TINY:
        assert count < 300_000
    else:
        assert count == PARAMETERS[name]


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
