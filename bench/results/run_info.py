"""What a run was asked for, and where it ran: the record behind `run.json` (schema 1).

    info = read_run_info(Path("runs/first/run.json"))
    info.environment.gpu, [cell.id for cell in info.cells]

None is unknown. Keys that a later version of vrambench adds are kept as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vrambench.bench.results.forecast import Unmodelled
from vrambench.bench.results.reading import in_words, parse, schema_refused
from vrambench.bench.results.records import SCHEMA
from vrambench.methods.errors import ConfigurationError


class _Kept(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)


class Gpu(_Kept):
    """A card; `usable_bytes` is what the driver leaves to processes, `key` a name fit for a folder."""

    name: str | None = None
    key: str | None = None
    compute_capability: str | None = None
    total_bytes: int | None = None
    usable_bytes: int | None = None
    driver: str | None = None
    driver_cuda: str | None = None


class Processor(_Kept):
    """The CPU; `threads` are those that a run may use."""

    model: str | None = None
    machine: str | None = None
    cores: int | None = None
    threads: int | None = None


class Git(_Kept):
    """The checkout that vrambench ran from; `dirty`: tracked files were changed."""

    commit: str | None = None
    dirty: bool | None = None


class Environment(_Kept):
    """Hardware and software, as `describe_environment` tells them. `gpu` None: the jobs ran on the CPU, or on
    several kinds of GPUs; `gpus` are those, by Ray's names."""

    device: str | None = None
    key: str | None = None
    gpu: Gpu | None = None
    gpus: dict[str, Gpu | None] | None = None
    torch_cuda: str | None = None
    cpu: Processor | None = None
    ram_bytes: int | None = None
    ram_limit_bytes: int | None = None
    python: str | None = None
    os: str | None = None
    container: bool | None = None
    packages: dict[str, str | None] = Field(default_factory=dict)
    variables: dict[str, str] = Field(default_factory=dict)
    git: Git | None = None


class ListedCell(_Kept):
    """A cell that the run was to run; beside `id` and `name` stand its axes and its workload, flat. `on`: the kind of GPU, where
    the run measures on several."""

    id: str
    name: str
    on: str | None = None


class RunInfo(_Kept):
    """run.json. Times are in UTC, ISO 8601. `command` is the first one, `resumed_with` those that went on with the run.
    `on`: the cluster that cells run on, as it was named (None: they run on this machine); `on_gpus` the kinds of GPUs that were
    named, `cpus_per_cell` the cores that each cell asks for. `left_out`: what a trainer's configuration says, from which the cells
    were made, and no prediction holds."""

    schema_: int = Field(SCHEMA, alias="schema")
    started_at: str | None = None
    resumed_at: tuple[str, ...] = ()
    device: str
    repeat: int
    timeout_seconds: float | None = None
    jobs: int | None = None
    on: str | None = None
    on_gpus: tuple[str, ...] = ()
    cpus_per_cell: int | None = None
    matrix: str | None = None
    profile: str | None = None
    coverage: str | None = None
    left_out: tuple[Unmodelled, ...] = ()
    command: str | None = None
    resumed_with: tuple[str, ...] = ()
    environment: Environment = Environment()
    cells: tuple[ListedCell, ...]

    def document(self) -> dict[str, Any]:
        """The record as plain data, with the keys that it was made of."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


MOST_NAMED = 5
"""Folders that an error names."""


def _runs_inside(file: Path) -> str:
    """Which folders beside where `file` should be have it, newest name last."""
    inside = sorted(str(found.parent) for found in file.parent.glob(f"*/{file.name}"))
    if not inside:
        return ""
    more = f" and {len(inside) - MOST_NAMED} more" if len(inside) > MOST_NAMED else ""
    return f"; runs inside are {', '.join(inside[-MOST_NAMED:])}{more}"


WAY_ON = "move it away, and `run --out` with what was asked for writes another, with the results that cells/ holds"
"""After a damaged run.json."""


def read_run_info(file: Path) -> RunInfo:
    """The run.json of a run that was started before. Raises ConfigurationError where there is none, or it is damaged."""
    try:
        data = parse(file)
    except (FileNotFoundError, NotADirectoryError):
        why = "it is not there"
        if file.parent.exists():
            why = f"it has no {file.name}{_runs_inside(file)}" if file.parent.is_dir() else "it is a file"
        raise ConfigurationError(f"{file.parent} is not a run's folder: {why}", field="run") from None
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror or error}", field="run") from None
    except ValueError as error:
        raise ConfigurationError(f"{file} cannot be read: {error}; {WAY_ON}", field="run") from None
    if refused := schema_refused(data):
        raise ConfigurationError(f"{file} is {refused.reason}", field="run")
    try:
        return RunInfo.model_validate(data)
    except ValidationError as error:
        raise ConfigurationError(f"{file} cannot be read: {in_words(error)}; {WAY_ON}", field="run") from None
