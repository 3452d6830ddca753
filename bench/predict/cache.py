"""Predictions that were made before, on disk: texts by the question that they answer.

    cache = Cache.usual()
    cache.put({"cell": cell.flat(), "budget_bytes": budget}, forecast.model_dump_json())
    cache.get({"cell": cell.flat(), "budget_bytes": budget})       the text, or None

An answer holds for this package's files as they are, and for the packages that are installed: with others there is none. One SQLite
file holds all. Several processes may use it at once; whatever is wrong with it or with the disk, there is no answer, nothing is
kept, and nobody is told. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import site
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

ENVIRONMENT = "VRAMBENCH_CACHE"
"""The variable that names another folder."""
FILE = "predictions.sqlite"
MOST = 10_000
"""Texts that are kept, the newest; one has some kB."""
PATIENCE_SECONDS = 1.0
"""How long another process is waited for."""

PACKAGE = Path(__file__).resolve().parents[2]
ROOMS = ("bench", "methods", "results")
"""Folders of this package on whose files predictions rest."""

Question = Mapping[str, Any]
"""Of what json writes."""

Found = TypeVar("Found")


class Cache:
    """`path`: the file, made when something is kept; None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._trimmed = False

    @classmethod
    def usual(cls) -> Cache:
        """In the usual folder."""
        folder = usual_folder()
        return cls(folder and folder / FILE)

    def get(self, question: Question) -> str | None:
        """The text that was kept for `question`, as it was put."""
        if not self._there():
            return None

        def look_up(database: sqlite3.Connection) -> str | None:
            row = database.execute("SELECT digest, text FROM kept WHERE key = ?", (_key(question),)).fetchone()
            return row[1] if row and isinstance(row[1], str) and row[0] == digest(row[1]) else None

        return self._with_database(look_up)

    def put(self, question: Question, text: str) -> None:
        """Keeps `text` for `question`."""

        def write(database: sqlite3.Connection) -> None:
            row = (_key(question), digest(text), text, time.time())
            database.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)", row)
            if not self._trimmed:
                newest = "SELECT key FROM kept ORDER BY at DESC LIMIT ?"
                database.execute(f"DELETE FROM kept WHERE key NOT IN ({newest})", (MOST,))
                self._trimmed = True

        self._with_database(write)

    def _there(self) -> bool:
        try:
            return self._path is not None and self._path.exists()
        except OSError:  # in a folder of another user
            return False

    def _with_database(self, work: Callable[[sqlite3.Connection], Found]) -> Found | None:
        """What `work` gives, in one transaction; None where it cannot be done. A damaged file is removed."""
        if self._path is None:
            return None
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self._path, timeout=PATIENCE_SECONDS)) as database, database:
                database.execute("PRAGMA synchronous = OFF")  # what a power cut damages, is made anew
                database.execute("CREATE TABLE IF NOT EXISTS kept (key PRIMARY KEY, digest, text, at)")
                return work(database)
        except (sqlite3.OperationalError, OSError):  # it is locked, the disk full, the folder another user's
            return None
        except (sqlite3.Error, UnicodeError):
            with contextlib.suppress(OSError):
                self._path.unlink()
            return None


def usual_folder() -> Path | None:
    """The folder that VRAMBENCH_CACHE names, else one in the user's cache; None for a user without a home."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return caches / "vrambench"


def _key(question: Question) -> str:
    return digest(json.dumps([_basis(), question], sort_keys=True, default=str))


def digest(text: str) -> str:
    """By which damage to what is kept is seen, and by which questions are told apart."""
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


@functools.cache
def _basis() -> str:
    """What every answer rests on: Python, the installed packages by name and version, and this package's files by name, size and
    time of change."""
    files = [path for room in ROOMS for path in _files(str(PACKAGE / room))]
    places = [*site.getsitepackages(), site.getusersitepackages(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    installed = sorted(
        {name for place in places if place for name in _distributions(place)}
    )  # sys.path grows with imports
    return digest(repr((sys.version, installed, sorted(files))))


def _files(folder: str) -> Iterator[tuple[str, int, int]]:
    """Its code and the figures of comparisons, folders below it included."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            yield from _files(entry.path)
        elif entry.name.endswith(".py") or entry.name.startswith("accuracy"):
            found = entry.stat()
            yield entry.path, found.st_size, found.st_mtime_ns


def _distributions(place: str) -> Iterator[str]:
    """`torch-2.9.1.dist-info` and its like."""
    with contextlib.suppress(OSError):
        names = (entry.name for entry in os.scandir(place))
        yield from (name for name in names if name.endswith((".dist-info", ".egg-info")))
