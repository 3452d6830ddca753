"""`vrambench baseline`: what a run gave, as a file that later runs are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vrambench.bench.commands.shared import check_out, say


def baseline(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or pytest-benchmark's JSON.")],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.", metavar="FILE")],
    force: Annotated[bool, typer.Option("--force", help="Replace the baseline that is there.")] = False,
) -> None:
    """Write a baseline of a run.

    `vrambench check` holds later runs against it. Commit it: a line for each cell shows which ones a change moves. Tolerances that
    were written into the baseline that it replaces stay."""
    from vrambench.bench.gate.baseline import baseline_of, read_baseline, write_baseline
    from vrambench.bench.gate.benchmarks import opened
    from vrambench.reports.units import plural

    check_out(out, replaces=force)
    before = read_baseline(out) if out.exists() else None
    folder = opened(run)
    made = baseline_of(folder, before)
    for one in folder.unreadable:
        say(f"{one.file}: left out, since it is {one.reason}")
    write_baseline(made, out)
    print(f"wrote {out}: {plural(len(made.cells), 'cell')}, {made.device}")
