"""Starting and ending other processes of ours."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import types
from collections.abc import Iterator
from typing import Any

import psutil

LAST_SECONDS = 30.0
"""How long a killed process is waited for: one that hangs in a driver may never go."""


def kill(process: Any) -> None:
    """Ends a job and every process that it started."""
    if process.pid is None:
        return
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess, PermissionError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(process.pid, signal.SIGKILL)
    process.join(LAST_SECONDS)


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Hides this process' own script while processes are started: multiprocessing would run it once more in each."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started here ignore Ctrl-C from their first moment on: it is their parent's affair. For a moment only,
    since this process ignores it meanwhile."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
