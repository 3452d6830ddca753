"""What jobs print, kept small: the first and the last part of a log, and its last line.

The parent does it while the job runs; a line or two may be lost where both write.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MOST = 16 * 2**20
"""Bytes from which on a log is cut."""
KEPT = 2**20
"""Bytes that are kept at its beginning, and at its end."""
LINE = 500
"""Characters of a last line."""
SEARCHED = 64 * 2**10
"""Bytes at the end in which the last line is looked for."""


def trim(log: Path) -> None:
    """Cuts the middle out of a log that has grown too large; it stays the file that its job appends to."""
    with contextlib.suppress(OSError):
        size = log.stat().st_size
        if size <= MOST:
            return
        end = _end(log, KEPT)
        os.truncate(log, KEPT)
        with log.open("ab") as file:
            file.write(f"\n... {size - 2 * KEPT:,} bytes left out ...\n".encode() + end)


def last_line(log: Path) -> str:
    """The last line with something on it, without control characters; `no output` where there is none."""
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in _end(log, SEARCHED).decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return "".join(
                letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in lines[-1][:LINE]
            )
    return "no output"


def _end(log: Path, nbytes: int) -> bytes:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - nbytes))
        return file.read(nbytes)
