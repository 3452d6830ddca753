"""Jobs in processes on this machine, apart from what they run."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.run import local, server
from vrambench.bench.run.local import LocalExecutor


def test_a_preparation_that_takes_too_long_is_ended_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "prepare.log"
    log.write_text("compiling\n")
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)

    def forked(*about: Any) -> Any:
        process.start()
        return process

    executor = LocalExecutor("cpu")
    monkeypatch.setattr(executor._server, "fork", forked)
    monkeypatch.setattr(local, "PREPARE_SECONDS", 0.01)
    assert executor.prepare("offload", "zero2", log) == "not ready after 0.01 s; its last words: compiling"
    assert not process.is_alive()


def test_jobs_are_forked_from_what_imports_what_their_cells_need(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(
        server.forkserver, "ensure_running", lambda: told.append(os.environ["VRAMBENCH_SERVER_MODULES"])
    )
    executor = LocalExecutor("cpu")
    executor.expect([plan({"adapter": "lora"}).cell, plan({"adapter": "dora", "optimizer": "adafactor"}).cell])
    executor._server.start()
    assert told == ["peft transformers.optimization"]
