"""Python's own command line in a process that is forked from one which holds torch and transformers already, and not pytest.

    done = run(["-m", "pytest", "-q"], folder)          done.returncode, done.stdout, done.stderr
    done = run(["script.py", "word"], folder)

As `subprocess.run` of `python -P ...` there; each would import for 6 s of a CPU. For what does not test that imports are late, and
starts no process by multiprocessing.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SECONDS = 300.0


def run(words: Sequence[str], folder: Path, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    """`python WORDS` in `folder` with this process' environment; `words` begin with -m and a module's name, or with a script's.
    Raises subprocess.TimeoutExpired after so many seconds."""
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
        process.join(seconds)
        if process.exitcode is None:
            kill(process)
            raise subprocess.TimeoutExpired(list(words), seconds, out.read_bytes(), err.read_bytes())
        return subprocess.CompletedProcess(list(words), process.exitcode, out.read_text(), err.read_text())


def _become(words: Sequence[str], folder: str, settings: Mapping[str, str], streams: Sequence[str]) -> None:
    """Does in this forked process what `python WORDS` does."""
    for number, file in enumerate(streams, start=1):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(settings)
    os.chdir(folder)
    if words[0] == "-m":
        sys.path.insert(0, folder)
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _become(WORDS, FOLDER, SETTINGS, STREAMS)  # type: ignore[name-defined]  # noqa: F821 - what `run` asks
