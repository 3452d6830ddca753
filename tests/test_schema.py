"""docs/schema: the committed JSON Schemas are the records', and what is written fits them."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pages
import pytest

from tests.reports import made
from tests.schemas import SCHEMA, validate
from vrambench.bench.commands.app import main
from vrambench.bench.gate.baseline import baseline_of, read_baseline, write_baseline
from vrambench.bench.gate.check import check
from vrambench.bench.results.records import OutOfMemory, Result
from vrambench.bench.results.store import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with a result of each kind."""
    results = (
        made.full("aaaaaaaaaaaa"),
        made.result("bbbbbbbbbbbb", status="invalid", rule="quantized-full", reason="it is not to be"),
        made.result("cccccccccccc", status="oom", phase="learn", oom=OutOfMemory(where="device", missing_bytes=5)),
        made.result("dddddddddddd", status="error", reason="<script>"),
    )
    run = RunFolder(tmp_path / "run")
    run.acquire()
    cells = [{"id": one.id, "name": one.name, **one.cell} for one in results]
    run.write_info({"device": "cuda", "repeat": 1, "environment": made.ENVIRONMENT, "cells": cells})
    for one in results:
        run.write_result(one)
    run.release()
    return RunFolder.open(run.path)


@pytest.mark.parametrize("name", pages.SCHEMAS)
def test_a_schema_is_its_records(name: str) -> None:
    text = (SCHEMA / f"{name}.json").read_text()
    assert text == pages.schema(name)
    jsonschema.Draft202012Validator.check_schema(json.loads(text))


def test_what_is_written_fits_its_schema(folder: RunFolder, tmp_path: Path) -> None:
    for file in folder.cells.glob("*.json"):
        validate("result", json.loads(file.read_text()))
    validate("run", json.loads((folder.path / "run.json").read_text()))
    write_baseline(baseline_of(folder), tmp_path / "baseline.json")
    validate("baseline", json.loads((tmp_path / "baseline.json").read_text()))
    validate("check", check(read_baseline(tmp_path / "baseline.json"), folder).document())


ONE = "--precision bf16 --adapter lora --optimizer adamw_torch --offload none --algorithm sft"
FILE = {"per_device_train_batch_size": 2, "bf16": True, "gradient_checkpointing": True, "warmup_ratio": 0.1}


def test_what_is_printed_fits_its_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VRAMBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "training_args.json").write_text(json.dumps(FILE))
    config = f"--config {tmp_path / 'training_args.json'} --model tiny --set max_length=64"
    for name, typed in (
        ("plan", f"plan --device cuda {ONE} --model tiny --sweep batch_size=1,2"),
        ("plan", f"plan --device cpu {config}"),
        ("fit", f"fit {ONE} --model tiny --max batch_size --budget 4MiB --advise 1"),
        ("fit", f"fit {config} --budget 1GiB"),
    ):
        main([*typed.split(), "--json"])
        document = json.loads(capsys.readouterr().out)
        validate(name, document)
        with pytest.raises(jsonschema.ValidationError):
            validate(name, document | {"another": 1})


def test_what_is_no_result_does_not(folder: RunFolder) -> None:
    told = json.loads(next(folder.cells.glob("a*.json")).read_text())
    for wrong in ({"status": "fine"}, {"memory": {"allocated_bytes": "12 GiB"}}, {"allocated": 12}):
        with pytest.raises(jsonschema.ValidationError):
            validate("result", told | wrong)
    assert Result.model_validate(told).status == "ok"
