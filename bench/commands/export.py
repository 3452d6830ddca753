"""`vrambench export`: a cell's memory over time, as a file for a viewer."""

from __future__ import annotations

import gzip
import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vrambench.bench.commands.shared import check_out, stdout_kept_clean
from vrambench.methods.errors import ConfigurationError, UnknownValue

if TYPE_CHECKING:
    from vrambench.bench.results.records import Result

OPENED_BY = {"snapshot": "pytorch.org/memory_viz and vrambench explain", "perfetto": "ui.perfetto.dev"}
"""What opens each format."""
GZIP = b"\x1f\x8b"
MOST_NAMED = 6
"""Cells that an error names."""


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    cell: Annotated[str, typer.Argument(metavar="CELL", help="The cell's name, or its id or the beginning of it.")],
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The file to write; compressed, if it ends in .gz.", metavar="FILE")
    ],
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="snapshot (PyTorch's memory viewer) or perfetto.",
            metavar="FORMAT",
            show_default="perfetto where FILE is a .json, else snapshot",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a cell's memory over time, for PyTorch's memory viewer or for Perfetto.

    As it was recorded, where the run was told to (`run --record`); else as it is predicted for the GPU of the run, or the card of
    the budget: every block with its operator, its module and what it is."""
    if file_format is None:
        file_format = "perfetto" if ".json" in out.suffixes[-2:] else "snapshot"
    if file_format not in OPENED_BY:
        raise UnknownValue("--format", file_format, tuple(OPENED_BY))
    check_out(out, replaces=force)
    with stdout_kept_clean() as stdout:
        data, told = recording_of(run, cell)
        if file_format == "perfetto":
            data = as_perfetto(data)
        write(out, data)
        print(f"wrote {out}: {told}; open it with {OPENED_BY[file_format]}", file=stdout)


def recording_of(run: Path, cell: str) -> tuple[bytes, str]:
    """The recording of a run's cell, a pickle that may be gzip'd, and what it is. Raises ConfigurationError where the folder has no
    such cell, or the cell is invalid, and NotPredicted."""
    from vrambench.bench.results.store import RunFolder

    folder = RunFolder.open(run)
    found = found_in(folder.results(), cell, run)
    if found.status == "invalid":
        raise ConfigurationError(f"CELL {cell}: invalid by the rule {found.rule}: {found.reason}", field="cell")
    recording = folder.recording(found.id)
    data, source = (recording.read_bytes(), "as it was recorded") if recording.is_file() else _predicted(found)
    return data, f"{found.name}, {source}"


def _predicted(found: Result) -> tuple[bytes, str]:
    """A recording of the cell as it is predicted, and what to say of it."""
    from vrambench.bench.predict.exported import recorded
    from vrambench.bench.predict.quiet import hush
    from vrambench.methods.called import card_called
    from vrambench.methods.cell import from_flat
    from vrambench.reports import units

    hush()
    gpu = (found.environment.get("gpu") or {}).get("name")
    card = card_called(gpu)
    cell = from_flat(found.cell)
    forecast, recording = recorded(cell, card)
    ends = "memory runs out" if forecast.oom else f"{units.size(forecast.memory.reserved_bytes)} reserved"
    where = gpu or f"a card of {units.size(forecast.budget_bytes)}"
    return pickle.dumps(recording), f"as it is predicted for {where} ({ends})"


def found_in(results: Sequence[Result], wanted: str, run: Path) -> Result:
    """The result of the cell that is called so: its whole name, or the beginning of its id. Raises UnknownValue where there is
    none in the folder `run`, and ConfigurationError where there are several."""
    words = wanted.split()
    named = [one for one in results if one.name.split() == words] or [
        one for one in results if wanted and one.id.startswith(wanted)
    ]
    if len(named) == 1:
        return named[0]
    if not named:
        ids = re.fullmatch("[0-9a-f]{4,}", wanted) is not None
        raise UnknownValue(
            "CELL",
            wanted,
            [one.id if ids else one.name for one in results],
            told_by=f"vrambench report {run} --format table",
        )
    told = ", ".join(f"{one.id} ({one.name})" for one in named[:MOST_NAMED])
    raise ConfigurationError(
        f"CELL {wanted}: {len(named)} cells are called so, {told}; name one by its id", field="cell"
    )


def as_perfetto(data: bytes) -> bytes:
    """A recording as Perfetto's trace."""
    from vrambench.bench.allocator.perfetto import perfetto_of
    from vrambench.bench.allocator.snapshot import read_snapshot

    return json.dumps(perfetto_of(read_snapshot(data))).encode()


def write(out: Path, data: bytes) -> None:
    """`data` as a file, compressed where its name says so."""
    if data.startswith(GZIP) and out.suffix != ".gz":
        data = gzip.decompress(data)
    elif out.suffix == ".gz" and not data.startswith(GZIP):
        data = gzip.compress(data, mtime=0)
    out.write_bytes(data)
