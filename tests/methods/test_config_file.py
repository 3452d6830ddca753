"""What is wrong with a model's folder, told from its config.json alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.config_file import check_config_file, unknown_type


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no config.json in it"),
        ("", "config.json is no JSON: line 1: expecting value"),
        ('{\n"model_type": }', "config.json is no JSON: line 2: expecting value"),
        ("[1]", "config.json holds [1], not an object"),
        ("{}", "config.json has no model_type"),
        ('{"model_type": 7}', "config.json: model_type 7 is no name"),
        ('{"model_type": "lama"}', "config.json: transformers has no model_type 'lama'; did you mean 'llama'?"),
        (
            '{"model_type": "ours", "auto_map": {"AutoConfig": "ours.Config"}}',
            "config.json: transformers has no model_type 'ours'; its own code (auto_map) would have to be executed, and none is",
        ),
        ("[" * 100_000, "config.json: maximum recursion depth exceeded"),
    ],
)
def test_what_is_wrong(text: str | None, told: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        check_config_file(tmp_path, "model")
    assert str(caught.value).startswith(f"model: {str(tmp_path)!r} cannot be read: {told}")


def test_no_text_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff{}")
    with pytest.raises(ConfigurationError, match=r"config.json: 'utf-8' codec can't decode"):
        check_config_file(tmp_path, "model")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigurationError, match=r"config.json is not a file$"):
        check_config_file(tmp_path, "model")


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-8B"}')
    with pytest.raises(
        ConfigurationError, match=r"it is an adapter's folder, .* name its base model, 'Qwen/Qwen3-8B'$"
    ):
        check_config_file(tmp_path, "model")


def test_a_configuration_is_one_by_its_folder_and_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    check_config_file(tmp_path, "model")
    check_config_file(tmp_path / "config.json", "model")


def test_every_type_of_transformers_is_known() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert not [kind for kind in CONFIG_MAPPING_NAMES if unknown_type({"model_type": kind})]
    assert all(unknown_type({"model_type": kind}) for kind in ("", "Llama", "LlamaConfig", "CONFIG_MAPPING"))
