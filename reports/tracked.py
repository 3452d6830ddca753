"""What a tracker of experiments is told of a cell: one run of the tracker, with its settings, what came of it, and curves.

    for cell in tracked(Report(read_runs([Path("runs/rl")]))):
        cell.config["precision"], cell.texts["status"], cell.numbers["device_bytes"], cell.curves

Every cell of the report is told, failed and forbidden ones with their reason.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vrambench.bench.results.records import FAILED, Result
from vrambench.methods.workload import AXIS_NAMES
from vrambench.reports.report import Report
from vrambench.reports.rows import Row
from vrambench.reports.tables import record
from vrambench.reports.units import printable, short

Setting = str | int | float | bool
LONGEST_NAME = 120
"""Characters of a run's name: Weights & Biases takes 128."""
SAID_OF_THE_CELL = ("command", "budget_bytes", "source")
"""Keys of the table of cells that are settings and no outcome."""
CALLED = {
    "step_seconds": "median_step_seconds",
    "loss": "last_quarter_loss",
    "reward": "last_quarter_reward",
}
"""What trackers call a number of the table of cells whose name a curve has."""


@dataclass(frozen=True)
class Tracked:
    """A cell as trackers take it. Bytes are integers, times seconds; what is not known is left out.

    `key`: the same for the same cell of the same run, whenever it is told; `group`: the run's name. `texts`: `status`, `reason`,
    verdicts; `numbers`: peaks, rates, learning. `curves`: by step, warm-up included, `train/loss` and the like; `failed`: a
    measurement that failed (running out of memory is a result, and none). `began`: the run's start, UTC, where that is known."""

    key: str
    name: str
    group: str
    config: Mapping[str, Setting]
    texts: Mapping[str, str]
    numbers: Mapping[str, int | float]
    curves: Mapping[int, Mapping[str, float]]
    failed: bool
    began: datetime | None


def tracked(report: Report) -> Iterator[Tracked]:
    """The report's cells, in its order."""
    for row in report.rows:
        info = report.infos[row.run]
        told = {name: value for name, value in record(report, row).items() if value is not None}
        settings = {name.removeprefix("set."): value for name, value in told.items() if name.startswith("set.")}
        outcome = {
            CALLED.get(name, name): value
            for name, value in told.items()
            if not name.startswith("set.") and name not in ("run", "id", "name", *AXIS_NAMES, *SAID_OF_THE_CELL)
        }
        about = {name: told[name] for name in (*AXIS_NAMES, *SAID_OF_THE_CELL) if told.get(name)}
        numbers = {name: value for name, value in outcome.items() if not isinstance(value, str)}
        began = info.get("started_at")
        yield Tracked(
            key=hashlib.sha256(f"{began} {row.id}".encode()).hexdigest()[:16],
            name=printable(short(row.name, LONGEST_NAME)),
            group=printable(short(row.run, LONGEST_NAME)),
            config=_plain(about | settings | _where(info.get("environment"))),
            texts={name: printable(value) for name, value in outcome.items() if isinstance(value, str)},
            numbers=numbers | (_counted(row.result) if row.result else {}),
            curves=_curves(row),
            failed=row.status in (*FAILED, "unreadable"),
            began=datetime.fromisoformat(began) if isinstance(began, str) else None,
        )


def _plain(settings: Mapping[str, Any]) -> dict[str, Setting]:
    """Settings as every tracker can hold them: lists as their text."""
    return {
        printable(name): value if isinstance(value, bool | int | float) else printable(str(value))
        for name, value in settings.items()
    }


def _where(environment: object) -> dict[str, Any]:
    """The hardware, and the versions of what ran on it."""
    if not isinstance(environment, Mapping):
        return {}
    gpu, cpu, git = ((environment.get(name) or {}) for name in ("gpu", "cpu", "git"))
    found = {
        "device": environment.get("device"),
        "gpu": gpu.get("name"),
        "driver": gpu.get("driver"),
        "cpu": cpu.get("model"),
        "commit": git.get("commit"),
    } | {f"version.{name}": version for name, version in (environment.get("packages") or {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def _counted(result: Result) -> dict[str, int]:
    """Parameters, and the highest peak of each phase, in bytes."""
    parameters = result.parameters
    found = {f"{name}_parameters": value for name, value in parameters} if parameters else {}
    for phase in result.phases:
        if phase.allocated_bytes is not None:
            name = f"{phase.name}_allocated_bytes"
            found[name] = max(found.get(name, 0), phase.allocated_bytes)
    return found


def _curves(row: Row) -> dict[int, dict[str, float]]:
    """By step: what was learned, the time of timed steps (which follow warm-up), and the peak of allocated bytes in each phase."""
    result = row.result
    if result is None:
        return {}
    learning = result.learning
    curves: dict[int, dict[str, float]] = {}
    series = {"loss": learning.loss, "reward": learning.reward, "kl": learning.kl, **learning.metrics}
    points: list[tuple[int, str, float | None]] = [
        (step, f"train/{name}", value) for name, values in series.items() for step, value in enumerate(values)
    ]
    warmup = row.cell.get("warmup_steps") or 0
    points += [(step, "train/step_seconds", value) for step, value in enumerate(result.throughput.step_seconds, warmup)]
    points += [
        (phase.step, f"peak/{phase.name}_allocated_bytes", phase.allocated_bytes)
        for phase in result.phases
        if phase.step is not None
    ]
    for step, name, value in sorted(points, key=lambda point: point[0]):
        if value is not None and math.isfinite(value):
            curves.setdefault(step, {})[printable(name)] = value
    return curves
