"""`--on` and what belongs to it, before any cluster is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vrambench.bench.commands.app import main
from vrambench.bench.commands.cluster import Asked, asked


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    told = {
        "schema": 1,
        "device": "cuda:0",
        "repeat": 1,
        "cells": [],
        "on": "ray",
        "on_gpus": ["L4"],
        "cpus_per_cell": 4,
    }
    (tmp_path / "run.json").write_text(json.dumps(told))
    return tmp_path


def test_a_run_goes_on_where_it_was_begun(begun: Path, tmp_path: Path) -> None:
    assert asked(None, None, None, begun) == Asked("ray", ("L4",), 4)
    assert asked("ray://head:10001", "H100,L4", 2, begun) == Asked("ray://head:10001", ("H100", "L4"), 2)
    assert asked("local", None, None, begun) == Asked()
    assert asked(None, None, None, tmp_path / "new") == Asked()
    assert asked("ray", None, None, tmp_path / "new").about == {"on": "ray", "on_gpus": [], "cpus_per_cell": 1}


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("run --on rya", "error: --on: 'rya' is not one of local, ray, ray://HOST:PORT"),
        (
            "plan --on ray://",
            "error: --on: 'ray://' is not one of local, ray, ray://HOST:PORT; did you mean 'ray://HOST:PORT'?",
        ),
        ("run --on-gpus H100", "error: --on-gpus: is for cells on a cluster; add --on ray"),
        ("run --on local --cpus-per-cell 2", "error: --cpus-per-cell: is for cells on a cluster; add --on ray"),
        (
            "run --on ray --device predicted",
            "error: --device predicted: predictions are spread over a cluster by `vrambench plan --on ray`",
        ),
        (
            "run --on ray://127.0.0.1:9",
            "error: --on ray: no cluster answers at ray://127.0.0.1:9: Connection refused",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(typed: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed.split()) == 2
    assert capsys.readouterr().err.splitlines() == [told]


def test_ray_that_is_not_installed_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["run", "--on", "ray"]) == 2
    assert capsys.readouterr().err == "error: --on ray: Ray is not installed; pip install 'vrambench[ray]'\n"
