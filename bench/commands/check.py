"""`vrambench check`: a run held against a baseline."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vrambench.bench.commands.shared import Json, check_out, say, stdout_kept_clean
from vrambench.bench.results import OWN_CODE, PREDICTED
from vrambench.methods.errors import ConfigurationError
from vrambench.reports.units import plural

if TYPE_CHECKING:
    from vrambench.bench.gate.baseline import Baseline
    from vrambench.bench.gate.check import CellCheck
    from vrambench.bench.results.store import RunFolder
    from vrambench.reports.ci.annotations import Place

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or pytest-benchmark's JSON.")]
BaselineFile = Annotated[Path, typer.Option("--baseline", help="What `vrambench baseline` wrote.", metavar="FILE")]
Tolerances = Annotated[
    list[str] | None,
    typer.Option(
        "--tolerance",
        help="What may grow by how much, as allocated_bytes=1%|64MiB; may be repeated.",
        metavar="METRIC=T",
    ),
]
TwoSided = Annotated[bool, typer.Option("--two-sided", help="What shrank by more than its tolerance fails, too.")]
AcrossVersions = Annotated[
    bool, typer.Option("--across-versions", help="Compare even where versions of packages differ.")
]
Again = Annotated[bool, typer.Option("--again/--no-again", help="Measure what is worse once more before it counts.")]
Junit = Annotated[Path | None, typer.Option(help="Write JUnit XML.", metavar="FILE")]
Summary = Annotated[Path | None, typer.Option(help="Write a summary in Markdown.", metavar="FILE")]
Annotate = Annotated[
    bool, typer.Option("--annotate", help="Also print annotations for GitHub, on the lines of the matrix.")
]


def check(
    run: Run,
    *,
    baseline: BaselineFile,
    tolerance: Tolerances = None,
    two_sided: TwoSided = False,
    across_versions: AcrossVersions = False,
    again: Again = True,
    junit: Junit = None,
    summary: Summary = None,
    annotate: Annotate = False,
    as_json: Json = False,
) -> int:
    """Hold a run against a baseline.

    Exit code 0: nothing is worse; 1: something is; 3: there is no baseline, it was made with other hardware or versions, or it has
    no cell in common with the run; 4: a measurement failed, which is neither a pass nor a regression.

    A measured cell that is worse is measured once more, into the run's folder `again`, where this is the machine that measured it;
    it is a regression if it is worse then, too."""
    from vrambench.bench.gate.baseline import read_baseline
    from vrambench.bench.gate.benchmarks import opened
    from vrambench.bench.gate.check import check as checked
    from vrambench.bench.gate.check import confirmed
    from vrambench.bench.results.store import RunFolder
    from vrambench.reports.ci.junit import junit_of
    from vrambench.reports.ci.markdown import summary_of

    for option, file in (("--junit", junit), ("--summary", summary)):
        if file is not None:
            check_out(file, option=option)
            if file.resolve() == baseline.resolve():
                raise ConfigurationError(f"{option} {file}: is the baseline; name another file", field="out")
    if junit is not None and summary is not None and junit.resolve() == summary.resolve():
        raise ConfigurationError(f"--junit and --summary: both name {junit}; name two files", field="out")
    told = _tolerances(tolerance or [])
    with stdout_kept_clean() as out:
        folder = opened(run)
        how = {"across_versions": across_versions, "two_sided": two_sided}
        before = read_baseline(baseline)
        found = checked(before, folder, told, **how)
        worse = {cell.id for cell in found.of("regressed")}
        if again and worse and run.is_dir() and folder.info["device"] != PREDICTED and measured_again(run, worse):
            found = confirmed(found, checked(before, RunFolder.open(run / "again"), told, **how))
        if junit is not None:
            junit.write_text(junit_of(found), encoding="utf-8")
        if summary is not None:
            summary.write_text(summary_of(found), encoding="utf-8")
        if annotate:
            from vrambench.reports.ci.annotations import annotations_of

            sys.stderr.write(annotations_of(found, _place(folder, before)))
        if as_json:
            print(json.dumps(found.document(), indent=1), file=out)
        else:
            from vrambench.reports.text.checked import print_check

            print_check(found, out)
    return found.exit_code


def _place(folder: RunFolder, before: Baseline) -> Place:
    """Where each cell stands in the run's matrix, if that can still be read."""
    from vrambench.bench.plan.matrix import load_matrix
    from vrambench.bench.plan.places import place_of

    cells = {one.id: one.cell for one in before.cells} | {one.id: one.cell for one in folder.results()}
    file, profile = folder.info.get("matrix"), folder.info.get("profile")
    try:
        matrix = load_matrix(Path(file)) if file else None
    except ConfigurationError:
        matrix = None

    def place(cell: CellCheck) -> tuple[str, int] | None:
        line = place_of(matrix, profile, cells[cell.id]) if matrix else None
        return (matrix.name, line) if matrix and line else None

    return place


def measured_again(run: Path, ids: Collection[str]) -> bool:
    """Measures these cells of the run anew, into its folder `again`. False where this is not the machine that measured them."""
    from vrambench.bench.commands.run import run_here
    from vrambench.bench.commands.work import of_folder
    from vrambench.bench.machine.environment import describe_environment
    from vrambench.bench.results.comparable import same_hardware
    from vrambench.bench.results.store import RunFolder

    info = RunFolder.open(run).info
    if info.get("profile") == OWN_CODE:
        say("not measured once more, since these are tests: pytest runs them")
        return False
    if info.get("on"):
        say("not measured once more, since this is the run of a cluster: run it again there, and check that")
        return False
    apart = same_hardware(info.get("environment") or {}, describe_environment(info["device"]))
    if apart:
        say(f"not measured once more, since this is another machine: {'; '.join(apart)}")
        return False
    say(f"measuring {plural(len(ids), 'cell')} once more, into {run / 'again'}")
    work = of_folder(run)
    shutil.rmtree(run / "again", ignore_errors=True)
    summary = run_here([one for one in work.cells if one.id in ids], run / "again", work.settings())
    if summary.interrupted:
        raise KeyboardInterrupt
    return True


def _tolerances(typed: list[str]) -> dict[str, str]:
    """By metric, as text. Raises ConfigurationError where one is named twice."""
    told: dict[str, str] = {}
    for one in typed:
        metric, equals, text = (part.strip() for part in one.partition("="))
        if not equals:
            raise ConfigurationError(f"--tolerance {one}: write METRIC=T, as allocated_bytes=1%", field="tolerance")
        if told.setdefault(metric, text) != text:
            raise ConfigurationError(
                f"--tolerance {metric}: is said twice, {told[metric]} and {text}", field="tolerance"
            )
    return told
