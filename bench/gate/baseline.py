"""What a run gave, kept in one file to hold later runs against: small enough to be committed, and read by people.

    baseline = baseline_of(RunFolder.open(path))
    write_baseline(baseline, Path("baseline.json"))
    read_baseline(Path("baseline.json"))

A person may write `tolerances` into it, for all cells or one: {"allocated_bytes": "2%|128MiB"}. They stay when it is written anew.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from vrambench.bench.gate import NoBaseline
from vrambench.bench.gate.tolerance import tolerances
from vrambench.bench.results.reading import in_words, parse, schema_refused
from vrambench.bench.results.records import SCHEMA, Held, Memory, Phase, Record, Result, RoleBytes, Source, Status
from vrambench.bench.results.store import RunFolder, write_atomically
from vrambench.methods.errors import ConfigurationError


class BaselineCell(Record):
    """A cell's result, without what no gate asks for. `step_seconds`: of each sample, in order."""

    id: str
    name: str
    status: Status
    reason: str | None = None
    rule: str | None = None
    source: Source | None = None
    cell: dict[str, Any]
    memory: Memory = Memory()
    phases: tuple[Phase, ...] = ()
    roles: dict[str, RoleBytes] = Field(default_factory=dict)
    held: tuple[Held, ...] = ()
    step_seconds: tuple[tuple[float, ...], ...] = ()
    tolerances: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, result: Result, told: dict[str, str] | None = None) -> BaselineCell:
        """`told`: the tolerances that a person has written."""
        kept = {name: getattr(result, name) for name in cls.model_fields if name in type(result).model_fields}
        kept["phases"] = tuple(phase.model_copy(update={"at_peak": ()}) for phase in result.phases)
        samples = result.samples or (result,)
        steps = tuple(sample.throughput.step_seconds for sample in samples if sample.throughput.step_seconds)
        return cls(**kept, step_seconds=steps, tolerances=told or {})


class Baseline(Record):
    """`device`: `predicted`, or what the run was measured on. `environment`: run.json's. `command`: what gave it."""

    schema_: int = Field(SCHEMA, alias="schema")
    device: str
    command: str | None = None
    environment: dict[str, Any]
    tolerances: dict[str, str] = Field(default_factory=dict)
    cells: tuple[BaselineCell, ...]


def baseline_of(folder: RunFolder, before: Baseline | None = None) -> Baseline:
    """The run as a baseline, with the tolerances of the one `before`. Raises ConfigurationError for a run without results."""
    results = folder.results()
    info = folder.info
    if not results:
        unread = folder.unreadable
        why = f"none of its results can be read: {unread[0].file.name} is {unread[0].reason}" if unread else ""
        raise ConfigurationError(f"{folder.path}: {why or 'the run has no results yet'}", field="run")
    told = {cell.id: cell.tolerances for cell in before.cells} if before else {}
    return Baseline(
        device=info["device"],
        command=info.get("command"),
        environment=info.get("environment") or {},
        tolerances=before.tolerances if before else {},
        cells=tuple(BaselineCell.of(result, told.get(result.id)) for result in results),
    )


def write_baseline(baseline: Baseline, path: Path) -> None:
    """One line for each cell, so that a difference between two versions of the file shows which cells changed."""
    document = baseline.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    cells = ",\n".join(f"  {json.dumps(cell, sort_keys=True)}" for cell in document.pop("cells"))
    head = json.dumps({"schema": SCHEMA} | document, indent=1).removesuffix("\n}")
    write_atomically(path, f'{head},\n "cells": [\n{cells}\n ]\n}}\n')


def read_baseline(path: Path) -> Baseline:
    """Raises NoBaseline where there is no such file, and ConfigurationError where it is no baseline."""
    try:
        data = parse(path)
    except FileNotFoundError:
        raise NoBaseline(f"{path} is not there; `vrambench baseline RUN -o {path}` writes one") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}", field="baseline") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is no baseline: {error}", field="baseline") from None
    if refused := schema_refused(data):
        raise ConfigurationError(f"{path} is {refused.reason}", field="baseline")
    try:
        found = Baseline.model_validate(data)
    except ValidationError as error:
        raise ConfigurationError(f"{path} is no baseline: {in_words(error)}", field="baseline") from None
    twice = next(
        (cell for cell, count in Counter((one.name, one.id) for one in found.cells).items() if count > 1), None
    )
    if twice:
        raise ConfigurationError(f"{path}: the cell {twice[0]} ({twice[1]}) is there twice", field="baseline")
    for whose, told in (("", found.tolerances), *((f"{cell.name}: ", cell.tolerances) for cell in found.cells)):
        try:
            tolerances(None, told)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {whose}{error.message}", field=error.field) from None
    if not found.cells:
        raise ConfigurationError(
            f"{path} is a baseline without cells, which nothing can be held against", field="baseline"
        )
    return found
