"""`vrambench run`: planned cells are measured, each in a process of its own."""

from __future__ import annotations

import functools
import math
import shlex
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from vrambench.bench.commands.cluster import Cluster, CpusPerCell, On, OnGpus, asked, begun_on, opened
from vrambench.bench.commands.early import load
from vrambench.bench.commands.report import write_report
from vrambench.bench.commands.selectors import with_selectors
from vrambench.bench.commands.shared import (
    DEVICES,
    MatrixPath,
    card_named,
    check_device,
    is_there,
    predictions,
    say,
    stdout_kept_clean,
)
from vrambench.bench.commands.work import NO_GPU, Work, of_claims, of_folder, of_matrix
from vrambench.bench.results import BESIDE, PREDICTED
from vrambench.methods.errors import ConfigurationError, UnknownValue, brief

RUN_DEVICES = (*DEVICES, PREDICTED)

if TYPE_CHECKING:
    from vrambench.bench.plan.plan import PlannedCell
    from vrambench.bench.plan.selection import Selection
    from vrambench.bench.run.session import Summary


def _seconds(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value >= 1):
        raise typer.BadParameter("must be a finite number of seconds, at least 1.")
    return value


Device = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, cuda, cuda:N; or predicted.", metavar="DEVICE", show_default="auto"),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="The run's folder; where it holds a run, that run is resumed.",
        metavar="DIR",
        show_default="runs/<time>",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        help="Cells at a time; on a GPU it can only be 1.",
        min=1,
        metavar="N",
        show_default="one per core on the CPU",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(help="Seconds that a cell may take.", metavar="S", callback=_seconds, show_default="1800"),
]
Retry = Annotated[
    str | None,
    typer.Option(help="Run cells that ended so again: timeout, crashed, error, pruned.", metavar="STATUS,.."),
]
Prune = Annotated[
    bool,
    typer.Option(
        "--prune/--no-prune", help="Predict first, and do not start what needs far more than its budget (CUDA)."
    ),
]
Claimed = Annotated[
    str | None,
    typer.Option(
        "--claims", help="The cells of these claims instead of a matrix': their names, or all.", metavar="ID,..|all"
    ),
]
StorePredictions = Annotated[
    bool,
    typer.Option("--predict/--no-predict", help="Store predictions beside what is measured (CUDA); --prune does too."),
]

Record = Annotated[
    bool,
    typer.Option("--record", help="Record the allocator of each cell, for `vrambench export` and `explain` (CUDA)."),
]


@with_selectors()
def run(
    context: typer.Context,
    matrix: MatrixPath = None,
    *,
    selection: Selection,
    out: Out = None,
    device: Device = None,
    jobs: Jobs = None,
    timeout: Timeout = None,
    retry: Retry = None,
    prune: Prune = False,
    predict: StorePredictions = False,
    record: Record = False,
    claims: Claimed = None,
    on: On = None,
    on_gpus: OnGpus = None,
    cpus_per_cell: CpusPerCell = None,
) -> int:
    """Run the valid cells and write a report.

    Each cell runs in a process of its own, and what it gave is stored as soon as it ends. Where there is no GPU and nothing is
    chosen, tiny cells are trained here, and what a 24 GB card would hold is predicted beside them: one report, of both. --on ray
    runs cells on a cluster: docs/cluster.md.

    Naming all five axes asks for every combination of the values named: the matrix' exclude and coverage then leave none
    out, and entries of its include that name all five axes are left out. --claims runs what claims need; `vrambench claims
    FOLDER` then says what becomes of them."""
    statuses = _statuses(retry)
    if device is not None:
        check_device(device, RUN_DEVICES)
    _check_gpu(
        device or "auto", {"--prune": prune, "--predict": predict, "--record": record}
    )  # before the work is told
    folder = out or _new_folder(Path("runs"))
    begun = is_there(folder / "run.json", f"--out {brief(str(folder), 300)}")
    resumed = matrix is None and replace(selection, repeat=None).empty and begun
    where = asked(on, on_gpus, cpus_per_cell, folder)
    loaded = functools.cache(lambda: load(matrix, selection))
    with stdout_kept_clean() as stdout, opened(where, device or begun_on(folder), jobs) as cluster:
        if claims is not None:
            work = of_claims(folder, claims, matrix, selection, device or "auto", cluster)
        elif resumed:
            work = of_folder(folder, device, cluster, selection)
        else:
            work = of_matrix(folder, loaded(), selection, device or "auto", cluster)
        _check_gpu(work.device, {"--prune": prune, "--predict": predict, "--record": record})
        runs = [(folder, work)]
        beside = folder / BESIDE
        plain = (
            claims is None and device is None and (resumed or selection.empty) and work.device == "cpu" and not cluster
        )
        if plain and (beside.is_dir() if resumed else PREDICTED in loaded().default_profile):
            there = (beside / "run.json").exists()
            runs.append((beside, of_folder(beside) if there else of_matrix(beside, loaded(), selection, PREDICTED)))
            beside.mkdir(parents=True, exist_ok=True)  # by which a run that is resumed knows that it belongs to it
        how: dict[str, Any] = {"retry": statuses, "record": record}
        if predict or prune:
            pool = cluster.pool if cluster else None
            how |= {"predict": predictions(card_named(selection), left_out=work.left_out, pool=pool), "prune": prune}
        said = where.about | {"command": shlex.join(["vrambench", *context.obj])}
        calls = []
        for place, one in runs:
            one = replace(one, about=one.about | said, jobs=jobs or one.jobs, timeout=timeout or one.timeout)
            calls.append((place, one.cells, one.settings() | how | _executor(one, cluster)))
        return _carry_out(calls, stdout, prune=prune, predict=predict)


def _check_gpu(device: str, asked: Mapping[str, bool]) -> None:
    """That nothing is asked which only a GPU gives, where none is used."""
    for option, chosen in asked.items():
        if chosen and device in NO_GPU:
            raise ConfigurationError(f"{option}: is for runs on a GPU, and {NO_GPU[device]}", field="device")


Calls = Sequence[tuple[Path, "Sequence[PlannedCell]", dict[str, Any]]]
"""Runs: each one's folder, cells, and how `session.run` is called for it."""


def _executor(work: Work, cluster: Cluster | None) -> dict[str, Any]:
    """What else `session.run` is to know where the cells are no processes on this machine."""
    if cluster:
        return {"executor": cluster.executor, "jobs": cluster.executor.places}
    if work.device != PREDICTED:
        return {}
    from vrambench.bench.predict.cache import Cache
    from vrambench.bench.run.predicted import PredictingExecutor

    return {"executor": PredictingExecutor(work.card, work.side_by_side, work.left_out, Cache.usual())}


def _carry_out(calls: Calls, stdout: TextIO, *, prune: bool, predict: bool) -> int:
    """The runs, one after the other, and the report about them, which is in the first one's folder: the exit code."""
    folder = calls[0][0]
    codes = []
    for place, cells, settings in calls:
        summary = run_here(cells, place, settings)
        codes.append(summary.exit_code)
        if summary.interrupted:
            _say_how_to_go_on(folder, prune=prune, predict=predict)
            break
    done = [place for place, _, _ in reversed(calls[: len(codes)])]  # the predictions first: what fits a card
    try:
        print_results(done, stdout)
        _report(done, folder / "report.html", stdout)
    except KeyboardInterrupt:
        say(f"the report was not written; write it with: vrambench run --out {shlex.quote(str(folder))}")
        raise
    return max(codes)


def _report(folders: Sequence[Path], written: Path, stdout: TextIO) -> None:
    """The report about runs; one of before, which is no longer true, is gone first."""
    written.unlink(missing_ok=True)
    write_report(folders, written)
    print(f"wrote {written}", file=stdout)


def run_here(cells: Sequence[PlannedCell], folder: Path, settings: dict[str, Any]) -> Summary:
    """Runs the cells, which is seen on stderr."""
    from vrambench.bench.run.executor import NowhereLeft
    from vrambench.bench.run.session import run as run_cells
    from vrambench.reports import units
    from vrambench.reports.text.progress import listening
    from vrambench.reports.text.terminal import Output

    try:
        with listening(Output(sys.stderr), units.size, units.seconds) as listener:
            return run_cells(cells, folder, listener=listener, **settings)
    except (KeyboardInterrupt, NowhereLeft):  # a second interrupt, while jobs were being ended
        _say_how_to_go_on(folder, prune=settings.get("prune", False), predict="predict" in settings)
        raise


def _say_how_to_go_on(folder: Path, *, prune: bool, predict: bool) -> None:
    option = " --prune" if prune else " --predict" if predict else ""
    say(f"go on with: vrambench run --out {shlex.quote(str(folder))}{option}")


def _statuses(text: str | None) -> frozenset[str]:
    """The statuses of `--retry`."""
    from vrambench.bench.results.records import FAILED

    choices = (*FAILED, "pruned")
    names = [] if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in choices:
            raise UnknownValue("--retry", name, choices)
    return frozenset(names)


def _new_folder(parent: Path) -> Path:
    """A folder for a run that begins now."""
    stamp = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    names = (stamp if number == 1 else f"{stamp}-{number}" for number in range(1, 1000))
    return next(parent / name for name in names if not (parent / name).exists())


def print_results(folders: Sequence[Path], out: typing.TextIO) -> None:
    """The table of what each cell gave, and the claims that they answer."""
    from vrambench.reports.text.claims import lines
    from vrambench.reports.text.terminal import print_table

    print_table(folders, out)
    try:
        for line in lines(folders):
            print(line, file=out)
    except ConfigurationError as error:
        say(f"claims are not shown: {error.message}")
