"""`vrambench track`: cells of runs as runs of a tracker of experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vrambench.bench.commands.shared import stdout_kept_clean


def track(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    *,
    to: Annotated[str, typer.Option("--to", help="wandb, trackio, mlflow or tensorboard.", metavar="TRACKER")],
    project: Annotated[
        str | None,
        typer.Option(
            "--project",
            help="The project there, or MLflow's experiment; TensorBoard has none.",
            metavar="NAME",
            show_default="vrambench",
        ),
    ] = None,
) -> None:
    """Tell a tracker of experiments every cell: its settings, what came of it, and its curves.

    Each cell becomes one run there, failed and forbidden ones too. Told again, it takes the place of what was told before. Where
    to is the tracker's own affair: WANDB_MODE, TRACKIO_DIR, MLFLOW_TRACKING_URI. TensorBoard's files go into RUN/tensorboard."""
    with stdout_kept_clean() as stdout:
        from vrambench.reports import trackers

        print(trackers.track(runs, to, project), file=stdout)
