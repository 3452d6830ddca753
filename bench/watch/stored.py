"""Ledgers of tests as a run's folder, which `vrambench baseline` and `check` read: each test is a cell, named by its node id."""

from __future__ import annotations

import hashlib
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from vrambench.bench.machine.environment import describe_environment
from vrambench.bench.results import OWN_CODE, PREDICTED
from vrambench.bench.results.records import Result, Status
from vrambench.bench.results.store import RunFolder
from vrambench.bench.watch.ledger import Ledger
from vrambench.methods.errors import ConfigurationError


def begin(path: Path) -> None:
    """Makes the run's folder, without results. Raises ConfigurationError where a run of cells is there."""
    folder = RunFolder(path)
    if (path / "run.json").exists():
        folder = RunFolder.open(path)
        if folder.info.get("profile") != OWN_CODE:
            raise ConfigurationError(f"--vram-results: {path} holds a run of cells; name another folder", field="out")
    try:
        folder.acquire()
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("out: ", "--vram-results: "), field="out") from None
    try:
        for file in folder.cells.glob("*.json"):
            file.unlink()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        environment = describe_environment(device)
        if device == "cpu":
            device = PREDICTED
            environment |= {"device": PREDICTED}
        folder.write_info(
            {
                "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "device": device,
                "repeat": 1,
                "profile": OWN_CODE,
                "command": " ".join(("pytest", *sys.argv[1:])),
                "environment": environment,
                "cells": [],
            }
        )
    finally:
        folder.release()


def store(path: Path, name: str, ledger: Ledger, error: BaseException | None = None) -> None:
    """Writes the result of the test `name`, which ended by `error`, if there is one."""
    status: Status = "error" if error else "ok" if ledger.fits else "oom"
    reason = f"{type(error).__name__}: {error}" if error else None if ledger.fits else ledger.verdict()
    RunFolder(path).write_result(
        Result(
            id=hashlib.sha256(name.encode()).hexdigest()[:12],
            name=name,
            cell={
                "test": name,
                "card": ledger.card.name if ledger.card else None,
                "budget": ledger.limit_bytes,  # as a cell's, so that reports hold the test to its limit
            },
            status=status,
            reason=reason,
            source=ledger.source,
            oom=ledger.oom,
            memory=ledger.memory,
            phases=ledger.phases,
            held=ledger.held,
        )
    )
