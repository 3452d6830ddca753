"""The error band: what published measurements have shown, the assumption where there are too few."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.predict.band import ASSUMED_SHARE, FEWEST_CELLS, Kind, error_band


def publish(folder: Path, gpu: str, rows: list[Any], name: str = "accuracy.json") -> None:
    (folder / gpu).mkdir(parents=True, exist_ok=True)
    (folder / gpu / name).write_text(json.dumps({"rows": rows}))


def row(predicted: int | None, measured: int | None, status: str = "ok") -> dict[str, Any]:
    return {"status": status, "predicted": {"device": predicted}, "measured": {"device": measured}}


def test_without_measurements_it_is_assumed(tmp_path: Path) -> None:
    assert error_band(None, tmp_path / "nowhere") == (ASSUMED_SHARE, "assumed, not yet confirmed by measurements")
    publish(tmp_path / "few", "h100", [row(100, 150)] * (FEWEST_CELLS - 1))
    assert error_band(None, tmp_path / "few").share == ASSUMED_SHARE


def test_it_is_the_most_that_any_job_took_above_its_prediction(tmp_path: Path) -> None:
    publish(tmp_path, "h100", [row(100, 90)] * FEWEST_CELLS + [row(100, 400, "oom"), row(None, 9), row(9, None)])
    publish(tmp_path, "rtx-4090", [row(1000, 1015)])
    band = error_band(None, tmp_path)
    assert band.share == pytest.approx(0.015)
    assert (
        band.basis
        == f"the most that any of {FEWEST_CELLS + 1} measured jobs took above its prediction (h100, rtx-4090)"
    )


def test_cells_predicted_anew_stand_for_those_predicted_before(tmp_path: Path) -> None:
    publish(tmp_path, "h100", [row(100, 150)] * FEWEST_CELLS)
    publish(tmp_path, "h100", [row(100, 101)] * FEWEST_CELLS, "accuracy-anew.json")
    band = error_band(None, tmp_path)
    assert band.share == pytest.approx(0.01)
    assert f"any of {FEWEST_CELLS} measured jobs" in band.basis


def test_it_is_never_negative(tmp_path: Path) -> None:
    publish(tmp_path, "h100", [row(100, 90)] * FEWEST_CELLS)
    assert error_band(None, tmp_path).share == 0


@pytest.mark.parametrize("text", ["not JSON", "[]", "{}"])
def test_another_file_of_that_name_is_an_error(text: str, tmp_path: Path) -> None:
    publish(tmp_path, "h100", [])
    (tmp_path / "h100" / "accuracy.json").write_text(text)
    with pytest.raises(ValueError, match="no comparison of predictions with measurements"):
        error_band(None, tmp_path)


def named(precision: str, adapter: str, measured: int = 100) -> dict[str, Any]:
    return row(100, measured) | {"name": f"llama-2-7b / {precision} {adapter} adamw_torch none sft batch_size=3"}


@pytest.mark.parametrize(
    ("kind", "nearest"),
    [
        (("nf4", "lora"), None),
        (("bf16", "none"), None),
        (("nf4", "dora"), "nf4 with adapter lora"),
        (("int8", "lora"), "nf4 with adapter lora"),
        (("fp16", "none"), "bf16 with adapter none"),
        (("bf16_amp", "none"), "fp32 with adapter none"),
    ],
)
def test_a_kind_that_was_never_measured_is_told_with_the_nearest(
    kind: tuple[str, str], nearest: str | None, tmp_path: Path
) -> None:
    rows = [named("nf4", "lora", 103), {**row(100, 101), "precision": "bf16", "adapter": "none"}, named("fp32", "none")]
    publish(tmp_path, "h100", [*rows, *[row(100, 90)] * FEWEST_CELLS])
    share, basis = error_band(Kind(*kind), tmp_path)
    assert share == pytest.approx(0.03), "never narrower than over all kinds"
    words = f"; none of them was {Kind(*kind)}, the nearest that was measured is {nearest}"
    assert basis.endswith("(h100)" + (words if nearest else ""))
