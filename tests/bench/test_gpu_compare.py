"""The comparison of predictions with measurements, on results made up for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vrambench.bench.predict.band import kind_named
from vrambench.bench.predict.unseen.hardware import card_described
from vrambench.methods.cards import CARDS
from vrambench.methods.cell import resolve

GIB = 2**30
SCRIPT = Path(__file__).resolve().parents[1] / "gpu" / "compare.py"
H100 = {"name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "total_bytes": int(79.6 * GIB)}


@pytest.fixture(scope="module")
def compare(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("tests/gpu/compare.py")


def sizes(allocated: float | None, reserved: float | None, device: float | None) -> dict[str, int | None]:
    """Of these GiB."""
    kinds = {"allocated_bytes": allocated, "reserved_bytes": reserved, "device_bytes": device}
    return {kind: None if size is None else int(size * GIB) for kind, size in kinds.items()}


def result(name: str, measured: Any, predicted: Any, status: str = "ok", **more: Any) -> dict[str, Any]:
    made = {"id": name, "name": name, "status": status, "memory": measured, "predicted": predicted, "oom": None}
    return made | {"cell": {"model": "gpt2", "budget": 2**42}} | more


def run_folder(folder: Path, *results: dict[str, Any]) -> Path:
    (folder / "cells").mkdir(parents=True)
    for one in results:
        (folder / "cells" / f"{one['id']}.json").write_text(json.dumps(one))
    return folder


def told(compare: ModuleType, tmp_path: Path, *results: dict[str, Any]) -> dict[str, Any]:
    run = run_folder(tmp_path / "run", *results)
    assert compare.main([str(run), "--out", str(tmp_path / "out.json")]) == 0
    document: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    return document


def test_errors_are_signed_and_summed_up(
    compare: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = told(
        compare,
        tmp_path,
        result("a", sizes(8, 10, 16), sizes(8, 9, 16)),
        result("b", sizes(8, 10, 16), sizes(7, 10, 17)),
        result("c", sizes(8, 10, None), sizes(8.5, 10, 18)),
        result("unpredicted", sizes(8, 10, 16), None),
        result("unmeasured", sizes(None, None, None), sizes(8, 10, 16)),
        result("crashed", sizes(8, 10, 16), sizes(8, 10, 16), status="crashed"),
    )
    rows = {row["id"]: row for row in document["rows"]}
    assert set(rows) == {"a", "b", "c"}
    assert rows["a"]["errors"] == pytest.approx({"allocated": 0, "reserved": -0.1, "device": 0})
    assert rows["b"]["errors"] == pytest.approx({"allocated": -0.125, "reserved": 0, "device": 0.0625})
    assert rows["c"]["errors"]["device"] is None
    assert document["median_absolute"] == pytest.approx({"allocated": 0.0625, "reserved": 0, "device": 0.03125})
    assert document["worst"] == pytest.approx({"allocated": -0.125, "reserved": -0.1, "device": 0.0625})
    assert document["met"]["allocated_worst"] is False
    assert document["met"]["false_fits"] is True
    table = capsys.readouterr().out
    assert "ok        -12.50%     +0.00%     +6.25%        16.000 GiB  gpt2 / b\n" in table
    assert "goal device_worst 4.0%: missed" in table


def test_false_verdicts_at_24_gib(compare: ModuleType, tmp_path: Path) -> None:
    taken, small = sizes(20, 22, 23), {"model": "gpt2", "budget": 24 * GIB}
    document = told(
        compare,
        tmp_path,
        result("right", sizes(20, 22, 23.9), sizes(20, 22, 24)),
        result("false-fit", sizes(20, 22, 24.1), sizes(20, 22, 23.9)),
        result("false-no", sizes(20, 22, 23.9), sizes(20, 22, 24.1)),
        result("oom-false-fit", taken, sizes(20, 22, 23), status="oom", cell=small, oom={"where": "device"}),
        result("oom-right", taken, sizes(30, 32, 33), status="oom", cell=small, oom={"where": "device"}),
        result("oom-of-the-card", sizes(76, 78, 79), sizes(90, 92, 93), status="oom", oom={"where": "device"}),
        result("oom-on-the-host", taken, sizes(20, 22, 23), status="oom", cell=small, oom={"where": "host"}),
    )
    assert document["false_fits_at_24gib"] == ["gpt2 / false-fit", "gpt2 / oom-false-fit"]
    assert document["false_does_not_fit_at_24gib"] == ["gpt2 / false-no"]
    assert document["decided_at_24gib"] == 6
    assert document["met"]["false_fits"] is False
    # What ran out of memory took less than it needs.
    assert max(document["worst"].values(), key=abs) == pytest.approx(24.1 / 23.9 - 1)


def test_runs_without_predictions_are_no_error(
    compare: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = told(compare, tmp_path, result("a", sizes(1, 1, 1), None))
    assert "1 results, none of them with both a prediction and measured memory" in capsys.readouterr().out
    assert (document["rows"], set(document["met"].values())) == ([], {None})
    assert compare.main([str(tmp_path / "nowhere")]) == 2


def test_the_known_card_is_found_by_its_memory() -> None:
    assert card_described(H100) == CARDS["h100-80gb"]
    assert card_described(H100 | {"total_bytes": int(139.8 * GIB)}) == CARDS["h200"]
    assert card_described(H100 | {"total_bytes": 94 * GIB}) == CARDS["h100-nvl"]
    assert card_described(H100 | {"total_bytes": 120 * GIB}) is None
    assert card_described(H100 | {"compute_capability": None}) is None
    assert card_described(None) is None


@pytest.mark.usefixtures("predicted_here")
def test_anew_predicts_for_the_gpu_that_was_measured(compare: ModuleType) -> None:
    axes = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    cell = resolve(axes, {"model": "tiny", "budget": "4TiB"})
    on_gpu = result("x", sizes(1, 1, 1), sizes(1, 1, 1), cell=cell.flat(), environment={"gpu": H100}) | {"id": cell.id}
    unknown = result("y", sizes(1, 1, 1), sizes(2, 2, 2))
    (_, fresh), (_, kept) = compare.predicted_anew([("run", on_gpu), ("run", unknown)])
    # Two cuBLAS workspaces of 32 MiB and little else.
    assert 2 * 32 * 2**20 < fresh["predicted"]["allocated_bytes"] < 2 * 32 * 2**20 + 16 * 2**20
    assert kept is unknown


def test_trainers_jobs_are_compared_under_their_cells_names(compare: ModuleType, tmp_path: Path) -> None:
    took = {"model": "gpt2", "allocated_bytes": 8 * GIB, "reserved_bytes": 10 * GIB}
    said = {"axes": "bf16 none adamw_torch none sft", "settings": {"loss": "nll", "gradient_checkpointing": True}}
    jobs = [
        {"job": "full", **took, **said, "predicted": {"allocated_bytes": 9 * GIB, "reserved_bytes": 10 * GIB}},
        {"job": "dpo", **took, "axes": None, "settings": {}, "predicted": None},
        {"job": "rloo", "failed": "not done after 150 s"},
        {"job": "grpo", **took, "axes": "bf16 none adamw_torch none grpo"}
        | {"settings": {"grpo": {"beta": 0.04}}, "predicted": {"allocated_bytes": 8 * GIB}},
    ]
    (tmp_path / "rows").write_text("\n".join(map(json.dumps, jobs)))
    assert compare.main(["--trainers", str(tmp_path / "rows"), "--out", str(tmp_path / "out")]) == 0
    row, of_groups = json.loads((tmp_path / "out").read_text())["rows"]
    assert of_groups["name"] == "gpt2 / bf16 none adamw_torch none grpo grpo.beta=0.04"
    assert kind_named(of_groups["name"]) is not None
    assert row["errors"] == {"allocated": 0.125, "reserved": 0.0, "device": None}
    kind = kind_named(row["name"])
    assert kind is not None
    assert kind.recipe == "fine-tuning, loss nll"
