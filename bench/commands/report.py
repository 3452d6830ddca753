"""`vrambench report`: one HTML file about runs."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from vrambench.bench.commands.shared import EXIT_FAILED, EXIT_USAGE, check_out, say, stdout_kept_clean
from vrambench.methods.errors import ConfigurationError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.", metavar="FILE")] = Path("report.html"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is no report.")] = False,
) -> None:
    """Write an HTML report about runs.

    It is one file, which needs nothing else to be read."""
    check_out(out, replaces=force or not out.is_file() or is_report(out), why=", and is no report of ours")
    with stdout_kept_clean() as stdout:
        write_report(runs, out)
        _say_what_cannot_be_read(runs)
        print(f"wrote {out}", file=stdout)


def _say_what_cannot_be_read(runs: Sequence[Path]) -> None:
    from vrambench.bench.results.store import RunFolder

    for folder in runs:
        for one in RunFolder.open(folder).unreadable:
            say(f"{one.file}: {one.reason}")


def is_report(path: Path) -> bool:
    """Whether the file is a report that vrambench wrote."""
    with path.open("rb") as file:
        return b'name="generator" content="vrambench' in file.read(4096)


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Writes the report in a process of its own: where the drawing library lacks memory, it ends the process that it is in.
    Raises ConfigurationError where a folder is no run's, OSError, with the file's name, where there is no report."""
    code = f"from {__name__} import draw; draw()"
    command = [sys.executable, "-P", "-c", code, str(out), *map(str, folders)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    words = done.stderr.strip().rpartition("\n")[2]
    if done.returncode == EXIT_USAGE:
        raise ConfigurationError(words, field="run")
    if done.returncode == EXIT_FAILED:
        raise OSError(words)
    if done.returncode:
        ended = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        raise OSError(f"{out}: the report could not be drawn; drawing ended with {ended}: {words or 'no output'}")


def draw() -> NoReturn:
    """Runs in the process of its own, on the file's and the folders' names; its last line on stderr says what is wrong."""
    from vrambench.reports.page import html

    out, *folders = map(Path, sys.argv[1:])
    try:
        html.write_report(folders, out)
    except ConfigurationError as error:
        print(error.message, file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except OSError as error:
        print(f"{error.filename or out}: {error.strerror or error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    sys.exit(0)
