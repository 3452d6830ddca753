"""What TRL's and transformers' configurations write of themselves is read as the cell that tests of their trainers run.

Each is the real class' own `to_json_string`, with TRL's ModelConfig beside it as its scripts' files have it. That the cell holds
what the trainer holds, `test_trainers.py` shows.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.test_trainers import CONFIGURATIONS, INT8, LORA, MODULES, NF4, OF_LENGTHS, PREPARED
from tests.trainers.trained import AXES, BATCH, TOKENS, Configuration, cell_of
from vrambench.bench.plan.configs import read
from vrambench.bench.plan.configs.keys import Chosen
from vrambench.bench.plan.matrix import unflatten
from vrambench.methods.cell import Cell, resolve

OTHERWISE = ("packed", "packed, wrapped", PREPARED.name, "int8 lora, prepared by PEFT, under autocast")
"""Packing that a test says by other lengths; a script that prepares the model, of which its configuration knows nothing."""
READ = [one for one in CONFIGURATIONS if one.name not in (*OTHERWISE, *(name for name, *_ in OF_LENGTHS))]


def written(configuration: Configuration) -> dict[str, Any]:
    """The file that says what the configuration says."""
    import trl
    from transformers import TrainingArguments

    kind, more = TrainingArguments, dict[str, Any]()
    if configuration.trl:
        kinds = {None: trl.SFTConfig, "dpo": trl.DPOConfig, "reward": trl.RewardConfig}
        kind, more = kinds[configuration.pairs], {"max_length": TOKENS}
    own = {"per_device_train_batch_size": BATCH, "learning_rate": 1e-3, "use_cpu": True, "report_to": "none"}
    arguments = kind(output_dir="out", **own | more | dict(configuration.arguments))
    data: dict[str, Any] = json.loads(arguments.to_json_string()) | {"use_cpu": False}
    if configuration.trl and not named(configuration):
        model = trl.ModelConfig(
            model_name_or_path="tiny", dtype=str(configuration.load["dtype"]).removeprefix("torch.")
        )
        quantised = configuration.load.get("quantization_config")
        model.load_in_4bit, model.load_in_8bit = quantised is NF4, quantised is INT8
        if configuration.peft:
            model.use_peft, model.lora_target_modules = True, MODULES
            model.lora_dropout = configuration.peft.get("lora_dropout", 0.0)
            model.lora_r, model.lora_alpha = LORA["r"], LORA["lora_alpha"]
        data |= dataclasses.asdict(model)
    return data


def named(configuration: Configuration) -> dict[str, str]:
    """The axes that the file cannot say: how a script loads the model that it gives to the trainer."""
    ref = configuration.settings.get("reference_dtype")
    if configuration.trl and ref is None:
        return {}
    axes = dict(zip(AXES, configuration.axes.split(), strict=True))
    return {name: axes[name] for name in ("precision", "adapter")}


def cell_read(configuration: Configuration, folder: Path) -> Cell:
    path = folder / "arguments.json"
    path.write_text(json.dumps(written(configuration)))
    chosen = Chosen(named(configuration), ("model", "max_length"))
    matrix = read(str(path), chosen)
    axes = {axis: values[0].value for axis, values in matrix.top.axes.items()} | dict(chosen.axes)
    settings = unflatten(matrix.top.workload) | {"model": "tiny", "max_length": TOKENS}
    if configuration.pairs:
        settings["prompt_tokens"] = TOKENS // 2
    return resolve(axes, settings)


@pytest.mark.parametrize("configuration", READ, ids=lambda one: one.name)
def test_a_configuration_is_read_as_its_cell(configuration: Configuration, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    expected = cell_of(configuration, Path("tiny"))
    read_cell = cell_read(configuration, tmp_path)
    told = {"weights": "pretrained"}
    workload = read_cell.workload.model_copy(update=told)
    assert read_cell.model_copy(update={"workload": workload}).flat() == expected.flat()
