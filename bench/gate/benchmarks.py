"""pytest-benchmark's JSON as a run: each benchmark whose `extra_info` has peaks, as `device_bytes`, is a cell.

    baseline_of(opened(Path("benchmarks.json")))        a run's folder is opened as it is

Peaks have the ledger's names. `extra_info["source"]` says whether they are `measured`, as they are where it says nothing, or
`predicted`. Times of benchmarks are not compared: pytest-benchmark does that.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vrambench.bench.results.reading import in_words, parse
from vrambench.bench.results.records import Memory, Result
from vrambench.bench.results.run_info import RunInfo
from vrambench.bench.results.store import RunFolder
from vrambench.methods.errors import ConfigurationError

DEVICE = "pytest-benchmark"


class BenchmarkRun(RunFolder):
    """The benchmarks of one file. Raises ConfigurationError where it is not pytest-benchmark's."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            data = parse(path)
            self._benchmarks: list[dict[str, Any]] = data["benchmarks"]
            python = data["machine_info"]["python_version"]
            self._results = [_result(one) for one in self._benchmarks if _peaks(one)]
        except ValidationError as error:
            raise ConfigurationError(f"{path}: extra_info: {in_words(error)}", field="run") from None
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}", field="run") from None
        except (KeyError, TypeError, AttributeError, ValueError):
            raise ConfigurationError(
                f"{path} is neither a run's folder nor pytest-benchmark's JSON (pytest --benchmark-json FILE)",
                field="run",
            ) from None
        if not self._results:
            raise ConfigurationError(
                f"{path}: no benchmark tells its peaks in extra_info, as device_bytes or allocated_bytes", field="run"
            )
        self.run = RunInfo.model_validate(
            {"device": DEVICE, "repeat": 1, "cells": [], "environment": {"device": DEVICE, "python": python}}
        )

    def results(self) -> list[Result]:
        return self._results


def _peaks(benchmark: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in benchmark["extra_info"].items() if name in Memory.model_fields}


def _result(benchmark: dict[str, Any]) -> Result:
    name = benchmark["fullname"]
    return Result(
        id=hashlib.sha256(name.encode()).hexdigest()[:12],
        name=name,
        cell={"test": name},
        status="ok",
        source=benchmark["extra_info"].get("source", "measured"),
        memory=Memory(**_peaks(benchmark)),
    )


def opened(path: Path) -> RunFolder:
    """The run in a folder, or in pytest-benchmark's file. Raises ConfigurationError where `path` is neither."""
    return BenchmarkRun(path) if path.is_file() else RunFolder.open(path)
