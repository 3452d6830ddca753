"""`vrambench run`: planned cells are measured, each in a process of its own."""

from __future__ import annotations

import functools
import math
import shlex
import sys
import typing
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from vrambench.bench.commands.claims import load as load_claims
from vrambench.bench.commands.cluster import Cluster, CpusPerCell, On, OnGpus, asked, begun_on, opened
from vrambench.bench.commands.early import load
from vrambench.bench.commands.report import write_report
from vrambench.bench.commands.selectors import with_selectors
from vrambench.bench.commands.shared import (
    DEVICES,
    MatrixPath,
    card_named,
    check_device,
    device_here,
    has_bf16,
    planned_for,
    predictions,
    say,
    stdout_kept_clean,
)
from vrambench.bench.results import PREDICTED
from vrambench.methods.errors import ConfigurationError, UnknownValue
from vrambench.reports.units import plural

TIMEOUT_SECONDS = 1800.0
RUN_DEVICES = (*DEVICES, PREDICTED)
BESIDE = "predicted"
"""The folder inside a run's that holds what was predicted beside it, a run of its own."""
NO_GPU = {"cpu": "this one is on the CPU", PREDICTED: "this one is predicted"}

if TYPE_CHECKING:
    from vrambench.bench.plan.plan import Plan, PlannedCell
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
    folder = out or _new_folder(Path("runs"))
    resumed = matrix is None and selection.empty and (folder / "run.json").exists()
    where = asked(on, on_gpus, cpus_per_cell, folder)
    with stdout_kept_clean() as stdout, opened(where, device or begun_on(folder), jobs) as cluster:
        if claims is not None:
            cells, settings = _claimed_plan(folder, claims, matrix, selection, device or "auto", cluster)
        elif resumed:
            cells, settings = stored_plan(folder, device, cluster)
        else:
            cells, settings = _new_plan(folder, matrix, selection, device or "auto", cluster)
        for option, chosen in (("--prune", prune), ("--predict", predict), ("--record", record)):
            if chosen and settings["device"] in NO_GPU:
                raise ConfigurationError(
                    f"{option}: is for runs on a GPU, and {NO_GPU[settings['device']]}", field="device"
                )
        if predict or prune:
            left_out, pool = settings.get("left_out", ()), cluster.pool if cluster else None
            settings |= {"predict": predictions(selection, left_out=left_out, pool=pool), "prune": prune}
        settings["record"] = record
        settings["about"] |= where.about
        if cluster:
            settings |= {"executor": cluster.executor, "jobs": cluster.executor.places}
        plans = [(folder, cells, settings)]
        plain = claims is None and device is None and selection.empty and settings["device"] == "cpu" and not cluster
        if plain and ((folder / BESIDE).is_dir() if resumed else PREDICTED in load(matrix, selection).default_profile):
            plans.append((folder / BESIDE, *_plan_beside(folder / BESIDE, matrix, selection)))
        for _, _, how in plans:
            _settle(how, shlex.join(["vrambench", *context.obj]), jobs, timeout, statuses)
        return _carry_out(plans, stdout, prune=prune, predict=predict)


Plans = Sequence[tuple[Path, "Sequence[PlannedCell]", dict[str, Any]]]
"""Runs: each one's folder, cells, and how they are run."""


def _plan_beside(folder: Path, matrix: Path | None, selection: Selection) -> tuple[list[PlannedCell], dict[str, Any]]:
    """What is predicted beside a run; the folder, which says that it is, is there from then on."""
    if (folder / "run.json").exists():
        return stored_plan(folder, None)
    planned = _new_plan(folder, matrix, selection, PREDICTED)
    folder.mkdir(parents=True, exist_ok=True)
    return planned


def _settle(
    settings: dict[str, Any], command: str, jobs: int | None, timeout: float | None, retry: frozenset[str]
) -> None:
    """What else a run is to know, into its `settings`."""
    left_out = settings.pop("left_out", ())
    settings["about"]["command"] = command
    settings["jobs"] = jobs or settings.get("jobs") or _jobs(settings["device"])
    settings["timeout"] = timeout or settings.get("timeout") or TIMEOUT_SECONDS
    settings["retry"] = retry
    if settings["device"] == PREDICTED:
        from vrambench.bench.predict.cache import Cache
        from vrambench.bench.run.predicted import PredictingExecutor

        settings["executor"] = PredictingExecutor(settings.pop("card"), settings["jobs"], left_out, Cache.usual())


def _carry_out(plans: Plans, stdout: TextIO, *, prune: bool, predict: bool) -> int:
    """The runs, one after the other, and the report about them, which is in the first one's folder: the exit code."""
    folder = plans[0][0]
    codes = []
    for place, cells, settings in plans:
        summary = run_here(cells, place, settings)
        codes.append(summary.exit_code)
        if summary.interrupted:
            _say_how_to_go_on(folder, prune=prune, predict=predict)
            break
    done = [place for place, _, _ in reversed(plans[: len(codes)])]  # the predictions first: what fits a card
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


def _jobs(device: str) -> int:
    """One cell for each core, which then has one thread; on a GPU one cell."""
    from vrambench.bench.machine.environment import usable_threads

    return usable_threads() if device in NO_GPU else 1


def _statuses(text: str | None) -> frozenset[str]:
    """The statuses of `--retry`."""
    from vrambench.bench.results.records import FAILED

    choices = (*FAILED, "pruned")
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if name not in choices:
            raise UnknownValue("--retry", name, choices)
    return frozenset(names)


def _new_folder(parent: Path) -> Path:
    """A folder for a run that begins now."""
    stamp = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    names = (stamp if number == 1 else f"{stamp}-{number}" for number in range(1, 1000))
    return next(parent / name for name in names if not (parent / name).exists())


def _new_plan(
    folder: Path, matrix: Path | None, selection: Selection, device: str, cluster: Cluster | None = None
) -> tuple[list[PlannedCell], dict[str, Any]]:
    """The cells that the matrix and the selectors come to, and how they are run."""
    _check_folder(folder)
    loaded = load(matrix, selection)
    if device == PREDICTED and selection.profile is None:
        selection = replace(selection, profile=loaded.default_profile.get(PREDICTED))
    card = card_named(selection) if device == PREDICTED else None
    name = device if device == PREDICTED else cluster.device if cluster else device_here(device)
    kind = "cuda" if device == PREDICTED else name

    @functools.cache
    def plan_with(bf16: bool | None) -> Plan:
        return planned_for(loaded, selection, kind, card, bf16=bf16)

    planned = plan_with(cluster.has_bf16(cluster.first) if cluster else None)
    cells = cluster.spread(lambda bf16: plan_with(bf16).cells) if cluster else list(planned.cells)
    _say_what_is_added(folder, [one.id for one in cells])
    about: dict[str, Any] = {"matrix": planned.matrix, "profile": planned.profile, "coverage": planned.coverage}
    settings: dict[str, Any] = {"device": name, "repeat": planned.repeat, "about": about}
    if device == PREDICTED:
        if selection.repeat is not None:
            raise ConfigurationError("--repeat: a prediction is the same each time; leave it out", field="repeat")
        settings |= {"repeat": 1, "card": card.name if card else None}
    if planned.config:
        from vrambench.reports.text.config import print_config

        print_config(planned.config, sys.stderr)
        about |= {"left_out": [one.model_dump(mode="json") for one in planned.left_out]} if planned.left_out else {}
    return cells, settings | {"left_out": planned.left_out}


def _claimed_plan(
    folder: Path, names: str, matrix: Path | None, selection: Selection, device: str, cluster: Cluster | None
) -> tuple[list[PlannedCell], dict[str, Any]]:
    """The cells of claims, and how they are run. On a CPU those of their part `cpu`."""
    if matrix is not None or not replace(selection, repeat=None).empty:
        raise ConfigurationError(
            "--claims: the cells are the claims' own; of the selectors only --repeat goes with it", field="claims"
        )
    _check_folder(folder)
    chosen = load_claims(None, names, "--claims")
    name = cluster.device if cluster else device_here(device)
    from vrambench.bench.claims.cells import planned
    from vrambench.bench.predict.quiet import hush

    hush()

    def cells_with(bf16: bool) -> list[PlannedCell]:
        return planned(chosen, typing.cast(Any, name.partition(":")[0]), bf16=bf16)

    cells = cluster.spread(cells_with) if cluster else cells_with(has_bf16(name))
    _say_what_is_added(folder, [one.id for one in cells])
    about = {"matrix": chosen.name, "profile": None, "coverage": "full"}
    return cells, {"device": name, "repeat": selection.layer().repeat or 1, "about": about}


def _check_folder(folder: Path) -> None:
    """That the run can be there: in a new folder, or in a run's, even where that has lost its run.json."""
    if (folder / "run.json").exists() or any((folder / "cells").glob("*.json")):
        return
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise ConfigurationError(f"--out {folder}: is there already, and is no run's folder; name another", field="out")


def _say_what_is_added(folder: Path, ids: Sequence[str]) -> None:
    from vrambench.bench.results.store import RunFolder

    if not (folder / "run.json").exists():
        return
    there = {cell["id"] for cell in RunFolder.open(folder).info["cells"]}
    new = len(set(ids) - there)
    if new:
        say(f"{folder} holds a run of {plural(len(there), 'cell')}, to which {new} {'is' if new == 1 else 'are'} added")


def stored_plan(
    folder: Path, device: str | None, cluster: Cluster | None = None
) -> tuple[list[PlannedCell], dict[str, Any]]:
    """The cells of a run that was begun before, and how they were run: times of cells that ran side by side and of cells that ran
    alone would not compare."""
    from vrambench.bench.plan.plan import PlannedCell
    from vrambench.bench.plan.validity import check
    from vrambench.bench.results.forecast import Unmodelled
    from vrambench.bench.results.store import RunFolder
    from vrambench.methods.cards import CARDS
    from vrambench.methods.cell import from_flat

    info = RunFolder.open(folder).info
    name = device or info["device"]
    if name == PREDICTED:
        card = CARDS.get(str((info["environment"].get("gpu") or {}).get("key")))
        kind, bf16 = "cuda", card is None or card.has_bf16
    else:
        card, name = None, cluster.device if cluster else device_here(name)
        kind, bf16 = name.partition(":")[0], cluster is not None or has_bf16(name)
    cells = []
    for stored in info["cells"]:
        cell = from_flat({key: value for key, value in stored.items() if key not in ("id", "name", "on")})
        on = stored.get("on")
        has = cluster.has_bf16(on) if cluster else bf16
        cells.append(PlannedCell(cell, stored["name"], check(cell, typing.cast(Any, kind), bf16=has), on=on))
    about = {key: info[key] for key in ("matrix", "profile", "coverage", "left_out") if key in info}
    stored = {
        "repeat": info["repeat"],
        "jobs": info.get("jobs") or _jobs(name),
        "timeout": info.get("timeout_seconds") or TIMEOUT_SECONDS,
    }
    left_out = tuple(Unmodelled.model_validate(one) for one in info.get("left_out", ()))
    given: dict[str, Any] = {"left_out": left_out}
    given |= {"card": card.name if card else None} if name == PREDICTED else {}
    return cells, {"device": name, "about": about, **stored, **given}


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
