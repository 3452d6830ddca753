"""matrix.yaml: what a matrix says, level by level.

    matrix = load_matrix(Path("matrix.yaml"))
    layer = matrix.layer("smoke")              the top level with a profile laid over it

Modules that need torch are imported inside the functions that need them, so that `load_matrix` is quick about a slip in
the file. Every setting remembers where it was written (its origin), so that an error found much later, when a cell is resolved,
still names the line of the file or the words of the command line. From a layer to combinations: `combinations.py`; from
those to cells: `plan.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vrambench.bench.plan.document import Document, Key, dotted
from vrambench.bench.plan.file import Coverage, Section, read
from vrambench.methods.errors import ConfigurationError, UnknownValue, brief, shown
from vrambench.methods.workload import AXIS_NAMES, FIELDS, PARTS

if TYPE_CHECKING:
    from vrambench.bench.plan.config import Config


class Level(IntEnum):
    """Where a setting was written."""

    TOP = 0
    PROFILE = 1
    INCLUDE = 2
    COMMAND_LINE = 3


@dataclass(frozen=True)
class Setting:
    """A value and where it was written: the beginning of any error about it (`matrix.yaml:14: workload.`). `level`: what is laid
    over settings of lower ones."""

    value: Any
    origin: str
    level: Level = Level.TOP


Settings = Mapping[str, Setting]
"""By the name of a workload field, or of an option with its namespace (`ppo.epochs`)."""


@dataclass(frozen=True)
class Entry:
    """One item of `exclude` or `include`: what it says of the axes, what it says of the workload, where it stands."""

    axes: Mapping[str, str]
    settings: Settings
    origin: str


@dataclass(frozen=True)
class Layer:
    """A section that has been read. A later layer is laid `over` an earlier one; None is what a section leaves as it
    was."""

    workload: Settings = field(default_factory=dict)
    axes: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict)
    exclude: tuple[Entry, ...] | None = None
    include: tuple[Entry, ...] | None = None
    sweep: Mapping[str, tuple[Setting, ...]] | None = None
    coverage: Coverage | None = None
    repeat: int | None = None
    origin: str = ""

    def values(self) -> list[str]:
        """Every axis value that is named here."""
        entries = (*(self.exclude or ()), *(self.include or ()))
        return [value.value for values in self.axes.values() for value in values] + [
            name for entry in entries for name in entry.axes.values()
        ]

    def over(self, lower: Layer) -> Layer:
        """Workload field by field, axes axis by axis; anything else whole, where this layer says it."""
        said = {name: getattr(self, name) for name in ("exclude", "include", "sweep", "coverage", "repeat")}
        return replace(
            lower,
            workload={**lower.workload, **self.workload},
            axes={**lower.axes, **self.axes},
            **{name: value for name, value in said.items() if value is not None},
        )


@dataclass(frozen=True)
class Matrix:
    """A matrix file, or a `config` of another tool that was read as one. `name`: the file, as errors call it."""

    name: str
    top: Layer
    profiles: Mapping[str, Layer]
    default_profile: Mapping[str, str]
    config: Config | None = None

    def layer(self, profile: str | None) -> Layer:
        """The top level with `profile` laid over it. Raises UnknownValue where there is no such profile."""
        if profile is None:
            return self.top
        if profile not in self.profiles:
            if not self.profiles:
                raise ConfigurationError(
                    f"profile: {self.name} has no profiles, so there is no {shown(profile)}", field="profile"
                )
            raise UnknownValue("profile", profile, self.profiles)
        return self.profiles[profile].over(self.top)


def load_matrix(path: Path) -> Matrix:
    """The matrix in the YAML file at `path`. Raises ConfigurationError with file, line, field and the nearest valid
    value for the first mistake that can be seen without the axes' values; `names.py` sees more."""
    matrix, mistakes = read_matrix(path)
    if mistakes:
        raise mistakes[0]
    return matrix


def read_matrix(path: Path) -> tuple[Matrix, list[ConfigurationError]]:
    """The same, and every mistake in it; without sections that have one. Raises ConfigurationError where nothing can be read."""
    document, file, mistakes = read(path)
    reader = _Reader(document)

    def layer(section: Section, path: tuple[Key, ...]) -> Layer:
        try:
            return reader.layer(section, path)
        except ConfigurationError as error:
            mistakes.append(error)
            return Layer()

    profiles = {name: layer(section, ("profiles", name)) for name, section in file.profiles.items()}
    top = layer(file, ())
    mistakes.sort(key=lambda error: error.line or 0)
    return Matrix(document.name, top, profiles, dict(file.default_profile.items())), mistakes


def located(error: ConfigurationError, settings: Settings) -> ConfigurationError:
    """`error`, beginning with the origin of the setting that it is about."""
    about = error.field or ""
    names = [name for name in settings if name == about or name.startswith(about + ".")]
    if not about or not names:
        return error
    origin, message = settings[names[-1]].origin, error.message
    if message.startswith("workload: "):
        message = message.removeprefix("workload: ")
        origin = origin.removesuffix(".") + ("" if origin.endswith(" ") else ": ")
    return ConfigurationError(origin + message, field=error.field)


def check_builtin(axis: str, name: str, origin: str) -> None:
    """That `name` is a value of `axis`, or may be a user's own, which is not imported here."""
    from vrambench.methods.axes import AXES

    if ":" not in name and name not in AXES[axis]:
        check_value(axis, name, origin)


def check_value(axis: str, name: str, origin: str) -> None:
    """That `axis` has a value called `name`, which is imported; `origin` begins the error."""
    from vrambench.methods.axes import AXES

    try:
        AXES[axis].get(name)
    except ConfigurationError as error:
        raise ConfigurationError(origin + error.message, field=error.field) from None


def check_field(name: str, origin: str) -> None:
    """That a workload could have the field `name`, as far as can be said without the cell: an axis is none, and says
    so."""
    if name in AXIS_NAMES:
        raise ConfigurationError(f"{origin}{name} is an axis: its values are listed under axes", field=name)
    whole, _, option = name.partition(".")
    if option and whole in FIELDS:
        raise ConfigurationError(f"{origin}{brief(name)}: {whole} is a field, and has no options", field=name)


def flatten(data: Mapping[str, Any], origins: Mapping[str, str], level: Level) -> dict[str, Setting]:
    """Settings as they are written, options nested or dotted, by dotted name. `origins`: of each key of `data`."""
    settings: dict[str, Setting] = {}
    for key, value in data.items():
        origin = origins[key]
        nested = isinstance(value, Mapping) and key not in FIELDS
        for name, one in (
            {f"{key}.{option}": held for option, held in value.items()}.items() if nested else [(key, value)]
        ):
            check_field(name, origin)
            if name in settings:
                raise ConfigurationError(f"{origin}{brief(name)} is set twice, nested and dotted", field=name)
            settings[name] = Setting(one, origin, level)
    return settings


def overruled(settings: Settings) -> Settings:
    """`settings` of a cell whose sequences can have a `max_length`, or `lengths`: without what lower levels say of the parts, or of
    the whole where both parts are said above it. A lower level's prompt stays where it leaves room for a response."""
    kept = dict(settings)
    whole = settings.get("max_length")
    if whole is not None and all(part in settings and settings[part].level > whole.level for part in PARTS):
        del kept["max_length"]
    for name, parts in (("max_length", PARTS), ("lengths", PARTS)):
        above = kept.get(name)
        if above is not None and above.value is not None:
            for part in parts:
                if part in kept and kept[part].level < above.level and not _leaves_room(name, part, kept):
                    del kept[part]
    return kept


def _leaves_room(name: str, part: str, settings: Settings) -> bool:
    """Whether a prompt is shorter than the whole sequence."""
    prompt, whole = settings[part].value, settings[name].value
    return (name, part) == ("max_length", "prompt_tokens") and (
        not isinstance(prompt, int) or not isinstance(whole, int) or prompt < whole
    )


def unflatten(settings: Settings) -> dict[str, Any]:
    """As `resolve` takes them: options under their namespaces."""
    data: dict[str, Any] = {}
    for name, setting in settings.items():
        namespace, _, option = name.partition(".")
        if option:
            held = data.get(namespace) or {}
            if isinstance(held, Mapping):  # else it is no mapping of options, and `resolve` says so
                data[namespace] = {**held, option: setting.value}
        else:
            data[name] = setting.value
    return data


def repeated(values: Sequence[Any]) -> int | None:
    """Where the first value stands that stands before already; true is not 1."""
    seen: set[str] = set()
    for index, value in enumerate(values):
        written = json.dumps(value, sort_keys=True)
        if written in seen:
            return index
        seen.add(written)
    return None


@dataclass(frozen=True)
class _Reader:
    """Turns sections into layers, with the line of everything."""

    document: Document

    def layer(self, section: Section, path: tuple[Key, ...]) -> Layer:
        return Layer(
            workload=self._settings(section.workload, (*path, "workload")),
            axes={axis: self._values(axis, names, (*path, "axes")) for axis, names in section.axes.items()},
            exclude=self._entries(section.exclude, (*path, "exclude")),
            include=self._entries(section.include, (*path, "include")),
            sweep=None if section.sweep is None else self._sweep(section.sweep, (*path, "sweep")),
            coverage=section.coverage,
            repeat=section.repeat,
            origin=self.document.where(*path, "axes"),
        )

    def _settings(self, data: Mapping[str, Any], path: tuple[Key, ...]) -> dict[str, Setting]:
        origins = {key: f"{self.document.where(*path, key)}{dotted(path)}." for key in data}
        settings = flatten(data, origins, _level(path))
        for name, setting in settings.items():  # an option stands on a line of its own
            namespace, _, option = name.partition(".")
            if namespace in data and option:
                where = self.document.where(*path, namespace, option)
                settings[name] = replace(setting, origin=f"{where}{dotted(path)}.")
        return settings

    def _values(self, axis: str, names: list[str], path: tuple[Key, ...]) -> tuple[Setting, ...]:
        if axis not in AXIS_NAMES:
            raise UnknownValue(
                self.document.where(*path, axis) + dotted(path), axis, AXIS_NAMES, line=self.document.line(*path, axis)
            )
        values: dict[str, Setting] = {}
        if not names:
            raise self.document.error((*path, axis), f"{dotted((*path, axis))}: no values")
        for index, name in enumerate(names):
            if name in values:
                raise self.document.error(
                    (*path, axis, index), f"{dotted((*path, axis))}: {shown(name)} is listed twice"
                )
            values[name] = Setting(name, f"{self.document.where(*path, axis, index)}{dotted(path)}.")
        return tuple(values.values())

    def _entries(self, items: list[dict[str, Any]] | None, path: tuple[Key, ...]) -> tuple[Entry, ...] | None:
        if items is None:
            return None
        return tuple(self._entry(item, (*path, index)) for index, item in enumerate(items))

    def _entry(self, item: dict[str, Any], path: tuple[Key, ...]) -> Entry:
        excludes = "exclude" in path
        for key, value in item.items():
            if excludes and (key in FIELDS or "." in key or isinstance(value, Mapping)):
                names = ", ".join(AXIS_NAMES)
                raise self.document.error(
                    (*path, key), f"{dotted((*path, key))}: {brief(key)} is no axis; exclude names values of {names}"
                )
            if excludes and key not in AXIS_NAMES:
                where = f"{self.document.where(*path, key)}{dotted(path)}"
                raise UnknownValue(where, key, AXIS_NAMES, line=self.document.line(*path, key))
            if key in AXIS_NAMES and not isinstance(value, str):
                raise self.document.error(
                    (*path, key), f"{dotted(path)}.{key}: {shown(value)} is not the name of a value"
                )
        if not item and not excludes:
            raise self.document.error(path, f"{dotted(path)}: is empty, and would add nothing")
        axes = {key: value for key, value in item.items() if key in AXIS_NAMES}
        if excludes and not axes:
            raise self.document.error(path, f"{dotted(path)}: names no value, and would exclude everything")
        settings = {key: value for key, value in item.items() if key not in AXIS_NAMES}
        return Entry(axes, self._settings(settings, path), f"{self.document.where(*path)}{dotted(path)}")

    def _sweep(self, items: Mapping[str, list[Any]], path: tuple[Key, ...]) -> dict[str, tuple[Setting, ...]]:
        dimensions = {}
        for name, values in items.items():
            origin = f"{self.document.where(*path, name)}{dotted(path)}."
            check_field(name, origin)
            if not values:
                raise self.document.error((*path, name), f"{dotted((*path, name))}: no values to sweep over")
            twice = repeated(values)
            if twice is not None:
                raise self.document.error(
                    (*path, name, twice), f"{dotted((*path, name))}: {shown(values[twice])} is listed twice"
                )
            dimensions[name] = tuple(Setting(value, origin, _level(path)) for value in values)
        return dimensions


def _level(path: tuple[Key, ...]) -> Level:
    """Of what stands at `path`."""
    return Level.INCLUDE if "include" in path else Level.PROFILE if "profiles" in path else Level.TOP
