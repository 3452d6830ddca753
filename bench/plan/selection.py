"""Selectors: what the command line says about which cells, and with which settings.

    Selection(profile="smoke", only=("algorithm=ppo",), set=("ppo.epochs=1",), axes={"precision": "bf16,fp32"})

`--set` beats `include` beats a profile beats the top level. An axis by name replaces that axis' values; all five by name
are the combinations, and the matrix' exclude and include change none of them. `--only` keeps cells of what is there. Every
reading here raises ConfigurationError that begins with the words of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from vrambench.bench.plan.document import parse_value
from vrambench.bench.plan.file import MOST_SAMPLES, Coverage
from vrambench.bench.plan.matrix import Layer, Level, Setting, Settings, check_field, flatten, repeated
from vrambench.methods.errors import ConfigurationError, UnknownValue, brief, shown
from vrambench.methods.workload import AXIS_NAMES


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The selectors, as they were typed. `axes`: by axis, values separated by commas. `read_as`: a line for each that was typed in
    another tool's names (aliased.py)."""

    profile: str | None = None
    axes: Mapping[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    sweep: tuple[str, ...] = ()
    model: str | None = None
    budget: str | None = None
    repeat: int | None = None
    coverage: str | None = None
    config: str | None = None
    config_format: str | None = None
    read_as: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Nothing was selected."""
        return not any(getattr(self, one.name) for one in fields(self)) and self.repeat is None

    def words(self) -> str:
        """The selectors that leave cells out, as they were typed, for an error about what is left."""
        return ", ".join(
            [_words(axis, values) for axis, values in self.axes.items()] + [_words("only", one) for one in self.only]
        )

    def layer(self) -> Layer:
        """What replaces the matrix' own: axes, coverage, repeat."""
        axes = {
            axis: tuple(Setting(name, f"{_words(axis, text)}: ") for name in _names(text, _words(axis, text)))
            for axis, text in self.axes.items()
        }
        if self.coverage is not None and self.coverage not in get_args(Coverage):
            raise UnknownValue("--coverage", self.coverage, get_args(Coverage))
        if self.repeat is not None and self.repeat < 1:
            raise ConfigurationError(f"--repeat {self.repeat}: must be at least 1", field="repeat")
        if self.repeat is not None and self.repeat > MOST_SAMPLES:
            raise ConfigurationError(f"--repeat {self.repeat}: must be at most {MOST_SAMPLES}", field="repeat")
        return Layer(axes=axes, coverage=self.coverage, repeat=self.repeat)  # type: ignore[arg-type]

    def settings(self) -> Settings:
        """What `--set`, `--model` and `--budget` say."""
        found: dict[str, Setting] = {}
        for option, name, text, words in self._assignments():
            origin = f"{words}: "
            read = flatten({name: _value(text, words) if option == "set" else text}, {name: origin}, Level.COMMAND_LINE)
            twice = next((one for one in read if one in found), None)
            if twice is not None:
                raise ConfigurationError(
                    f"{origin}{brief(twice)} is set already, by {found[twice].origin.removesuffix(': ')}", field=twice
                )
            found |= read
        return found

    def sweeps(self) -> Mapping[str, tuple[Setting, ...]]:
        """What `--sweep` says: by field, its values."""
        found: dict[str, tuple[Setting, ...]] = {}
        fixed = self.settings()
        for typed in self.sweep:
            words = _words("sweep", typed)
            name, text = _assignment(typed, words, "FIELD=VALUE,VALUE")
            if name in found:
                raise ConfigurationError(
                    f"{words}: {brief(name)} is swept already; write all its values in one --sweep", field=name
                )
            if name in fixed:
                raise ConfigurationError(
                    f"{words}: {brief(name)} is set as well, by {fixed[name].origin.removesuffix(': ')}", field=name
                )
            values = _value(text, words, several=True)
            twice = repeated(values)
            if twice is not None:
                raise ConfigurationError(f"{words}: {shown(values[twice])} is named twice", field=name)
            found[name] = tuple(Setting(value, f"{words}: ", Level.COMMAND_LINE) for value in values)
        return found

    def kept(self) -> Mapping[str, tuple[str, ...]]:
        """What `--only` says: by axis, the values whose cells are kept."""
        found: dict[str, tuple[str, ...]] = {}
        for typed in self.only:
            words = _words("only", typed)
            axis, separator, text = typed.partition("=")
            if not separator:
                raise ConfigurationError(f"{words}: write --only AXIS=VALUE,VALUE", field="only")
            if axis not in AXIS_NAMES:
                raise UnknownValue(words, axis, AXIS_NAMES)
            if axis in found:
                raise ConfigurationError(
                    f"{words}: {axis} is given already; write all its values in one --only", field=axis
                )
            found[axis] = _names(text, words)
        return found

    def _assignments(self) -> list[tuple[str, str, str, str]]:
        """Option, field, text and the words, of everything that sets one field."""
        short = {"model": self.model, "budget": self.budget}
        given = [(name, name, text, _words(name, text)) for name, text in short.items() if text is not None]
        return given + [
            ("set", *_assignment(typed, _words("set", typed), "FIELD=VALUE"), _words("set", typed))
            for typed in self.set
        ]


def _words(option: str, typed: str) -> str:
    """What was typed, as errors repeat it."""
    return f"--{option} {brief(typed)}"


def _assignment(typed: str, words: str, form: str) -> tuple[str, str]:
    name, separator, text = typed.partition("=")
    option = words.split()[0]
    if not separator or not name.strip():
        raise ConfigurationError(f"{words}: write {option} {form}", field=option.removeprefix("--"))
    name = name.strip()
    if name in AXIS_NAMES:
        raise ConfigurationError(f"{words}: {name} is an axis; write {_words(name, text)}", field=name)
    check_field(name, f"{words}: ")
    if not text.strip():
        raise ConfigurationError(f"{words}: no value after '=' (null is written null)", field=name)
    return name, text


def _value(typed: str, words: str, *, several: bool = False) -> Any:
    try:
        return parse_value(f"[{typed}]" if several else typed)
    except ValueError as error:
        raise ConfigurationError(f"{words}: {shown(typed)} {error}") from None


def _names(text: str, words: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if "" in names:
        raise ConfigurationError(f"{words}: an empty value; separate values by single commas")
    twice = repeated(names)
    if twice is not None:
        raise ConfigurationError(f"{words}: {shown(names[twice])} is named twice")
    return names
