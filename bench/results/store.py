"""The run folder: the only code that reads or writes its files.

    DIR/run.json          what was asked for, and where it ran
    DIR/cells/<id>.json   one result per cell
    DIR/logs/<id>.log     what the cell's process printed
    DIR/report.html

Every file is written beside its place, flushed to the disk and moved there, so that a reader, or a run that is resumed after
any interruption, sees the old file or the new one and never half of one. One run at a time holds the folder's lock, which the
system releases when its holder dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from vrambench.bench.results.records import SCHEMA, Result
from vrambench.methods.errors import ConfigurationError


class RunFolder:
    """One run's files. `info` is run.json's content, {} before it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info: dict[str, Any] = {}
        self._lock = FileLock(path / ".lock")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of a run that was started before. Raises ConfigurationError where there is none, or of another schema."""
        folder = cls(path)
        file = path / "run.json"
        try:
            folder.info = json.loads(file.read_text())
        except FileNotFoundError:
            raise ConfigurationError(f"{path} is not a run's folder: it has no run.json", field="run") from None
        except (ValueError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{file} cannot be read: {error}", field="run") from None
        if not isinstance(folder.info, dict) or folder.info.get("schema") != SCHEMA:
            raise ConfigurationError(f"{file} is not of schema {SCHEMA}, the one that this version reads", field="run")
        return folder

    @property
    def cells(self) -> Path:
        return self.path / "cells"

    def log(self, name: str) -> Path:
        """Where the process of cell (or preparation) `name` prints."""
        return self.path / "logs" / f"{name}.log"

    def acquire(self) -> None:
        """Makes the folder and takes its lock. Raises ConfigurationError while another run holds it."""
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

    def release(self) -> None:
        self._lock.release()

    def write_info(self, info: dict[str, Any]) -> None:
        """Writes run.json; `schema` is added."""
        self.info = {"schema": SCHEMA} | info
        write_atomically(self.path / "run.json", json.dumps(self.info, indent=1) + "\n")

    def write_result(self, result: Result) -> None:
        """Writes the cell's file. Raises OSError where the disk cannot take it; the file that was there stays."""
        write_atomically(self.cells / f"{result.id}.json", dump_result(result))

    def read_result(self, cell_id: str) -> Result | None:
        """The cell's result; None where there is none, or the file is not one."""
        with contextlib.suppress(FileNotFoundError, ValidationError, ValueError):
            result = Result.model_validate_json((self.cells / f"{cell_id}.json").read_bytes())
            return result if result.id == cell_id else None
        return None

    def set_aside(self, cell_id: str) -> Path | None:
        """Renames the cell's file, if there is one, to one that no run will overwrite, and says where it is now."""
        file = self.cells / f"{cell_id}.json"
        if not file.exists():
            return None
        number = 1
        while (aside := file.with_suffix(f".json.corrupted-{number}")).exists():
            number += 1
        return file.rename(aside)

    def results(self) -> list[Result]:
        """Every readable result, in run.json's order, then the others by id."""
        order = {cell["id"]: place for place, cell in enumerate(self.info.get("cells", []))}
        found = [self.read_result(file.stem) for file in sorted(self.cells.glob("*.json"))]
        return sorted((result for result in found if result), key=lambda result: order.get(result.id, len(order)))

    @property
    def corrupted(self) -> list[Path]:
        """Result files that cannot be read, and those set aside before."""
        unread = [file for file in self.cells.glob("*.json") if self.read_result(file.stem) is None]
        return sorted([*unread, *self.cells.glob("*.corrupted-*")])


def dump_result(result: Result) -> str:
    """The result as schema 1's JSON, `schema` first, a number that is not finite as null."""
    data = result.model_dump(mode="json", by_alias=True)
    return json.dumps({"schema": data.pop("schema")} | data, indent=1) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` by `text` in one step that survives a power cut. Raises OSError and leaves `path` as it was."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
