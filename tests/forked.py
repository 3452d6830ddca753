"""Processes that are forked from one which holds torch and transformers, and not pytest: each would import for 6 s of a CPU.

    done = run(["-m", "pytest", "-q"], folder)          done.returncode, done.stdout, done.stderr
    with predictions_forked():                          those processes, too, in which `predict_all` and others predict

`run` is as `subprocess.run` of `python -m ...` there, for what does not test that imports are late, and starts no process by
multiprocessing.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SECONDS = 300.0


def run(words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """`python WORDS` in `folder` with this process' environment; `words` begin with -m and a module's name."""
    from vrambench.bench.processes import kill
    from vrambench.bench.run.server import Server

    with tempfile.TemporaryDirectory() as kept:
        out, err = Path(kept, "stdout"), Path(kept, "stderr")
        asked = {
            "WORDS": list(words),
            "FOLDER": str(folder),
            "SETTINGS": dict(os.environ),
            "STREAMS": (str(out), str(err)),
        }
        process = Server("cpu").fork(runpy.run_path, __file__, asked, "__main__")
        process.join(SECONDS)
        if process.exitcode is None:
            kill(process)
            raise subprocess.TimeoutExpired(list(words), SECONDS, out.read_bytes(), err.read_bytes())
        return subprocess.CompletedProcess(list(words), process.exitcode, out.read_text(), err.read_text())


class _Warm(ForkServerContext):
    """Starts processes as multiprocessing's "spawn" does, with this process' environment."""

    def Process(self, *, target: Callable[..., Any], args: tuple[Any, ...]) -> Any:  # type: ignore[override]
        from vrambench.bench.run.server import Server

        Server("cpu").start()
        asked = {"TARGET": target, "ARGUMENTS": args, "SETTINGS": dict(os.environ)}
        return super().Process(target=runpy.run_path, args=(__file__, asked, "__main__"))


@contextmanager
def predictions_forked() -> Iterator[None]:
    """Meanwhile, pools of processes that predict are forked, too."""
    from vrambench.bench.predict import many

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many, "multiprocessing", SimpleNamespace(get_context=lambda method: _Warm()))
        yield


def _become(words: Sequence[str], folder: str, settings: Mapping[str, str], streams: Sequence[str]) -> None:
    """Does in this forked process what `python WORDS` does."""
    for number, file in enumerate(streams, start=1):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(settings)
    os.chdir(folder)
    sys.path.insert(0, folder)
    option, module, *arguments = words
    assert option == "-m", words
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _work(target: Callable[..., Any], arguments: Sequence[Any], settings: Mapping[str, str]) -> None:
    """In this forked process: calls `target` under the environment of who started it."""
    os.environ.clear()
    os.environ.update(settings)
    target(*arguments)


if __name__ == "__main__":  # in the forked process, with what was asked as globals
    if "TARGET" in globals():
        _work(TARGET, ARGUMENTS, SETTINGS)  # type: ignore[name-defined]  # noqa: F821
    else:
        _become(WORDS, FOLDER, SETTINGS, STREAMS)  # type: ignore[name-defined]  # noqa: F821
