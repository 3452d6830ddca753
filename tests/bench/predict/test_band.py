"""The error band: what published measurements have shown, the assumption where there are too few."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from vrambench.bench.predict.band import (
    ASSUMED_SHARE,
    FEWEST_CELLS,
    RESULTS,
    Kind,
    error_band,
    family,
    kind_named,
    kind_of,
)
from vrambench.methods.cell import resolve

AXES = {"precision": "bf16", "optimizer": "adamw_torch_fused", "offload": "none"}
TRL_GROUPS = {"loss": "selective", "autocast": "bf16"}


def publish(folder: Path, gpu: str, rows: list[Any], name: str = "accuracy.json") -> None:
    (folder / gpu).mkdir(parents=True, exist_ok=True)
    (folder / gpu / name).write_text(json.dumps({"rows": rows}))


def row(predicted: int | None, measured: int | None, status: str = "ok") -> dict[str, Any]:
    return {"status": status, "predicted": {"device": predicted}, "measured": {"device": measured}}


def test_without_measurements_it_is_assumed(tmp_path: Path) -> None:
    assert error_band(None, tmp_path / "nowhere")[:2] == (ASSUMED_SHARE, "assumed, not yet confirmed by measurements")
    publish(tmp_path / "few", "h100", [row(100, 150)] * (FEWEST_CELLS - 1))
    assert error_band(None, tmp_path / "few").share == ASSUMED_SHARE


def test_it_is_the_most_that_any_job_took_above_its_prediction(tmp_path: Path) -> None:
    publish(tmp_path, "h100", [row(100, 90)] * FEWEST_CELLS + [row(100, 400, "oom"), row(None, 9), row(9, None)])
    publish(tmp_path, "rtx-4090", [row(1000, 1015)])
    band = error_band(None, tmp_path)
    assert band.share == pytest.approx(0.015)
    assert (
        band.basis
        == f"the most that any of {FEWEST_CELLS + 1} compared jobs took above its prediction (h100, rtx-4090)"
    )


def test_cells_predicted_anew_stand_for_those_predicted_before(tmp_path: Path) -> None:
    publish(tmp_path, "h100", [row(100, 150)] * FEWEST_CELLS)
    publish(tmp_path, "h100", [row(100, 101)] * FEWEST_CELLS, "accuracy-anew.json")
    band = error_band(None, tmp_path)
    assert band.share == pytest.approx(0.01)
    assert f"any of {FEWEST_CELLS} compared jobs" in band.basis


def test_it_is_never_negative(tmp_path: Path) -> None:
    publish(tmp_path, "h100", [row(100, 90)] * FEWEST_CELLS)
    assert error_band(None, tmp_path).share == 0


@pytest.mark.parametrize("text", ["not JSON", "[]", "{}"])
def test_another_file_of_that_name_is_an_error(text: str, tmp_path: Path) -> None:
    publish(tmp_path, "h100", [])
    (tmp_path / "h100" / "accuracy.json").write_text(text)
    with pytest.raises(ValueError, match="no comparison of predictions with measurements"):
        error_band(None, tmp_path)


LLAMA = "fine-tuning", "RMSNorm"


def named(
    precision: str, adapter: str, measured: int = 100, model: str = "llama-2-7b", more: str = ""
) -> dict[str, Any]:
    return row(100, measured) | {"name": f"{model} / {precision} {adapter} adamw_torch none sft batch_size=3{more}"}


def test_a_kind_has_the_band_of_its_own_jobs(tmp_path: Path) -> None:
    rows = [
        named("nf4", "lora", 103),
        named("nf4", "lora", 102),
        named("bf16", "none", 108),
        *[row(100, 90)] * FEWEST_CELLS,
    ]
    publish(tmp_path, "published", rows)
    publish(tmp_path, "h100", [named("fp32", "none", 101)])
    assert error_band(Kind("bf16", "none", *LLAMA), tmp_path).share == pytest.approx(0.08)
    share, basis, _ = error_band(Kind("nf4", "lora", *LLAMA), tmp_path)
    assert share == pytest.approx(0.03)
    assert basis.startswith("the most that any of 2 compared jobs of its kind (published)")
    publish(tmp_path, "l4", [named("fp32", "none", 106)])
    error_band.cache_clear()
    assert error_band(Kind("nf4", "lora", *LLAMA), tmp_path).share == pytest.approx(0.06), (
        "as a measured job of any kind"
    )


def test_another_librarys_trainer_widens_the_band_of_its_own_kind_alone(tmp_path: Path) -> None:
    publish(tmp_path, "h100", [row(100, 90)] * FEWEST_CELLS + [named("nf4", "lora", 101)])
    publish(tmp_path, "h100", [named("bf16", "none", 103) | {"run": "trainers"}], "accuracy-trainers.json")
    assert error_band(Kind("bf16", "none", *LLAMA), tmp_path).share == pytest.approx(0.03)
    assert error_band(Kind("nf4", "lora", *LLAMA), tmp_path).share == pytest.approx(0.01)
    assert error_band(None, tmp_path).share == pytest.approx(0.03)


def test_trls_groups_on_an_h100_are_in_the_bands() -> None:
    kinds = [
        kind_of(resolve(AXES | {"adapter": adapter, "algorithm": algorithm}, {"model": "llama-3.2-1b"} | TRL_GROUPS))
        for adapter, algorithm in (("lora", "grpo"), ("lora", "rloo"), ("none", "grpo"))
    ]
    assert [round(error_band(kind, RESULTS).share, 3) for kind in kinds] == [0.011, 0.011, 0.033]


@pytest.mark.parametrize(
    ("kind", "nearest"),
    [
        (("nf4", "dora", *LLAMA), "nf4 with adapter lora, fine-tuning, on a model with RMSNorm"),
        (("nf4", "lora", "fine-tuning", "LayerNorm"), "bf16 with adapter lora, fine-tuning, on a model with LayerNorm"),
        (
            ("nf4", "lora", "fine-tuning, attention math", "RMSNorm"),
            "nf4 with adapter lora, fine-tuning, on a model with RMSNorm",
        ),
        (("int8", "lora", *LLAMA), "nf4 with adapter lora, fine-tuning, on a model with RMSNorm"),
        (("fp16", "none", *LLAMA), "bf16 with adapter none, fine-tuning, on a model with RMSNorm"),
        (("bf16_amp", "none", *LLAMA), "fp32 with adapter none, fine-tuning, on a model with RMSNorm"),
    ],
)
def test_a_kind_that_was_never_compared_has_the_widest_and_is_told_the_nearest(
    kind: tuple[str, str, str, str], nearest: str, tmp_path: Path
) -> None:
    own = {**row(100, 101), "kind": ["bf16", "none", *LLAMA]}
    rows = [named("nf4", "lora"), own, named("fp32", "none"), named("bf16", "lora", 107, "gpt2")]
    publish(tmp_path, "h100", [*rows, *[row(100, 90)] * FEWEST_CELLS])
    share, basis, _ = error_band(Kind(*kind), tmp_path)
    assert share == pytest.approx(0.07)
    assert basis.endswith(f"; none of them was {Kind(*kind)}, the nearest that was compared is {nearest}")


def test_a_published_job_that_ran_out_of_memory_all_the_same_is_a_miss(tmp_path: Path) -> None:
    over = named("nf4", "lora") | {"status": "oom", "id": "t4-7b", "budget": 120, "measured": {}}
    publish(tmp_path, "published", [over, over | {"budget": 90, "id": "known"}, *[row(100, 90)] * FEWEST_CELLS])
    (miss,) = error_band(Kind("nf4", "lora", *LLAMA), tmp_path).misses
    assert miss == ("t4-7b", pytest.approx(0.2))
    assert error_band(Kind("nf4", "dora", *LLAMA), tmp_path).misses == ()


def test_what_is_published_here_has_kinds() -> None:
    rows = [row for file in RESULTS.glob("*/accuracy*.json") for row in json.loads(file.read_text())["rows"]]
    assert rows
    for one in rows:
        kind = Kind(*one["kind"]) if "kind" in one else kind_named(one["name"])
        assert kind is not None, one["name"]
        assert "kind" in one or list(kind[:2]) == one["name"].partition(" / ")[2].split()[:2], "a name says both"


@pytest.mark.parametrize(
    ("settings", "recipe"),
    [({}, "fine-tuning"), ({"attention": "math"}, "fine-tuning, attention math"), ({"algorithm": "ppo"}, "rollouts")],
)
def test_a_kind_is_told_by_what_is_not_as_usual(settings: dict[str, str], recipe: str) -> None:
    axes = {"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    work = {"model": "tiny-gpt2"} | settings
    axes["algorithm"] = work.pop("algorithm", "sft")
    assert kind_of(resolve(axes, work)) == ("bf16", "lora", recipe, "LayerNorm")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "mixtral"}, "experts"),
        ({"model_type": "mamba"}, "recurrent layers"),
        ({"model_type": "gemma3_text"}, "RMSNorm"),
        ({"model_type": "opt"}, "LayerNorm"),
    ],
)
def test_an_architecture_is_of_the_family_of_its_layers(config: dict[str, str], expected: str) -> None:
    assert family(AutoConfig.for_model(**config)) == expected
