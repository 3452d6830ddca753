"""Python's own command line in a process that is forked from one which holds torch and transformers already, and not pytest.

    done = run(["-m", "pytest", "-q"], folder)          done.returncode, done.stdout, done.stderr

As `subprocess.run` of `python -m ...` there; each would import for 6 s of a CPU. For what does not test that imports are late, and
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


if __name__ == "__main__":
    _become(WORDS, FOLDER, SETTINGS, STREAMS)  # type: ignore[name-defined]  # noqa: F821 - what `run` asks
