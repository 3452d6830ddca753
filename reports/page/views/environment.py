"""The view of where and how each run ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vrambench.reports import units
from vrambench.reports.page.view import View
from vrambench.reports.report import Report
from vrambench.reports.rows import Run


@dataclass(frozen=True)
class RunFacts:
    name: str
    facts: tuple[tuple[str, str], ...]
    corrupted: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    text: str
    cells: int


@dataclass(frozen=True)
class EnvironmentData:
    """`shared`: what holds for all of several runs; `runs`: what is each one's own."""

    shared: tuple[tuple[str, str], ...]
    runs: tuple[RunFacts, ...]
    notes: tuple[Note, ...]


def environment(report: Report) -> EnvironmentData:
    """Where and how each run ran, what readers must know to trust its numbers, and the files that could not be read."""
    facts = [tuple(_run_facts(run)) for run in report.runs]
    shared = tuple(fact for fact in facts[0] if all(fact in of for of in facts)) if len(facts) > 1 else ()
    runs = tuple(
        RunFacts(run.name, tuple(fact for fact in of if fact not in shared), run.corrupted)
        for run, of in zip(report.runs, facts, strict=True)
    )
    return EnvironmentData(shared, runs, tuple(Note(text, count) for text, count in report.notes.most_common()))


def _run_facts(run: Run) -> list[tuple[str, str]]:
    plain = {key: value for key, value in run.info.items() if key not in ("schema", "cells", "environment")}
    environment = run.info.get("environment")
    return _flat(plain) + _flat(environment if isinstance(environment, Mapping) else {})


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A mapping's lines with dotted names; sizes in units, unknown as a dash, empty parts left out."""
    lines: list[tuple[str, str]] = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            lines += _flat(value, name + ".")
        elif isinstance(value, list | tuple):
            if value:
                lines.append((name, ", ".join(map(str, value))))
        elif name.endswith("_bytes") and isinstance(value, int):
            lines.append((name.removesuffix("_bytes").replace("_", " "), units.size(value)))
        elif isinstance(value, bool):
            lines.append((name.replace("_", " "), "yes" if value else "no"))
        else:
            lines.append((name.replace("_", " "), units.DASH if value is None else str(value)))
    return lines


VIEW = View("environment", "Environment", "environment.html", environment)
