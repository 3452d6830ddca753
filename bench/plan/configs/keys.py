"""What a user's configuration says, key by key, and the keys that a format has.

    given = Given(document, table)
    given.number("per_device_train_batch_size", 8)
    given.wrong("per_device_train_batch_size", "is odd")      a mistake, with file, line and key

A mistake ends nothing: what the key would have said is its default, so that all mistakes of a file are told at once.

What is made of it is a draft (`draft.py`), and then a Config.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vrambench.bench.plan.document import Document
from vrambench.methods.aliases import field_called
from vrambench.methods.errors import did_you_mean, nearest, shown

INERT: tuple[Any, ...] = (None, False, "", [], {}, "no", "none")
"""Values that switch a key off."""


@dataclass(frozen=True)
class Doubt:
    """Why a key can change memory. `inert`: values with which it does not. `nbytes`: the most that it is, where known;
    0 where the prediction takes more. `less`: the job may take less, too."""

    reason: str
    inert: tuple[Any, ...] = INERT
    nbytes: int | None = None
    less: bool = False

    def raised_by(self, value: object) -> bool:
        return not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.inert)


@dataclass(frozen=True)
class Table:
    """A format's keys: those that settings are made of, those without effect on memory, and those that are not modelled, with why.
    `renamed`: what other versions call some of them. `old`: keys of other versions, without effect. `open`: sections that may have
    any others, without effect unless they are a slip of a key that is used."""

    used: frozenset[str]
    without: frozenset[str]
    doubts: Mapping[str, Doubt] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    old: frozenset[str] = frozenset()
    open: frozenset[str] = frozenset()

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
        open: str = "",
    ) -> Table:
        """The table of keys that are written with blanks between them."""
        kinds = (frozenset(used.split()), frozenset(without.split()))
        return cls(*kinds, doubts or {}, renamed or {}, frozenset(old.split()), frozenset(open.split()))

    @property
    def names(self) -> frozenset[str]:
        return self.used | self.without | self.doubts.keys()

    def knows(self, key: str) -> bool:
        """Whether the format, of this version or another, may have `key`."""
        section, _, name = key.partition(".")
        if key in self.names | self.old or section not in self.open:
            return key in self.names | self.old
        return nearest(name, [one.partition(".")[2] for one in self.used if one.startswith(f"{section}.")]) is None

    def meant(self, key: str) -> str | None:
        """The key that one which the format does not have is a slip of, or another tool's name for."""
        ours = _ours(key)
        same = [one for one in self.used if _ours(one) == ours]
        return same[0] if len(same) == 1 else nearest(key, self.names)

    def __or__(self, other: Table) -> Table:
        """Both; where they differ about a key, as `other` says."""
        return Table(
            (self.used - other.names) | other.used,
            (self.without - other.names) | other.without,
            {key: doubt for key, doubt in self.doubts.items() if key not in other.names} | dict(other.doubts),
            dict(self.renamed) | dict(other.renamed),
            self.old | other.old,
            self.open | other.open,
        )


def _ours(key: str) -> str:
    """The field that `key` is, by our name."""
    alias = field_called(key)
    return alias.name if alias else key


def closest(value: object, choices: Iterable[str]) -> str:
    """`; did you mean 'bfd'?`: of a closed list the nearest choice, other digits and all; nothing where none is like it."""
    choices = tuple(choices)
    alike = difflib.get_close_matches(str(value).lower(), choices, n=1, cutoff=0.5)
    return did_you_mean(str(value), choices) or (f"; did you mean {alike[0]!r}?" if alike else "")


@dataclass(frozen=True)
class Chosen:
    """What the command line says: `axes` by their one value, and the names of the fields and options that it sets."""

    axes: Mapping[str, str] = field(default_factory=dict)
    names: Collection[str] = ()


@dataclass(frozen=True)
class Given:
    """A file's keys, by this version's names. `mistakes`: by the key that is to blame, in the order in which they were found."""

    document: Document
    table: Table
    mistakes: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Mapping[str, Any]:
        return {self.table.renamed.get(key, key): value for key, value in self.document.data.items()}

    def get(self, key: str, default: Any = None) -> Any:
        """What the file says; where it says nothing or null, `default`."""
        value = self.data.get(key)
        return default if value is None else value

    def flag(self, key: str, default: bool = False) -> bool:
        """A yes or no; anything else is a mistake."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.wrong(key, f"{shown(value)} is neither true nor false")
            return default
        return value

    def number(self, key: str, default: int) -> int:
        """A whole number of at least 1; anything else is a mistake."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.wrong(key, f"{shown(value)} is not a whole number of at least 1")
            return default
        return value

    def text(self, key: str, default: str = "") -> str:
        """A word or a name; anything else is a mistake."""
        value = self.get(key, default)
        if not isinstance(value, str):
            self.wrong(key, f"{shown(value)} is not text")
            return default
        return value

    def choice(self, key: str, choices: Iterable[str], default: str) -> str:
        """One of `choices`; anything else is a mistake."""
        value, choices = self.get(key, default), tuple(choices)
        if value not in choices:
            self.wrong(key, f"{shown(value)} is not one of {', '.join(choices)}{closest(value, choices)}")
            return default
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

    def wrong(self, key: str, message: str) -> None:
        """Notes what is wrong with `key`; the first of it counts."""
        self.mistakes.setdefault(key, self.where(key) + message)
