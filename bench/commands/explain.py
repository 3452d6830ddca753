"""`vrambench explain`: what a recording of a GPU's memory tells."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vrambench.bench.commands.export import MOST_NAMED, recording_of
from vrambench.bench.commands.shared import Json, stdout_kept_clean
from vrambench.methods.errors import ConfigurationError

if TYPE_CHECKING:
    from vrambench.bench.allocator.explained import Explained
    from vrambench.bench.allocator.settings import AllocatorSettings

USUAL = ("expandable_segments:True", "max_split_size_mb:128", "max_split_size_mb:512")
"""Settings that are compared where none are named."""


def explain(
    recording: Annotated[
        Path,
        typer.Argument(
            metavar="RECORDING|RUN",
            help="What torch.cuda.memory._dump_snapshot wrote, gzip'd or not; or a run's folder.",
        ),
    ],
    cell: Annotated[str | None, typer.Argument(metavar="[CELL]", help="A cell of the run, by its name or id.")] = None,
    *,
    alloc_conf: Annotated[
        list[str] | None,
        typer.Option(
            "--alloc-conf",
            help="Settings to compare, as PYTORCH_ALLOC_CONF; may be repeated.",
            metavar="OPTIONS",
            show_default=", ".join(USUAL),
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain a recording of a GPU's memory, or a cell of a run.

    What was in use when memory ran out (or was at its highest), what lay unused, and what the same requests would have needed under
    other settings of the allocator. Nothing in the file is executed."""
    with stdout_kept_clean() as out:
        from vrambench.bench.allocator.explained import explain as explained
        from vrambench.bench.allocator.snapshot import read_snapshot

        others = dict.fromkeys(settings_of(text) for text in alloc_conf or USUAL)
        source, name = _source(recording, cell)
        try:
            devices = explained(read_snapshot(source), others)
        except ConfigurationError as error:
            told = error.message if str(recording) in error.message else f"{recording}: {error.message}"
            raise ConfigurationError(told, field=error.field) from None
        if not devices:
            raise ConfigurationError(
                f"{recording}: holds no trace, only what was in use at its end; record one with "
                "torch.cuda.memory._record_memory_history() before the job"
            )
        if as_json:
            print(
                json.dumps({"recording": str(recording), "devices": [document(one) for one in devices]}, indent=1),
                file=out,
            )
        else:
            from vrambench.reports.text.explained import print_explained

            for one in devices:
                print_explained(one, name, out)


def _source(recording: Path, cell: str | None) -> tuple[Path | bytes, str]:
    """What is read, and its name."""
    if recording.is_dir():
        if cell is None:
            raise ConfigurationError(f"{recording}: {_cells_in(recording)}", field="cell")
        return recording_of(recording, cell)
    if cell is not None:
        raise ConfigurationError(f"CELL {cell}: {recording} is no run's folder", field="cell")
    return recording, recording.name


def _cells_in(folder: Path) -> str:
    """What a folder without a cell is, and what to name."""
    from vrambench.bench.results.store import RunFolder

    if not (folder / "run.json").is_file():
        return "is a folder, and no run's (it has no run.json); name a recording's file, or a run's folder and a cell of it"
    names = [one.name for one in RunFolder.open(folder).results()]
    more = len(names) - MOST_NAMED
    rest = f" and {more} more, which vrambench report {folder} --format table tells" if more > 0 else ""
    return f"is a run's folder; name a cell of it as well: {', '.join(map(repr, names[:MOST_NAMED]))}{rest}"


def settings_of(text: str) -> AllocatorSettings:
    """Allocator settings as they are typed. Raises ConfigurationError."""
    from vrambench.bench.allocator.settings import AllocatorSettings

    try:
        return AllocatorSettings.parse(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"--alloc-conf {text}: {error.message}", field="alloc_conf") from None


def document(one: Explained) -> dict[str, Any]:
    """As `--json` prints it."""
    told = asdict(one) | {"settings": one.others[0].settings.text(), "given_bytes": one.given_bytes}
    told["live"] = [each._asdict() for each in one.live]
    told["called"] = [each._asdict() for each in one.called]
    told["unused"] = one.unused._asdict()
    told["ran_out"] = one.ran_out._asdict() if one.ran_out else None
    told["others"] = [asdict(each) | {"settings": each.settings.text()} for each in one.others]
    return told
