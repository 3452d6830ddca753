"""Starting and ending other processes of ours.

with fresh_start():                 # nothing in the current directory hides a module there
    process.start()
kill(process)                       # and every process that it started
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

LAST_SECONDS = 30.0
"""How long a killed process is waited for: one that hangs in a driver may never go."""


def kill(process: Any) -> None:
    """Ends a process of multiprocessing's and every process that it started, those with a session of their own too."""
    if process.pid is None:
        return
    started = descendants(process.pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if _leads_its_group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(process.pid, signal.SIGKILL)
    end(started)
    process.join(LAST_SECONDS)


def descendants(pid: int) -> list[psutil.Process]:
    """The processes that `pid` started and those that they started, as far as the system still knows who did."""
    import psutil  # not before: a mistake in what was typed starts nothing, and is told at once

    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def end(processes: Iterable[psutil.Process]) -> None:
    """Kills processes that may be gone already."""
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _leads_its_group(pid: int) -> bool:
    """True as well for one that is gone: who is left in the group that has its number was started by it."""
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return True


@contextlib.contextmanager
def fresh_start(settings: Mapping[str, str] | None = None) -> Iterator[None]:
    """While processes are started: `settings` in their environment, the current directory not among the places where they
    look for modules, and this process' own script hidden, which multiprocessing would run once more in each."""
    settings = {"PYTHONSAFEPATH": "1", **(settings or {})}
    before = {name: os.environ.get(name) for name in settings}
    main = sys.modules["__main__"]
    os.environ.update(settings)
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def interruptible() -> contextlib.AbstractContextManager[None]:
    """SIGTERM ends what is under way as Ctrl-C does: with KeyboardInterrupt, so that it can say so."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    return _handled(signal.SIGTERM, interrupt)


def deaf_to_interrupts() -> contextlib.AbstractContextManager[None]:
    """Processes that are started here ignore Ctrl-C from their first moment on: it is their parent's affair. For a moment only,
    since this process ignores it meanwhile."""
    return _handled(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _handled(number: signal.Signals, handler: Callable[[int, object], None] | signal.Handlers) -> Iterator[None]:
    """The signal is handled so meanwhile, and afterwards as before."""
    try:
        before = signal.signal(number, handler)
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)
