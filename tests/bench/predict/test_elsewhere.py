"""What another process holds of the budget: the job has the rest, in predictions and in runs, and it is told by itself."""

from __future__ import annotations

import io
from typing import Any

import pytest

from vrambench.bench.measure.measurement import Measurement
from vrambench.bench.measure.meters.cpu import CpuMeter
from vrambench.bench.predict.fit import fit
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.run import worker
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.reports.text.answers import print_fit

GIB = 2**30
AXES = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}


def cell_of(**said: Any) -> Cell:
    return resolve(
        AXES, {"model": "tiny", "prompt_tokens": 8, "response_tokens": 8, "steps": 1, "warmup_steps": 0} | said
    )


def test_the_job_has_the_rest() -> None:
    predictor = Predictor()
    alone, beside = (
        predictor.forecast(cell_of(budget="8GiB", **said)) for said in ({}, {"reserved_elsewhere": "3GiB"})
    )
    assert beside.memory == alone.memory.model_copy(update={"elsewhere_bytes": 3 * GIB})
    assert alone.memory.elsewhere_bytes is None
    assert beside.budget_bytes == alone.budget_bytes == 8 * GIB
    assert alone.margin_bytes - beside.margin_bytes == 3 * GIB
    assert predictor.forecast(cell_of(budget="8GiB")).verdict == "fits"
    most = 8 * GIB - (alone.memory.device_bytes or 0)
    assert predictor.forecast(cell_of(budget="8GiB", reserved_elsewhere=most + 1)).verdict == "does not fit"


def test_a_share_is_one_of_the_budget() -> None:
    assert cell_of(budget="rtx-4090", reserved_elsewhere="30%").workload.reserved_elsewhere == int(
        0.3 * int(23.64 * GIB)
    )
    assert cell_of(reserved_elsewhere="50%").id == cell_of(reserved_elsewhere="12GiB").id
    with pytest.raises(ConfigurationError, match=r"^budget: 'x' is not a size"):
        cell_of(budget="x", reserved_elsewhere="50%")


def test_it_is_told_on_a_line_of_its_own() -> None:
    out = io.StringIO()
    print_fit(fit(cell_of(budget="8GiB", reserved_elsewhere="3GiB")), out)
    said = out.getvalue()
    assert "of 8 GiB (3 GiB of it reserved beside the job) predicted" in " ".join(said.split())
    assert "elsewhere" in said


def test_a_run_is_held_to_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of(budget="8GiB", reserved_elsewhere="3GiB")
    assert cell.workload.own_budget == 5 * GIB
    sample = Measurement(cell, get_device("cpu"), CpuMeter()).run()
    assert sample.status == "ok"
    assert sample.memory.elsewhere_bytes == 3 * GIB
    limits: list[int] = []
    monkeypatch.setattr("vrambench.bench.measure.meters.host.limit_host_memory", limits.append)
    worker.make_meter(cell.workload.own_budget, get_device("cpu"))
    assert limits == [5 * GIB]
