"""Standard output and standard error as every command has them: what is wrong with them never becomes a verdict.

with streams():
    print("the answer")             ReaderGone where nobody reads it any more
    print("progress", file=sys.stderr)      never fails
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class ReaderGone(Exception):
    """Whoever read standard output has closed it. No OSError: Click and Rich end the process with exit code 1 on those."""


class _Stream:
    """A text stream whose failures are handled; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if text == "":  # Click asks so what the stream takes, and lets no failure through
            return 0
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """What could not be written, and all that follows, goes nowhere: the interpreter would write it again at its end."""
        with contextlib.suppress(OSError, ValueError):
            _to_nowhere(self._stream.fileno())


class _Output(_Stream):
    """Standard output: what cannot be said ends the command."""

    def _failed(self, error: Exception) -> None:
        super()._failed(error)
        if isinstance(error, OSError) and error.errno != errno.EPIPE:
            raise OSError(error.errno, error.strerror, "standard output") from error
        raise ReaderGone from error


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Puts the two in place. One that was closed by whoever started us goes nowhere; a character that the output's encoding
    lacks is printed as `?`."""
    before = sys.stdout, sys.stderr
    out = before[0] or _nowhere(1)
    error = before[1] or _nowhere(2)
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="replace")
    sys.stdout, sys.stderr = cast(TextIO, _Output(out)), cast(TextIO, _Stream(error))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _nowhere(number: int) -> TextIO:
    _to_nowhere(number)  # no file that is opened later may get the number, which child processes print to
    return open(number, "w", closefd=False)


def _to_nowhere(number: int) -> None:
    handle = os.open(os.devnull, os.O_WRONLY)
    os.dup2(handle, number)
    if handle != number:
        os.close(handle)
