"""What a user's configuration says, key by key, and what was made of each: `used`, `without effect` on memory, or `not modelled`.

    given = Given(document, table)
    draft = Draft(given, chosen)
    draft.set("batch_size", given.get("per_device_train_batch_size", 8), "per_device_train_batch_size")
    draft.done("trl-sft", "TRL's SFTConfig")          the configuration, as commands print it

A key that the format does not have is told with the nearest one that it has, and taken for one that is not modelled: TRL's
scripts go on without such keys, and a file may be of another version. So it is no error, and never passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vrambench.bench.plan.document import Document
from vrambench.bench.plan.matrix import Setting
from vrambench.bench.results.forecast import Unmodelled
from vrambench.methods.errors import ConfigurationError, did_you_mean, shown
from vrambench.methods.workload import AXIS_NAMES

Kind = Literal["used", "without effect", "not modelled"]
INERT: tuple[Any, ...] = (None, False, "", [], {}, "no", "none")
"""Values that switch a key off."""


@dataclass(frozen=True)
class Doubt:
    """Why a key can change memory. `inert`: values with which it does not. `nbytes`: the most that it is, where known;
    0 where the prediction takes more."""

    reason: str
    inert: tuple[Any, ...] = INERT
    nbytes: int | None = None

    def raised_by(self, value: object) -> bool:
        return not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.inert)


@dataclass(frozen=True)
class Table:
    """A format's keys: those that settings are made of, those without effect on memory, and those that are not modelled, with why.
    `renamed`: what other versions call some of them. `old`: keys of other versions, without effect."""

    used: frozenset[str]
    without: frozenset[str]
    doubts: Mapping[str, Doubt] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    old: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        counted = len(self.used) + len(self.without) + len(self.doubts)
        assert counted == len(self.names), "a key of two kinds"

    @classmethod
    def of(
        cls,
        used: str,
        without: str = "",
        doubts: Mapping[str, Doubt] | None = None,
        renamed: Mapping[str, str] | None = None,
        old: str = "",
    ) -> Table:
        """The table of keys that are written with blanks between them."""
        kinds = (frozenset(used.split()), frozenset(without.split()))
        return cls(*kinds, doubts or {}, renamed or {}, frozenset(old.split()))

    @property
    def names(self) -> frozenset[str]:
        return self.used | self.without | self.doubts.keys()

    def __or__(self, other: Table) -> Table:
        """Both; where they differ about a key, as `other` says."""
        return Table(
            (self.used - other.names) | other.used,
            (self.without - other.names) | other.without,
            {key: doubt for key, doubt in self.doubts.items() if key not in other.names} | dict(other.doubts),
            dict(self.renamed) | dict(other.renamed),
            self.old | other.old,
        )


@dataclass(frozen=True)
class Chosen:
    """What the command line says: `axes` by their one value, and the names of the fields and options that it sets."""

    axes: Mapping[str, str] = field(default_factory=dict)
    names: Collection[str] = ()


@dataclass(frozen=True)
class Given:
    """A file's keys, by this version's names."""

    document: Document
    table: Table

    @property
    def data(self) -> Mapping[str, Any]:
        return {self.table.renamed.get(key, key): value for key, value in self.document.data.items()}

    def get(self, key: str, default: Any = None) -> Any:
        """What the file says; where it says nothing or null, `default`."""
        value = self.data.get(key)
        return default if value is None else value

    def flag(self, key: str, default: bool = False) -> bool:
        """A yes or no; anything else is an error."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"{shown(value)} is neither true nor false")
        return value

    def number(self, key: str, default: int) -> int:
        """A whole number of at least 1; anything else is an error."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(key, f"{shown(value)} is not a whole number of at least 1")
        return value

    def choice(self, key: str, choices: Iterable[str], default: str) -> str:
        """One of `choices`; anything else is an error."""
        value, choices = self.get(key, default), tuple(choices)
        if value not in choices:
            hint = did_you_mean(str(value), choices)
            raise self.error(key, f"{shown(value)} is not one of {', '.join(choices)}{hint}")
        return str(value)

    def written(self, key: str) -> str:
        """As the file calls `key`."""
        old = next((one for one, new in self.table.renamed.items() if new == key and one in self.document.data), key)
        return key if key in self.document.data else old

    @property
    def nowhere(self) -> str:
        """How an error about a key begins that the file does not have."""
        return f"{self.document.name}: without "

    def where(self, key: str) -> str:
        """How an error about `key` begins."""
        name = self.written(key)
        if name not in self.document.data:
            return f"{self.nowhere}{key}: "
        return f"{self.document.where(name)}{name}: "

    def error(self, key: str, message: str) -> ConfigurationError:
        return ConfigurationError(self.where(key) + message, field=key)


@dataclass(frozen=True)
class ReadKey:
    """A key of the file and how it was read. `told`: the settings that it became, or why it is not modelled."""

    key: str
    value: Any
    kind: Kind
    told: str = ""


@dataclass(frozen=True)
class Config:
    """A configuration that has been read. `called`: what it was read as. `left_out`: what its keys say that is not modelled.
    `defaults`: settings by the trainer's defaults, since the file does not say them. `taken`: what was taken for granted of what no
    default says."""

    name: str
    format: str
    called: str
    keys: tuple[ReadKey, ...]
    left_out: tuple[Unmodelled, ...] = ()
    defaults: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "file": self.name,
            "format": self.format,
            "read_as": self.called,
            "keys": [{"key": one.key, "value": one.value, "read": one.kind, "told": one.told} for one in self.keys],
            "defaults": list(self.defaults),
            "taken": list(self.taken),
        }


class Draft:
    """The settings that a format makes of what is `given`. What the command line has `chosen` it overrules.
    `engine`: DeepSpeed's trains, so that there is no autocast; `engine_type`: in which its own file says."""

    def __init__(self, given: Given, chosen: Chosen) -> None:
        self.given, self.chosen = given, chosen
        self.engine, self.engine_type = False, ""
        self._adopted: list[ReadKey] = []
        self.axes: dict[str, Setting] = {}
        self.settings: dict[str, Setting] = {}
        self.taken: list[str] = []
        self.doubts: list[Unmodelled] = []
        self._lacking: dict[str, str] = {}
        self._made: dict[str, list[str]] = {}
        self._reasons: dict[str, str] = {}
        self._by: dict[str, str] = {}

    def beside(self, given: Given) -> Draft:
        """A draft of another file that says more of the same settings."""
        other = Draft(given, self.chosen)
        other.axes, other.settings, other.taken = self.axes, self.settings, self.taken
        other._lacking = self._lacking
        return other

    def adopt(self, other: Draft, called: str, name: str) -> None:
        """Takes in what the file of `beside` said; its keys are told as `name: key`."""
        keys = other._keys(called)
        self._adopted += [replace(one, key=f"{name}: {one.key}") for one in keys]
        self.doubts += other.doubts

    def axis(self, name: str, fallback: str = "none") -> str:
        """The axis' value as it stands: the command line's, else the file's."""
        if name in self.chosen.axes:
            return self.chosen.axes[name]
        return str(self.axes[name].value) if name in self.axes else fallback

    def set(self, name: str, value: Any, *keys: str) -> None:
        """`name`, an axis, a field or an option, is `value`, which `keys` said; the first of them is to blame for it. An error
        where another key has said otherwise."""
        key, held = keys[0], self.axes if name in AXIS_NAMES else self.settings
        if name in held and held[name].value != value:
            origin = held[name].origin.removesuffix(": ")
            raise self.given.error(
                key,
                f"makes {name} {shown(value)}, and {origin} makes it {shown(held[name].value)}; leave one of both out",
            )
        overruled = name in self.chosen.axes or name in self.chosen.names
        for one in keys:
            told = _told(name, value)
            self._made.setdefault(one, []).append(told + (" (the command line says otherwise)" if overruled else ""))
        if not (name in AXIS_NAMES and overruled):
            where = self.given.where(key)
            held[name] = Setting(value, where.removesuffix(f"{name}: ") if self.given.written(key) == name else where)

    def halves(self, length: int, key: str) -> None:
        """Of pairs' sequences of `length` tokens, which `key` says, half is the prompt; of another length that the command line
        says, one token."""
        self.set("prompt_tokens", 1 if "max_length" in self.chosen.names else length // 2, key)

    def say(self, key: str, told: str) -> None:
        """The file's `key` was used, and sets nothing of its own."""
        self._made.setdefault(key, []).append(told)

    def lack(self, name: str, message: str, key: str | None = None) -> None:
        """The file does not say the axis or field `name`: the command line must."""
        where = self.given.where(key) if key else f"{self.given.document.name}: "
        if name not in self.chosen.axes and name not in self.chosen.names:
            self._lacking[name] = where + message

    def doubt(self, key: str, reason: str, nbytes: int | None = None) -> None:
        """The file's `key` may change memory by what is not modelled; by 0 bytes where the prediction takes more than the job."""
        self._reasons[key] = reason
        if nbytes != 0:
            self.doubts.append(Unmodelled(reason=f"{self.given.written(key)}: {reason}", nbytes=nbytes))

    def done(self, name: str, called: str) -> Config:
        """The configuration. Raises ConfigurationError where something lacks that the command line does not say either."""
        if self._lacking:
            lacking, message = next(iter(self._lacking.items()))
            raise ConfigurationError(message, field=lacking)
        keys = (*self._keys(called), *self._adopted)
        defaults = tuple(
            _told(name, setting.value)
            for name, setting in (self.axes | self.settings).items()
            if name not in self.chosen.names and setting.origin.startswith(self.given.nowhere)
        )
        return Config(self.given.document.name, name, called, keys, tuple(self.doubts), defaults, tuple(self.taken))

    def _keys(self, called: str) -> tuple[ReadKey, ...]:
        return tuple(self._read(key, value, called) for key, value in self.given.document.data.items())

    def _read(self, written: str, value: Any, called: str) -> ReadKey:
        table = self.given.table
        key = table.renamed.get(written, written)
        if key in table.doubts and table.doubts[key].raised_by(value) and key not in self._reasons:
            self.doubt(key, table.doubts[key].reason, table.doubts[key].nbytes)
        if key not in table.names | table.old:
            self.doubt(written, f"no key of {called}{did_you_mean(written, table.names)}")
        if key in self._reasons:
            told = "; ".join([*self._made.get(key, ()), self._reasons[key]])
            return ReadKey(written, value, "not modelled", told)
        if key in self._made:
            return ReadKey(written, value, "used", ", ".join(self._made[key]))
        if key in table.used and value == "auto":
            return ReadKey(written, value, "used", "as the trainer says, else by default")
        return ReadKey(written, value, "without effect")


def _told(name: str, value: Any) -> str:
    return f"{name}: {value if isinstance(value, str) else shown(value)}"


@dataclass(frozen=True, eq=False)
class Format:
    """`name`: as --config-format has it. `called`: in words. `algorithm`: the one whose trainer it configures, if it is one's.
    `draft`: what is made of a file. `marks`: keys by any of which a file is known to be one."""

    name: str
    called: str
    table: Table
    draft: Callable[[Draft], None]
    algorithm: str | None = None
    marks: frozenset[str] = frozenset()
