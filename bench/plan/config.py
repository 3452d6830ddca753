"""A file of another trainer that was read as a matrix: what was made of its keys, and how each was read: `used`, `without
effect` on memory, or `not modelled`. `configs/` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vrambench.bench.results.forecast import Unmodelled
from vrambench.bench.results.records import Record

Kind = Literal["used", "without effect", "not modelled"]


@dataclass(frozen=True)
class Made:
    """What was made of something: `name` is the axis, field or option that it became, empty where it sets none."""

    name: str
    told: str


@dataclass(frozen=True)
class ReadKey:
    """A key of the file and how it was read. `made`: the settings that it became. `reason`: why it is not modelled, or not used."""

    key: str
    value: Any
    kind: Kind
    made: tuple[Made, ...] = ()
    reason: str = ""

    @property
    def told(self) -> str:
        return "; ".join(filter(None, (", ".join(one.told for one in self.made), self.reason)))


class KeyTold(Record):
    """A key of a trainer's file: how it was `read`, and what was made of it, in words."""

    key: str
    value: Any
    read: Kind
    told: str


class ConfigTold(Record):
    """A trainer's `file`, of which `format`, and what it was `read_as`. `defaults`: of its library, where it says nothing; `taken`:
    what a sentence each says was taken for it."""

    file: str
    format: str
    read_as: str
    keys: tuple[KeyTold, ...]
    defaults: tuple[str, ...]
    taken: tuple[str, ...]


@dataclass(frozen=True)
class Config:
    """A configuration that has been read. `called`: what it was read as. `left_out`: what its keys say that is not modelled.
    `defaults`: settings by the trainer's defaults, since the file does not say them. `taken`: what was taken for granted of what no
    default says. `said`: the fields and options that the file or the command line says."""

    name: str
    format: str
    called: str
    keys: tuple[ReadKey, ...]
    left_out: tuple[Unmodelled, ...] = ()
    defaults: tuple[Made, ...] = ()
    taken: tuple[Made, ...] = ()
    said: frozenset[str] = frozenset()

    def told(self) -> ConfigTold:
        """As `--json` prints it."""
        return ConfigTold(
            file=self.name,
            format=self.format,
            read_as=self.called,
            keys=tuple(KeyTold(key=one.key, value=one.value, read=one.kind, told=one.told) for one in self.keys),
            defaults=tuple(one.told for one in self.defaults),
            taken=tuple(one.told for one in self.taken),
        )
