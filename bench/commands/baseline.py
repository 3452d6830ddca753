"""`vrambench baseline`: what a run gave, as a file that later runs are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vrambench.bench.commands.shared import check_out, say
from vrambench.bench.results import OWN_CODE
from vrambench.methods.errors import ConfigurationError


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
    held = {cell.id for cell in made.cells}
    for one in folder.unreadable:
        if one.cell_id in held:  # it was set aside, and its cell ran again
            continue
        again = f"`vrambench run --out {run}` makes it anew"
        again = "pytest makes it anew" if folder.info.get("profile") == OWN_CODE else again
        again = "use that version, or run its cells into another folder" if one.newer else again
        raise ConfigurationError(
            f"{one.file} is {one.reason}, and its cell would be held by nothing; {again}", field="run"
        )
    absent = len(folder.info["cells"]) - len(made.cells)
    if absent > 0:
        say(f"{plural(absent, 'cell')} without a result: left out")
    write_baseline(made, out)
    print(f"wrote {out}: {plural(len(made.cells), 'cell')}, {made.device}")
