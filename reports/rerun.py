"""The command that runs a cell again: as short as its run's own command allows, and whole in itself.

A run's command says the matrix, the profile and what was set for all its cells. A cell's name says its axes, and every setting in
which it differs from the matrix' own. With all five axes named nothing else of the matrix is run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from vrambench.bench.plan.document import as_yaml
from vrambench.bench.results import OWN_CODE, PREDICTED
from vrambench.bench.results.settings import flat_settings
from vrambench.methods.workload import AXIS_NAMES
from vrambench.reports.rows import Row, axis_options, setting_options

USUAL_MATRIX = "matrix.yaml"
OF_ALL = ("--config", "--config-format", "--model", "--budget", "--set")
"""Options of a run that hold for each of its cells."""


def command(row: Row, info: Mapping[str, Any]) -> str:
    """The command for `row`, a cell of the run with this run.json: with every setting of the cell where its run does not say
    how it came to it. A test of people's own code is run by pytest."""
    if info.get("profile") == OWN_CODE:
        return shlex.join(["pytest", row.name])
    differing = _differing(row)
    run = info.get("command")
    if differing is None or not isinstance(run, str) or "--claims" in run or not row.id:
        return " ".join(["vrambench run", axis_options(row.cell), *setting_options(row.cell).values()])
    settings = flat_settings(row.cell)
    words = ["vrambench", "run"]
    matrix, profile = info.get("matrix"), info.get("profile")
    words += [str(matrix)] if matrix and matrix != USUAL_MATRIX else []
    words += ["--device", PREDICTED] if info.get("device") == PREDICTED else []
    words += ["--profile", str(profile)] if profile else []
    for option, value in _kept(run):
        name = value.partition("=")[0] if option == "--set" else option.removeprefix("--")
        # A setting that the cell does not use would be refused.
        if name not in differing and (option != "--set" or name in settings):
            words += [option, value]
    for name in differing:
        words += ["--model", settings[name]] if name == "model" else ["--set", f"{name}={as_yaml(settings[name])}"]
    return " ".join([shlex.join(words[:2]), axis_options(row.cell), shlex.join(words[2:])]).rstrip()


def _differing(row: Row) -> tuple[str, ...] | None:
    """The settings that the cell's name tells. None where it is no name that a matrix gives."""
    words = row.name.split()
    axes, rest = words[: len(AXIS_NAMES)], words[len(AXIS_NAMES) :]
    names = tuple(word.partition("=")[0] for word in rest)
    if tuple(axes) != row.axes or any("=" not in word for word in rest):
        return None
    return names if set(names) <= flat_settings(row.cell).keys() else None


def _kept(command: str) -> Iterator[tuple[str, str]]:
    try:
        words = iter(shlex.split(command))
    except ValueError:
        return
    for word in words:
        option, equals, value = word.partition("=")
        if option in OF_ALL:
            yield option, value if equals else next(words, "")
