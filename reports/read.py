"""Run folders as reports take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vrambench.bench.results.store import RunFolder
from vrambench.reports.rows import Run


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Named by their folders, by the whole path where two are called alike."""
    short = [folder.resolve().name for folder in folders]
    names = [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """A run folder as the report takes it, and what it calls it."""
    store = RunFolder.open(folder)
    results, unreadable = store.contents()
    return Run(
        name,
        store.info,
        tuple(results),
        tuple(str(one.file.relative_to(folder)) for one in unreadable),
        {one.file.stem: one.reason for one in unreadable},
    )


def unread_of(folders: Sequence[Path], runs: Sequence[Run]) -> tuple[str, ...]:
    """A line for each result file that cannot be read."""
    return tuple(
        f"{folder / file}: {run.unreadable[Path(file).stem]}"
        for folder, run in zip(folders, runs, strict=True)
        for file in run.corrupted
    )
