"""claims.yaml: what is claimed, row by row.

    file = load_claims(Path("claims.yaml"))
    file.claims["remax-memory"].formula

Nothing here imports torch, so that a slip in the file is told at once; a claim's cells are `cells.py`'s part. Every error begins
with file, line, claim and field.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vrambench.bench.claims import claimed as claims_value
from vrambench.bench.claims import formula as formulas
from vrambench.bench.claims.claimed import Claimed, Interval
from vrambench.bench.claims.formula import FUNCTIONS, Formula
from vrambench.bench.plan.document import Document, Key, dotted, load
from vrambench.bench.plan.matrix import Level, Setting, flatten
from vrambench.methods.errors import ConfigurationError, UnknownValue, did_you_mean, shown
from vrambench.methods.validated import complaint
from vrambench.methods.workload import AXIS_NAMES

MOST_CLAIMS = 1000
MOST_SEEDS = 100
SEEDS = "seeds"


class ClaimRow(BaseModel):
    """One claim, as it is written. `common`: the settings of all its cells, axes and workload side by side; `cells`: by name, what
    each has of its own. `cpu`: settings that replace common ones where the claim is measured on a CPU, and `seeds`, over how many
    of which. `not_here`: why it cannot be told here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: Annotated[str, Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]
    common: dict[str, Any] = Field(default_factory=dict)
    cells: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    formula: str | None = None
    claimed: str | int | float
    reproduced: tuple[float | None, float | None] | None = None
    partly: tuple[float | None, float | None] | None = None
    assumed: str | None = None
    note: str | None = None
    cpu: dict[str, Any] | None = None
    not_here: str | None = None


class ClaimsFile(BaseModel):
    """The whole file. `common`: the settings of every claim's cells, unless it says otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    common: dict[str, Any] = Field(default_factory=dict)
    claims: Annotated[dict[str, ClaimRow], Field(min_length=1, max_length=MOST_CLAIMS)]


@dataclass(frozen=True)
class Layers:
    """What is said of a cell, the later over the earlier: by the file, by its claim, and of the cell itself."""

    file: Mapping[str, Setting] = field(default_factory=dict)
    claim: Mapping[str, Setting] = field(default_factory=dict)
    cell: Mapping[str, Setting] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, Setting]:
        return {**self.file, **self.claim, **self.cell}


@dataclass(frozen=True)
class Claim:
    """`where`: how an error about it begins. `cells` and `on_cpu`: by the names that the formula has; `on_cpu` is None where it
    says nothing of a CPU, and `seeds` how many of each cell run there. `formula` is None where `not_here` says why."""

    id: str
    where: str
    claim: str
    source: str
    claimed: Claimed
    formula: Formula | None = None
    cells: Mapping[str, Layers] = field(default_factory=dict)
    on_cpu: Mapping[str, Layers] | None = None
    seeds: int | None = None
    assumed: str | None = None
    note: str | None = None
    not_here: str | None = None


@dataclass(frozen=True)
class Claims:
    """`name`: the file, as errors call it."""

    name: str
    claims: Mapping[str, Claim]

    def only(self, ids: Collection[str] | None, option: str = "--only") -> Claims:
        """Those of the ids; all where none is named. Raises UnknownValue at one that is not there."""
        for one in ids or ():
            if one not in self.claims:
                raise UnknownValue(option, one, self.claims, told_by=self.name)
        return replace(self, claims={one: self.claims[one] for one in ids}) if ids else self


def default_claims() -> Path:
    """./claims.yaml if there is one, else the one that is shipped."""
    import vrambench.bench

    here = Path("claims.yaml")
    return here if here.exists() else Path(vrambench.bench.__file__).resolve().parent.parent / "claims.yaml"


def load_claims(path: Path) -> Claims:
    """The claims in the YAML file at `path`. Raises ConfigurationError with file, line, claim, field and the nearest valid name."""
    document = load(path)
    if not isinstance(document.data, dict):
        raise document.error((), f"a file of claims is a mapping ({', '.join(ClaimsFile.model_fields)})")
    try:
        file = ClaimsFile(**document.data)
    except ValidationError as error:
        raise _explained(error, document) from None
    reader = _Reader(document)
    usual = reader.settings(file.common, ("common",), Level.TOP)
    claims = {name: reader.claim(name, row, usual) for name, row in file.claims.items()}
    return Claims(document.name, claims)


def _explained(error: ValidationError, document: Document) -> ConfigurationError:
    """The first of pydantic's complaints about the file's shape, with its line."""
    first = error.errors(include_url=False)[0]
    path: tuple[Key, ...] = tuple(part for part in first["loc"] if part != "[key]")
    if path[0] == "claims" and path[2:3] == ("claimed",):
        path = path[:3]
    name = dotted(path)
    if first["type"] == "extra_forbidden":
        fields = ClaimRow.model_fields if path[0] == "claims" and len(path) > 1 else ClaimsFile.model_fields
        return document.error(
            path, f"{name}: no such key{did_you_mean(str(path[-1]), fields)} (there are {', '.join(fields)})"
        )
    if first["type"] in ("dict_type", "model_type"):
        return document.error(path, f"{name}: needs a mapping (name: value)")
    return document.error(
        path,
        f"{name}: {shown(first['input'])}: {complaint(first)}" if first["type"] != "missing" else f"{name}: is missing",
    )


@dataclass(frozen=True)
class _Reader:
    document: Document

    def settings(self, data: Mapping[str, Any], path: tuple[Key, ...], level: Level) -> dict[str, Setting]:
        """Axes and workload fields, each with the line where it stands."""
        origins = {key: f"{self.document.where(*path, key)}{dotted(path)}." for key in data}
        axes = {key: value for key, value in data.items() if key in AXIS_NAMES}
        for key, value in axes.items():
            if not isinstance(value, str):
                raise ConfigurationError(f"{origins[key]}{key}: {shown(value)} is not the name of a value", field=key)
        others = flatten({key: value for key, value in data.items() if key not in axes}, origins, level)
        return {key: Setting(value, origins[key]) for key, value in axes.items()} | others

    def claim(self, name: str, row: ClaimRow, usual: Mapping[str, Setting]) -> Claim:
        at = ("claims", name)
        claimed = self._said(
            (*at, "claimed"), lambda: claims_value.parse(row.claimed, _ordered(row.reproduced), _ordered(row.partly))
        )
        made = Claim(
            name, f"{self.document.where(*at)}{dotted(at)}", row.claim, row.source, claimed,
            assumed=row.assumed, note=row.note, not_here=row.not_here,
        )  # fmt: skip
        if row.not_here is not None:
            for key in ("formula", "cells", "cpu"):
                if getattr(row, key):
                    raise self.document.error(
                        (*at, key), f"{dotted((*at, key))}: `not_here` says that nothing is asked here"
                    )
            return made
        if row.formula is None:
            raise self.document.error(
                at, f"{dotted(at)}.formula: lacks a value (or say in `not_here` why it cannot be told)"
            )
        formula = self._formula(row, at)
        if isinstance(claimed.value, bool) != formula.judges:
            gives, said = ("fits or not", "a number") if formula.judges else ("a number", "fits or not")
            where = (*at, "claimed")
            words = f"{shown(row.claimed)} is {said}, and the formula gives {gives}"
            raise self.document.error(where, f"{dotted(where)}: {words}")
        common = self.settings(row.common, (*at, "common"), Level.PROFILE)
        cells = {
            cell: Layers(usual, common, self.settings(own or {}, (*at, "cells", cell), Level.INCLUDE))
            for cell, own in row.cells.items()
        }
        made = replace(made, formula=formula, cells=cells)
        return made if row.cpu is None else self._on_cpu(made, row.cpu, (*at, "cpu"))

    def _on_cpu(self, claim: Claim, data: Mapping[str, Any], path: tuple[Key, ...]) -> Claim:
        seeds = data.get(SEEDS)
        if seeds is not None and (
            isinstance(seeds, bool) or not isinstance(seeds, int) or not 1 <= seeds <= MOST_SEEDS
        ):
            at = (*path, SEEDS)
            raise self.document.error(
                at, f"{dotted(at)}: {shown(seeds)}: must be a whole number from 1 to {MOST_SEEDS}"
            )
        there = self.settings({key: value for key, value in data.items() if key != SEEDS}, path, Level.PROFILE)
        cells = {name: replace(one, claim={**one.claim, **there}) for name, one in claim.cells.items()}
        return replace(claim, on_cpu=cells, seeds=seeds)

    def _formula(self, row: ClaimRow, at: tuple[Key, ...]) -> Formula:
        for cell in row.cells:
            if not cell.isidentifier() or cell in FUNCTIONS:
                where = (*at, "cells", cell)
                raise self.document.error(
                    where,
                    f"{dotted(where)}: {shown(cell)} can be no cell's name in a formula; write letters, digits and _",
                )
        place = (*at, "formula")
        formula = self._said(place, lambda: formulas.parse(row.formula or ""))
        for cell in sorted(formula.cells):
            if cell not in row.cells:
                raise UnknownValue(
                    self.document.where(*place) + dotted(place), cell, row.cells, line=self.document.line(*place)
                )
        for cell in row.cells:
            if cell not in formula.cells:
                where = (*at, "cells", cell)
                raise self.document.error(where, f"{dotted(where)}: the formula asks nothing of it")
        return formula

    def _said(self, path: tuple[Key, ...], function: Any) -> Any:
        """What `function` gives; its errors with the place."""
        try:
            return function()
        except ConfigurationError as error:
            raise self.document.error(path, f"{dotted(path)}: {error.message}") from None


def _ordered(interval: Interval | None) -> Interval | None:
    if interval and None not in interval and interval[0] > interval[1]:  # type: ignore[operator]
        raise ConfigurationError(f"an interval is [least, most], not {shown(list(interval))}")
    return interval
