"""What a run has to do: cells, and how they are run. From a matrix, from claims, or from the folder of a run that was begun.

work = of_matrix(folder, load(path, selection), selection, "auto")
work = of_folder(folder)
"""

from __future__ import annotations

import functools
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vrambench.bench.commands.claims import load as load_claims
from vrambench.bench.commands.cluster import Cluster
from vrambench.bench.commands.shared import card_named, check_writable, device_here, has_bf16, planned_for, say
from vrambench.bench.results import PREDICTED
from vrambench.methods.errors import ConfigurationError, brief
from vrambench.reports.units import plural

if TYPE_CHECKING:
    from vrambench.bench.plan.matrix import Matrix
    from vrambench.bench.plan.plan import Plan, PlannedCell
    from vrambench.bench.plan.selection import Selection
    from vrambench.bench.results.forecast import Unmodelled

NO_GPU = {"cpu": "this one is on the CPU", PREDICTED: "this one is predicted"}
TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True)
class Work:
    """`device`: where the cells run, by its full name, or PREDICTED; `repeat`: samples of each; `about`: more that run.json
    holds; `jobs`: cells at a time, None for the usual; `timeout`: seconds for each; `card`: the one that is predicted for,
    if that is known; `left_out`: what a configuration says, and no prediction holds."""

    cells: Sequence[PlannedCell]
    device: str
    repeat: int
    about: dict[str, Any]
    jobs: int | None = None
    timeout: float = TIMEOUT_SECONDS
    card: str | None = None
    left_out: tuple[Unmodelled, ...] = ()

    @property
    def side_by_side(self) -> int:
        """Cells at a time: where nothing else is said, one for each core, which then has one thread; on a GPU one."""
        from vrambench.bench.machine.environment import usable_threads

        return self.jobs or (usable_threads() if self.device in NO_GPU else 1)

    def settings(self) -> dict[str, Any]:
        """As `session.run` is called for it."""
        return {
            "device": self.device,
            "repeat": self.repeat,
            "about": self.about,
            "jobs": self.side_by_side,
            "timeout": self.timeout,
        }


def of_matrix(folder: Path, matrix: Matrix, selection: Selection, device: str, cluster: Cluster | None = None) -> Work:
    """What the matrix and the selectors come to; `device` as typed."""
    _check_folder(folder)
    predicted = device == PREDICTED
    if predicted and selection.profile is None:
        selection = replace(selection, profile=matrix.default_profile.get(PREDICTED))
    _check_repeat(predicted, selection)
    card = card_named(selection, matrix) if predicted else None
    name = PREDICTED if predicted else cluster.device if cluster else device_here(device)

    @functools.cache
    def plan_with(bf16: bool | None) -> Plan:
        return planned_for(matrix, selection, "cuda" if predicted else name, bf16=bf16)

    planned = plan_with(cluster.has_bf16(cluster.first) if cluster else None if predicted else has_bf16(name))
    cells = cluster.spread(lambda bf16: plan_with(bf16).cells) if cluster else list(planned.cells)
    _say_what_is_added(folder, cells)
    about: dict[str, Any] = {"matrix": planned.matrix, "profile": planned.profile, "coverage": planned.coverage}
    if planned.config:
        from vrambench.reports.text.config import print_config

        print_config(planned.config, sys.stderr)
        about |= {"left_out": [one.model_dump(mode="json") for one in planned.left_out]} if planned.left_out else {}
    return Work(
        cells,
        name,
        1 if predicted else planned.repeat,
        about,
        card=card.name if card else None,
        left_out=planned.left_out,
    )


def of_claims(
    folder: Path, names: str, matrix: Path | None, selection: Selection, device: str, cluster: Cluster | None
) -> Work:
    """The cells of claims, measured or predicted; on a CPU those of their part `cpu`."""
    if matrix is not None or not replace(selection, repeat=None).empty:
        raise ConfigurationError(
            "--claims: the cells are the claims' own; of the selectors only --repeat goes with it", field="claims"
        )
    _check_folder(folder)
    chosen = load_claims(None, names, "--claims")
    predicted = device == PREDICTED
    _check_repeat(predicted, selection)
    name = PREDICTED if predicted else cluster.device if cluster else device_here(device)
    from vrambench.bench.claims.cells import planned
    from vrambench.bench.predict.quiet import hush

    hush()

    def cells_with(bf16: bool | None) -> list[PlannedCell]:
        return planned(chosen, typing.cast(Any, "cuda" if predicted else name.partition(":")[0]), bf16=bf16)

    cells = cluster.spread(cells_with) if cluster else cells_with(None if predicted else has_bf16(name))
    _say_what_is_added(folder, cells)
    about = {"matrix": chosen.name, "profile": None, "coverage": "full"}
    return Work(cells, name, selection.layer().repeat or 1, about)


def of_folder(
    folder: Path, device: str | None = None, cluster: Cluster | None = None, selection: Selection | None = None
) -> Work:
    """What a run that was begun before is made of, and how it was run: times of cells that ran side by side and of cells that ran
    alone would not compare. Of the `selection` only another --repeat is heard: its cells get as many samples."""
    from vrambench.bench.plan.plan import PlannedCell
    from vrambench.bench.plan.validity import check
    from vrambench.bench.results.forecast import Unmodelled
    from vrambench.bench.results.store import RunFolder
    from vrambench.methods.cards import CARDS
    from vrambench.methods.cell import from_flat

    info = RunFolder.open(folder).info
    name = device or info["device"]
    repeat = None
    if selection is not None:
        _check_repeat(name == PREDICTED, selection)
        repeat = selection.layer().repeat
    if name == PREDICTED:
        card = CARDS.get(str((info["environment"].get("gpu") or {}).get("key")))
        kind, bf16 = "cuda", None
    else:
        card, name = None, cluster.device if cluster else device_here(name)
        kind, bf16 = name.partition(":")[0], None if cluster else has_bf16(name)
    cells = []
    for stored in info["cells"]:
        cell = from_flat({key: value for key, value in stored.items() if key not in ("id", "name", "on")})
        on = stored.get("on")
        has = cluster.has_bf16(on) if cluster else bf16
        cells.append(PlannedCell(cell, stored["name"], check(cell, typing.cast(Any, kind), bf16=has), on=on))
    return Work(
        cells,
        name,
        repeat or info["repeat"],
        {key: info[key] for key in ("matrix", "profile", "coverage", "left_out") if key in info},
        info.get("jobs"),
        info.get("timeout_seconds") or TIMEOUT_SECONDS,
        card.name if card else None,
        tuple(Unmodelled.model_validate(one) for one in info.get("left_out", ())),
    )


def _check_repeat(predicted: bool, selection: Selection) -> None:
    if predicted and selection.repeat is not None:
        raise ConfigurationError("--repeat: a prediction is the same each time; leave it out", field="repeat")


def _check_folder(folder: Path) -> None:
    """That the run can be there: in a new folder, or in a run's, even where that has lost its run.json."""
    if (folder / "run.json").exists() or any((folder / "cells").glob("*.json")):
        return
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise ConfigurationError(f"--out {folder}: is there already, and is no run's folder; name another", field="out")
    check_writable(folder, f"--out {brief(str(folder), 300)}")


def _say_what_is_added(folder: Path, cells: Sequence[PlannedCell]) -> None:
    from vrambench.bench.results.store import RunFolder

    if not (folder / "run.json").exists():
        return
    there = {cell["id"] for cell in RunFolder.open(folder).info["cells"]}
    new = len({one.id for one in cells} - there)
    if new:
        say(f"{folder} holds a run of {plural(len(there), 'cell')}, to which {new} {'is' if new == 1 else 'are'} added")
