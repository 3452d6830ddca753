"""The run folder: the only code that reads or writes its files.

    DIR/run.json          what was asked for, and where it ran
    DIR/cells/<id>.json   one result per cell
    DIR/logs/<id>.log     what the cell's process printed
    DIR/saved/<name>/     what a cell has saved for others (save_as)
    DIR/recordings/       what the allocator of a cell's GPU recorded (run --record)
    DIR/report.html

Every file is written beside its place, flushed to the disk and moved there, so that a reader, or a run that is resumed after
any interruption, sees the old file or the new one and never half of one. One run at a time holds the folder's lock, which the
system releases when its holder dies; what a killed run was writing is swept away under the next one's lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from vrambench.bench.results.reading import Refused, in_words, parse, schema_refused
from vrambench.bench.results.records import SCHEMA, Result
from vrambench.bench.results.run_info import RunInfo, read_run_info
from vrambench.methods.errors import ConfigurationError


@dataclass(frozen=True)
class Unreadable:
    """A cell's file that holds no result of this version, and why. `newer`: a newer version wrote it."""

    file: Path
    reason: str
    newer: bool = False

    @property
    def cell_id(self) -> str:
        return self.file.name.partition(".")[0]


class RunFolder:
    """One run's files. `run`: run.json's content, None before it is read or written."""

    def __init__(self, path: Path | str) -> None:
        self.path = path = Path(path)
        self.run: RunInfo | None = None
        self._lock = FileLock(path / ".lock")

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """The folder of a run that was started before. Raises ConfigurationError where there is none, its run.json is damaged
        or of another schema, or its results may not be read."""
        folder = cls(path)
        folder.run = read_run_info(folder.path / "run.json")
        if folder.cells.exists() and not os.access(folder.cells, os.R_OK | os.X_OK):
            raise ConfigurationError(f"{folder.cells}: cannot be read: {os.strerror(errno.EACCES)}", field="run")
        return folder

    @property
    def info(self) -> dict[str, Any]:
        """run.json's content as plain data, for those who show all of it; {} before it is read or written."""
        return self.run.document() if self.run else {}

    @property
    def cells(self) -> Path:
        return self.path / "cells"

    def log(self, name: str) -> Path:
        """Where the process of cell (or preparation) `name` prints."""
        return self.path / "logs" / f"{name}.log"

    def recording(self, name: str) -> Path:
        """Where the recording of cell `name` is, if it was recorded."""
        return self.path / "recordings" / f"{name}.pickle.gz"

    def acquire(self) -> None:
        """Makes the folder, takes its lock and sweeps. Raises ConfigurationError while another run holds it."""
        for folder in (self.path, self.cells, self.path / "logs"):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigurationError(f"out: {folder} cannot be made: {error.strerror}", field="out") from error
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigurationError(
                f"out: another run is at work in {self.path}; wait for it, or name another folder with --out",
                field="out",
            ) from None
        self._sweep()

    def release(self) -> None:
        self._lock.release()

    def _sweep(self) -> None:
        """Removes what a killed run had begun to write. Only the lock's holder writes these files."""
        for file in (*self.cells.glob(".*.json.*.tmp"), *self.path.glob(".run.json.*.tmp")):
            with contextlib.suppress(OSError):
                file.unlink()

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Checks and writes run.json; `schema` is added."""
        self.run = RunInfo.model_validate({"schema": SCHEMA} | dict(info))
        write_atomically(self.path / "run.json", json.dumps(self.info, indent=1) + "\n")

    def write_result(self, result: Result) -> None:
        """Writes the cell's file. Raises OSError where the disk cannot take it; the file that was there stays."""
        write_atomically(self.cells / f"{result.id}.json", dump_result(result))

    def read(self, cell_id: str) -> Result | Unreadable | None:
        """The cell's result, or why its file is none; None where there is no file. A key that this version does not know
        is passed over."""
        file = self.cells / f"{cell_id}.json"
        try:
            data = parse(file)
            refused = schema_refused(data)
            if refused is None:
                result = Result.model_validate(data, extra="ignore")
                if result.id == cell_id:
                    return result
                refused = Refused(f"the result of another cell, {result.id[:40]!r}")
        except FileNotFoundError:
            return None if not file.is_symlink() else Unreadable(file, "a link to nothing")
        except ValidationError as error:
            refused = Refused(f"not a readable result: {in_words(error)}")
        except OSError as error:
            refused = Refused(f"not a readable result: {error.strerror or error}")
        except ValueError as error:
            refused = Refused(f"not a readable result: {error}")
        return Unreadable(file, refused.reason, refused.newer)

    def read_result(self, cell_id: str) -> Result | None:
        """The cell's result; None where there is none, or the file is not one."""
        found = self.read(cell_id)
        return found if isinstance(found, Result) else None

    def set_aside(self, cell_id: str) -> Path | None:
        """Renames the cell's file, if there is one, to one that no run will overwrite, and says where it is now."""
        file = self.cells / f"{cell_id}.json"
        if not os.path.lexists(file):
            return None
        number = 1
        while os.path.lexists(aside := file.with_suffix(f".json.corrupted-{number}")):
            number += 1
        return file.rename(aside)

    def contents(self) -> tuple[list[Result], list[Unreadable]]:
        """`results` and `unreadable`, each file read once."""
        order = {cell.id: place for place, cell in enumerate(self.run.cells if self.run else ())}
        found = [self.read(file.stem) for file in sorted(self.cells.glob("*.json"))]
        results = [one for one in found if isinstance(one, Result)]
        unread = [one for one in found if isinstance(one, Unreadable)]
        aside = [Unreadable(file, "set aside") for file in self.cells.glob("*.corrupted-*")]
        results.sort(key=lambda result: order.get(result.id, len(order)))
        return results, sorted([*unread, *aside], key=lambda one: one.file)

    def results(self) -> list[Result]:
        """Every readable result, in run.json's order, then the others by id."""
        return self.contents()[0]

    @property
    def unreadable(self) -> list[Unreadable]:
        """Result files that cannot be read, and those set aside before."""
        return self.contents()[1]


def dump_result(result: Result) -> str:
    """The result as schema 1's JSON, `schema` first, a number that is not finite as null."""
    data = result.model_dump(mode="json", by_alias=True)
    return json.dumps({"schema": data.pop("schema")} | data, indent=1) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` by `text` in one step that survives a power cut. Raises OSError and leaves `path` as it was."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        with temporary.open("x", encoding="utf-8") as file:  # with the rights that the user's umask gives
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
