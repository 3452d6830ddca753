"""Executors that tests of the runner share."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from vrambench.bench.run.local import LocalExecutor

LATE_SECONDS = 1e6


@pytest.fixture
def late_after() -> Callable[[Callable[[], object]], LocalExecutor]:
    """An executor whose jobs' time is up as soon as something has happened, however long that takes on a busy machine."""

    def executor(happened: Callable[[], object]) -> LocalExecutor:
        return LocalExecutor("cpu", clock=lambda: time.monotonic() + (LATE_SECONDS if happened() else 0))

    return executor
