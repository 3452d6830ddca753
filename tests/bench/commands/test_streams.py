"""Standard output and standard error that break."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from vrambench.bench.commands.streams import ReaderGone, streams
from vrambench.bench.run.executor import Spot
from vrambench.reports.text.progress import listening
from vrambench.reports.text.terminal import Output


def nobody() -> TextIO:
    """A pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def test_progress_goes_on_where_its_terminal_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with nobody() as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        with streams():
            console = Output(sys.stderr, force_terminal=True)
            with listening(console, str, str) as listener:
                listener.message("one")
                listener.started("a cell", 0, 2)
                listener.phase("a cell", Spot("learn", 1, 9))
            print("two", file=sys.stderr, flush=True)
        assert sys.stderr is gone


@pytest.mark.parametrize("rich", [False, True])
def test_an_output_that_nobody_reads_ends_the_command(rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with nobody() as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        with streams():
            with pytest.raises(ReaderGone):
                Output(sys.stdout).tell("one") if rich else print("one", flush=True)
            print("two", flush=True)  # goes nowhere, as what the interpreter writes at its end


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("typed", ["fit --help", "", "--version"])
def test_a_full_device_is_told(typed: str, unbuffered: str) -> None:
    """Click tries a stream with an empty text, and says nothing of what that raises."""
    code = "import sys; from vrambench.bench.commands.app import main; sys.exit(main())"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, *typed.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    assert (done.returncode, done.stderr) == (4, "error: standard output: No space left on device\n")


def test_an_interruption_while_the_program_imports_itself_is_told() -> None:
    code = """if True:
        import sys
        from vrambench.bench.commands.entry import main

        class Interrupted:
            def find_spec(self, name, path=None, target=None):
                if name == "typer":
                    raise KeyboardInterrupt

        sys.meta_path.insert(0, Interrupted())
        sys.exit(main())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_what_the_encoding_lacks_is_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    with streams():
        print("1 → 2", flush=True)
    assert ascii_only.buffer.getvalue() == b"1 ? 2\n"  # type: ignore[attr-defined]


def test_streams_that_were_closed_from_the_start_go_nowhere() -> None:
    """The first file that is opened must not get their numbers: what child processes print would be written into it."""
    code = """if True:
        import os
        from vrambench.bench.commands.streams import streams
        with streams():
            print("lost", flush=True)
            file = os.open("/dev/null", os.O_WRONLY)
            os._exit(0 if file > 2 else 1)
    """
    done = subprocess.run([sys.executable, "-P", "-c", code], preexec_fn=lambda: (os.close(1), os.close(2))[0])
    assert done.returncode == 0
