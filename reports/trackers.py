"""Cells in trackers of experiments: Weights & Biases, Trackio, MLflow and TensorBoard, each cell one run there.

    track([Path("runs/rl")], "wandb", "my-project")

Where a tracker sends or stores what it is told is its own affair: `WANDB_MODE`, `WANDB_DIR`, `TRACKIO_DIR`, `TRACKIO_SPACE_ID`,
`MLFLOW_TRACKING_URI` and the like count. A cell that is told again takes the place of what was told before.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from vrambench.methods.errors import ConfigurationError, UnknownValue
from vrambench.reports.read import read_runs
from vrambench.reports.report import Report
from vrambench.reports.tracked import Tracked, tracked
from vrambench.reports.units import plural

PROJECT = "vrambench"
"""The project (MLflow: the experiment) where none is named."""


class NotTracked(OSError):
    """A tracker did not take what it was told; its own words."""


def to_wandb(cells: Sequence[Tracked], project: str) -> None:
    """A run each, grouped by the run's name; what came of it is the summary."""
    import wandb

    quiet = wandb.Settings(
        silent=True, console="off", x_disable_stats=True, x_disable_machine_info=True, disable_git=True
    )
    try:
        for cell in cells:
            named = {"project": project, "id": cell.key, "name": cell.name, "group": cell.group}
            run = wandb.init(**named, config=dict(cell.config), reinit="finish_previous", settings=quiet)
            for step, values in cell.curves.items():
                run.log(dict(values), step=step)
            run.summary.update({**cell.texts, **cell.numbers})
            run.finish(exit_code=int(cell.failed))
    except wandb.errors.Error as error:
        raise NotTracked(f"Weights & Biases: {error}") from error


def to_trackio(cells: Sequence[Tracked], project: str) -> None:
    """A run each, grouped by the run's name. Trackio has no summary: texts stand among the settings, numbers at the last step."""
    import trackio

    try:
        try:
            told = {run.config.get("key"): run for run in trackio.Api().runs(project) if run.config}
        except ValueError:  # a project that is not there yet
            told = {}
        for cell in cells:
            if cell.key in told:
                told[cell.key].delete()
            run = trackio.init(
                project,
                name=cell.name,
                group=cell.group,
                config={**cell.config, **cell.texts, "key": cell.key},
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            for step, values in cell.curves.items():
                run.log(dict(values), step=step)
            run.log(dict(cell.numbers), step=max(cell.curves, default=0))
            trackio.finish()
    except ValueError as error:
        raise NotTracked(f"Trackio: {error}") from error


NOT_IN_KEYS = re.compile(r"[^\w\-. :/]")
"""What MLflow refuses in names of parameters, metrics and tags."""
MOST_AT_ONCE = 100
"""Parameters, tags or metrics that MLflow takes in one request."""
LONGEST_TEXT = 5000
"""Characters of a tag's value, which are fewer than of a parameter's."""


def to_mlflow(cells: Sequence[Tracked], project: str) -> None:
    """A run each: settings are its parameters, texts its tags, numbers and curves its metrics."""
    import mlflow

    try:
        client = mlflow.MlflowClient()
        known = client.get_experiment_by_name(project)
        experiment = known.experiment_id if known else client.create_experiment(project)
        for cell in cells:
            for before in client.search_runs([experiment], f"tags.`vrambench.key` = '{cell.key}'"):
                client.delete_run(before.info.run_id)
            _one_to_mlflow(client, experiment, cell)
    except (
        mlflow.MlflowException,
        ImportError,
    ) as error:  # a database wants packages that mlflow-skinny does not bring
        raise NotTracked(f"MLflow: {error}") from error


def _one_to_mlflow(client: Any, experiment: str, cell: Tracked) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    run = client.create_run(
        experiment,
        start_time=int(cell.began.timestamp() * 1000) if cell.began else now,
        tags={"vrambench.key": cell.key, "vrambench.run": cell.group},
        run_name=cell.name,
    ).info.run_id

    def key(name: str) -> str:
        return NOT_IN_KEYS.sub("_", name)

    last = max(cell.curves, default=0)
    points = [(name, value, step) for step, values in cell.curves.items() for name, value in values.items()]
    points += [(name, value, last) for name, value in cell.numbers.items()]
    parts: dict[str, list[Any]] = {
        "params": [Param(key(name), str(value)[:LONGEST_TEXT]) for name, value in cell.config.items()],
        "tags": [RunTag(key(name), value[:LONGEST_TEXT]) for name, value in cell.texts.items()],
        "metrics": [Metric(key(name), value, now, step) for name, value, step in points],
    }
    for kind, entries in parts.items():
        left = iter(entries)
        while some := list(islice(left, MOST_AT_ONCE)):
            client.log_batch(run, **{kind: some})
    client.set_terminated(run, "FAILED" if cell.failed else "FINISHED")


NOT_IN_FOLDERS = re.compile(r"[^\w.,=+-]+")


def to_tensorboard(cells: Sequence[Tracked], folder: str) -> None:
    """Event files, a folder below `folder` for each cell: settings and texts are hyperparameters, numbers and curves scalars, in
    double precision: bytes stay whole."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    for cell in cells:
        where = Path(folder, f"{NOT_IN_FOLDERS.sub('_', cell.name)}-{cell.key[:8]}")
        for before in where.glob("events.out.tfevents.*"):
            before.unlink()
        with SummaryWriter(str(where)) as writer:
            for part in hparams({**cell.config, **cell.texts}, dict(cell.numbers)):
                writer.file_writer.add_summary(part)
            last = max(cell.curves, default=0)
            for step, values in (*cell.curves.items(), (last, cell.numbers)):
                for name, value in values.items():
                    writer.add_scalar(name, value, step, new_style=True, double_precision=True)


class Tracker(NamedTuple):
    """`write` takes the cells and a project, or, where it stores `in_folder`s, a folder. `package`: what it imports."""

    title: str
    package: str
    write: Callable[[Sequence[Tracked], str], None]
    in_folder: bool = False


TRACKERS: Mapping[str, Tracker] = {
    "wandb": Tracker("Weights & Biases", "wandb", to_wandb),
    "trackio": Tracker("Trackio", "trackio", to_trackio),
    "mlflow": Tracker("MLflow", "mlflow", to_mlflow),
    "tensorboard": Tracker("TensorBoard", "tensorboard", to_tensorboard, in_folder=True),
}
"""By the name of the extra that installs each."""


def track(runs: Sequence[Path], to: str, project: str | None = None) -> str:
    """Tells the tracker `to` every cell of the run folders `runs`; what was told, and to where, in a sentence. TensorBoard has no
    projects: its files go into the folder `tensorboard` of each run. Raises ConfigurationError where `runs` holds none, `to` is
    no tracker or is not installed, and NotTracked where it does not take them."""
    if to not in TRACKERS:
        raise UnknownValue("--to", to, tuple(TRACKERS))
    tracker = TRACKERS[to]
    if tracker.in_folder and project is not None:
        raise ConfigurationError(f"--project: {tracker.title} has no projects; leave it out", field="project")
    read = read_runs(runs)
    try:
        __import__(tracker.package)
    except ImportError:
        raise ConfigurationError(
            f"--to {to}: {tracker.title} is not installed; `pip install 'vrambench[{to}]'` brings it", field="to"
        ) from None
    places = [str(folder / to) for folder in runs] if tracker.in_folder else [project or PROJECT] * len(runs)
    told = 0
    for run, place in zip(read, places, strict=True):
        cells = list(tracked(Report([run])))
        tracker.write(cells, place)
        told += len(cells)
    where = ", ".join(dict.fromkeys(places))
    return f"{plural(told, 'cell')} told to {tracker.title}: {where}"
