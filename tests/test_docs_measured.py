"""docs/measured.py: what `make gpu` left in results/<gpu>/ becomes a section, and what it did not leave is not told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from measured import section, sections

GIB = 2**30


def result(name: str, allocated: float, device: float, steps: list[float], **more: Any) -> dict[str, Any]:
    return {
        "name": name, "status": "ok", "source": "verified", "cell": {"model": "gpt2", "budget": 24 * GIB},
        "memory": {"allocated_bytes": int(allocated * GIB), "reserved_bytes": None, "device_bytes": int(device * GIB)},
        "predicted": {"device_bytes": 20 * GIB}, "throughput": {"step_seconds": steps},
    } | more  # fmt: skip


def run(folder: Path, *results: dict[str, Any]) -> None:
    (folder / "cells").mkdir(parents=True)
    for number, one in enumerate(results):
        (folder / "cells" / f"{number}.json").write_text(json.dumps(one))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "some-gpu"
    folder.mkdir()
    environment = {
        "gpu": {"name": "Some GPU", "driver": "580.1"},
        "packages": {"torch": "2.11.0"},
        "torch_cuda": "13.0",
    }
    (folder / "doctor.json").write_text(json.dumps({"environment": environment}))
    errors = {"allocated": 0.01, "reserved": None, "device": -0.05}
    rows = [{"name": "gpt2 / a", "status": "ok", "measured": dict.fromkeys(errors, GIB), "errors": errors}]
    rows += [{"name": "gpt2 / b", "status": "oom", "measured": dict.fromkeys(errors), "errors": dict.fromkeys(errors)}]
    (folder / "accuracy.json").write_text(
        json.dumps(
            {
                "rows": rows, "median_absolute": {"allocated": 0.01, "reserved": None, "device": 0.05},
                "worst": {"allocated": 0.01, "reserved": None, "device": -0.05}, "decided_at_24gib": 2,
                "false_fits_at_24gib": ["gpt2 / b"], "false_does_not_fit_at_24gib": [],
                "met": {"allocated_median": False, "allocated_worst": True, "device_median": None},
            }
        )
    )  # fmt: skip
    (folder / "replay.jsonl").write_text('{"cell": "sft", "exact": true}\n{"cell": "ppo", "exact": null}\n')
    stages = [{"name": name, "outside_bytes": nbytes} for name, nbytes in (("context", GIB // 2), ("last", GIB))]
    (folder / "context.json").write_text(json.dumps({"accounting": "process", "stages": stages}))
    (folder / "meters_cost.json").write_text(json.dumps({"slow_down": 0.004, "interval_95": [-0.001, 0.009]}))
    ratio = {"tokens_per_second": 1.25, "allocated_bytes": 0.9, "reserved_bytes": None}
    sides = {"ours": {"tokens_per_second": 1250.0}, "trl": {"tokens_per_second": 1000.0}}
    bad = {"ours": {"tokens_per_second": 1250.0}, "trl": {"error": "ended with code 1"}, "ratio": dict.fromkeys(ratio)}
    (folder / "versus_trl.jsonl").write_text(
        "\n".join(json.dumps({"case": case, "trl_version": "1.12.0"} | row) for case, row in
                  (("sft", {**sides, "ratio": ratio}), ("ppo", bad)))
    )  # fmt: skip
    trained = {"allocated_bytes": 2 * GIB, "reserved_bytes": 3 * GIB, "model": "gpt2"}
    jobs = ({"job": "lora", **trained, "error": {"allocated_bytes": 0.02, "reserved_bytes": -0.01}},
            {"job": "dpo", **trained, "error": None}, {"job": "grpo", "failed": "not done after 150 s"})  # fmt: skip
    (folder / "trainers.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    run(folder / "claims", result("x", 1, 2, [3.0, 1.0, 2.0]), result("y", 1, 2, [], status="oom", predicted=None))
    samples = [result("z", 1, 2, [1.0]), result("z", 1 + 2**-10, 2, [1.1]), result("z", 1, 2, [1.2])]
    run(folder / "repeat", result("z", 1, 2, [1.0], samples=samples))
    return tmp_path


def test_a_results_folder_becomes_a_section(results: Path) -> None:
    lines = sections(results)
    assert lines[0] == "## Measured on Some GPU"
    assert "driver 580.1, torch 2.11.0, CUDA 13.0; `make gpu`, results/some-gpu/." in lines
    for expected in (
        "- 2 cells predicted before they were measured: allocated median 1.00 %, worst +1.00 %; device median 5.00 %, "
        "worst -5.00 %. Goals missed: allocated median.",
        "- At 24 GiB, of 2 cells: 1 predicted to fit that did not (gpt2 / b), 0 predicted not to fit that did.",
        "- The allocator's model repeated 1 of 2 recorded jobs to the byte (ppo).",
        "- Outside the allocator: 512 MiB as soon as CUDA is there, 1,024 MiB with every library that our jobs load.",
        "- Meters on against off: a step takes +0.40 % (95 %: -0.10 % to +0.90 %).",
        "| lora | 2.00 GiB | +2.00 % | 3.00 GiB | -1.00 % |",
        "| dpo | 2.00 GiB | - | 3.00 GiB | - |",
        "| sft | 1,250 | 1,000 | 1.25 | 0.90 | - |",
        "| ppo | 1,250 | ended with code 1 | - | - | - |",
        "| gpt2 / x | ok, verified | 1.00 GiB | 2.00 GiB | 20.00 GiB | 24.00 GiB | 2.00 s |",
        "| gpt2 / y | oom, verified | 1.00 GiB | 2.00 GiB | - | 24.00 GiB | - |",
        "| gpt2 / z | 3 | 1.00 MiB | - | 0.00 MiB | 18.2 % |",
        "| gpt2 / a | ok | 1.00 GiB | +1.00 % | 1.00 GiB | - | 1.00 GiB | -5.00 % |",
    ):
        assert expected in lines, expected


def test_later_predictions_stand_beside_the_first(results: Path) -> None:
    first = json.loads((results / "some-gpu" / "accuracy.json").read_text())
    later = first | {"worst": {"allocated": 0.001, "reserved": None, "device": 0.002}}
    (results / "some-gpu" / "accuracy-anew.json").write_text(json.dumps(later))
    told = "- The same cells predicted once more, with what the measurements taught: allocated median 1.00 %, worst +0.10 %;"
    assert any(line.startswith(told) for line in sections(results))


def test_trainers_are_told_as_they_are_predicted_today(results: Path) -> None:
    row = json.loads((results / "some-gpu" / "trainers.jsonl").read_text().splitlines()[0])
    row["error"] = {"allocated_bytes": 0.0, "reserved_bytes": 0.0}
    (results / "some-gpu" / "trainers-anew.jsonl").write_text(json.dumps(row))
    assert [line for line in sections(results) if line.startswith("| lora")] == [
        "| lora | 2.00 GiB | +0.00 % | 3.00 GiB | +0.00 % |"
    ]


def test_a_run_names_the_gpu_where_the_doctor_did_not_run(results: Path) -> None:
    doctor = results / "some-gpu" / "doctor.json"
    (results / "some-gpu" / "claims" / "run.json").write_text(doctor.read_text())
    doctor.unlink()
    assert sections(results)[0] == "## Measured on Some GPU"


def test_what_is_not_there_is_not_told(tmp_path: Path) -> None:
    assert sections(tmp_path / "none") == []
    (tmp_path / "gpu").mkdir()
    assert section(tmp_path / "gpu") == []
    (tmp_path / "gpu" / "doctor.json").write_text('{"environment": {"gpu": null}}')
    assert section(tmp_path / "gpu") == [], "a rehearsal"
    (tmp_path / "gpu" / "doctor.json").write_text('{"environment": {"gpu": {"name": "A"}}}')
    (tmp_path / "gpu" / "replay.jsonl").write_text('{"cell": "sft", "exact": true}\n{"cell": "p')
    lines = section(tmp_path / "gpu")
    assert lines[0] == "## Measured on A"
    told = [line for line in lines if line.startswith(("- ", "|", "###"))]
    assert told == ["- The allocator's model repeated 1 of 1 recorded jobs to the byte."]
