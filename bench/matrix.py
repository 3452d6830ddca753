"""matrix.yaml: what a matrix holds, and the combinations that it comes to.

    matrix = load_matrix(Path("matrix.yaml"))
    layer = matrix.layer("smoke")              the top level with a profile laid over it
    combinations(layer)                        axes' product, less exclude, with include as GitHub Actions has it

Every setting remembers where it was written (its origin), so that an error found much later, when a cell is resolved,
still names the line of the file or the words of the command line. From combinations to cells: `plan.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vrambench.bench.located import Document, Key, dotted, load
from vrambench.methods.axes import AXES
from vrambench.methods.errors import ConfigurationError, UnknownValue, did_you_mean
from vrambench.methods.workload import FIELDS

Coverage = Literal["full", "pairwise"]


class Section(BaseModel):
    """What the top level and each profile of a matrix may hold. None: not said here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workload: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, list[str]] = Field(default_factory=dict)
    exclude: list[dict[str, str]] | None = None
    include: list[dict[str, Any]] | None = None
    sweep: dict[str, list[Any]] | None = None
    coverage: Coverage | None = None
    repeat: Annotated[int, Field(ge=1, strict=True)] | None = None


class MatrixFile(Section):
    """The whole file."""

    profiles: dict[str, Section] = Field(default_factory=dict)
    default_profile: dict[Literal["cpu", "cuda"], str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """A value and where it was written: the beginning of any error about it (`matrix.yaml:14: workload.`)."""

    value: Any
    origin: str


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
class Combination:
    """One value for each axis, by axis, and what `include` adds to it. `included`: made by include, not by the axes'
    product."""

    axes: Mapping[str, str]
    added: Settings
    included: bool = False


@dataclass(frozen=True)
class Matrix:
    """A matrix file. `name`: the file, as errors call it."""

    name: str
    top: Layer
    profiles: Mapping[str, Layer]
    default_profile: Mapping[str, str]

    def layer(self, profile: str | None) -> Layer:
        """The top level with `profile` laid over it. Raises UnknownValue where there is no such profile."""
        if profile is None:
            return self.top
        if profile not in self.profiles:
            if not self.profiles:
                raise ConfigurationError(
                    f"profile: {self.name} has no profiles, so there is no {profile!r}", field="profile"
                )
            raise UnknownValue("profile", profile, self.profiles)
        return self.profiles[profile].over(self.top)


def load_matrix(path: Path) -> Matrix:
    """The matrix in the YAML file at `path`. Raises ConfigurationError with file, line, field and the nearest valid
    value."""
    document = load(path)
    if document.data is None:
        raise ConfigurationError(f"{document.name}: is empty; a matrix has at least axes (or include) and a workload")
    if not isinstance(document.data, dict):
        raise document.error(
            (), f"a matrix is a mapping ({', '.join(MatrixFile.model_fields)}), not {_kind(document.data)}"
        )
    try:
        file = MatrixFile(**document.data)
    except ValidationError as error:
        raise _explained(error, document) from None
    reader = _Reader(document)
    for kind, name in file.default_profile.items():
        if name not in file.profiles:
            path_ = ("default_profile", kind)
            raise UnknownValue(document.where(*path_) + dotted(path_), name, file.profiles, line=document.line(*path_))
    profiles = {name: reader.layer(section, ("profiles", name)) for name, section in file.profiles.items()}
    return Matrix(
        document.name,
        reader.layer(file, ()),
        profiles,
        {str(kind): name for kind, name in file.default_profile.items()},
    )


def combinations(layer: Layer, named: Collection[str] = ()) -> list[Combination]:
    """The axes' product, less what `exclude` names, with `include`'s settings and further combinations, as GitHub
    Actions has it.

    An exclude entry removes every combination that has all of its values. An include entry is added to every
    combination of the product whose axis values it does not contradict: the axes are never overwritten, settings that
    an earlier entry added are. An entry that fits nowhere makes a combination of its own, to which no later entry is
    added. `named`: axes whose values the command line named; an entry about other values of them is left out.
    """
    check_axes(layer)
    originals = [
        Combination({axis: value.value for axis, value in zip(AXES, values, strict=True)}, {})
        for values in product(*(layer.axes.get(axis, ()) for axis in AXES))
    ]
    kept = [one for one in originals if not any(_matches(entry, one) for entry in layer.exclude or ())]
    wanted = {axis: [value.value for value in layer.axes[axis]] for axis in named}
    further = []
    for entry in layer.include or ():
        if any(entry.axes.get(axis, values[0]) not in values for axis, values in wanted.items()):
            continue
        if any(_matches(entry, one) for one in kept):
            kept = [
                replace(one, added={**one.added, **entry.settings}) if _matches(entry, one) else one for one in kept
            ]
        elif len(entry.axes) == len(AXES):
            further.append(Combination({axis: entry.axes[axis] for axis in AXES}, entry.settings, included=True))
        else:
            missing = ", ".join(axis for axis in AXES if axis not in entry.axes)
            raise ConfigurationError(
                f"{entry.origin}: fits no combination of the matrix, and cannot make one of its own without {missing}",
                field="include",
            )
    return kept + further


def check_axes(layer: Layer) -> None:
    """Every axis has values, all of which exist; or there are no axes, and include names all. Raises
    ConfigurationError."""
    for axis, values in layer.axes.items():
        for value in values:
            check_value(axis, value.value, value.origin)
    for entry in layer.include or ():
        for axis, name in entry.axes.items():
            check_value(axis, name, entry.origin + ".")
    missing = [axis for axis in AXES if not layer.axes.get(axis)]
    if missing and (layer.axes or not layer.include):
        raise ConfigurationError(f"{layer.origin}axes: no values for {', '.join(missing)}", field=f"axes.{missing[0]}")


def check_value(axis: str, name: str, origin: str) -> None:
    """That `axis` has a value called `name`; `origin` begins the error."""
    try:
        AXES[axis].get(name)
    except ConfigurationError as error:
        raise ConfigurationError(origin + error.message, field=error.field) from None


def check_field(name: str, origin: str) -> None:
    """That a workload could have the field `name`, as far as can be said without the cell: an axis is none, and says
    so."""
    if name in AXES:
        raise ConfigurationError(f"{origin}{name} is an axis: its values are listed under axes", field=name)


def flatten(data: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, Setting]:
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
                raise ConfigurationError(f"{origin}{name} is set twice, nested and dotted", field=name)
            settings[name] = Setting(one, origin)
    return settings


def unflatten(settings: Settings) -> dict[str, Any]:
    """As `resolve` takes them: options under their namespaces."""
    data: dict[str, Any] = {}
    for name, setting in settings.items():
        namespace, _, option = name.partition(".")
        if option:
            data.setdefault(namespace, {})[option] = setting.value
        else:
            data[name] = setting.value
    return data


def _matches(entry: Entry, one: Combination) -> bool:
    return all(one.axes[axis] == value for axis, value in entry.axes.items())


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
        settings = flatten(data, origins)
        for name, setting in settings.items():  # an option stands on a line of its own
            namespace, _, option = name.partition(".")
            if namespace in data and option:
                where = self.document.where(*path, namespace, option)
                settings[name] = replace(setting, origin=f"{where}{dotted(path)}.")
        return settings

    def _values(self, axis: str, names: list[str], path: tuple[Key, ...]) -> tuple[Setting, ...]:
        if axis not in AXES:
            raise UnknownValue(
                self.document.where(*path, axis) + dotted(path), axis, AXES, line=self.document.line(*path, axis)
            )
        values: dict[str, Setting] = {}
        if not names:
            raise self.document.error((*path, axis), f"{dotted((*path, axis))}: no values")
        for index, name in enumerate(names):
            if name in values:
                raise self.document.error((*path, axis, index), f"{dotted(path)}.{axis}: {name!r} is listed twice")
            values[name] = Setting(name, f"{self.document.where(*path, axis, index)}{dotted(path)}.")
        return tuple(values.values())

    def _entries(self, items: list[dict[str, Any]] | None, path: tuple[Key, ...]) -> tuple[Entry, ...] | None:
        if items is None:
            return None
        return tuple(self._entry(item, (*path, index)) for index, item in enumerate(items))

    def _entry(self, item: dict[str, Any], path: tuple[Key, ...]) -> Entry:
        excludes = "exclude" in path
        for key, value in item.items():
            where = f"{self.document.where(*path, key)}{dotted(path)}"
            if excludes and key not in AXES:
                raise UnknownValue(where, key, AXES, line=self.document.line(*path, key))
            if key in AXES and not isinstance(value, str):
                raise self.document.error((*path, key), f"{dotted(path)}.{key}: {value!r} is not the name of a value")
            if excludes:
                check_value(key, value, f"{where}.")
        axes = {key: value for key, value in item.items() if key in AXES}
        if excludes and not axes:
            raise self.document.error(path, f"{dotted(path)}: names no value, and would exclude everything")
        settings = {key: value for key, value in item.items() if key not in AXES}
        return Entry(axes, self._settings(settings, path), f"{self.document.where(*path)}{dotted(path)}")

    def _sweep(self, items: Mapping[str, list[Any]], path: tuple[Key, ...]) -> dict[str, tuple[Setting, ...]]:
        dimensions = {}
        for name, values in items.items():
            origin = f"{self.document.where(*path, name)}{dotted(path)}."
            check_field(name, origin)
            if not values:
                raise self.document.error((*path, name), f"{dotted(path)}.{name}: no values to sweep over")
            dimensions[name] = tuple(Setting(value, origin) for value in values)
        return dimensions


def _explained(error: ValidationError, document: Document) -> ConfigurationError:
    """The first of pydantic's complaints about the file's shape, with its line."""
    first = error.errors(include_url=False)[0]
    path: tuple[Key, ...] = tuple(part for part in first["loc"] if part != "[key]")
    name, given = dotted(path), first["input"]
    if first["type"] == "extra_forbidden":
        owner = Section if "profiles" in path else MatrixFile
        hint = did_you_mean(str(path[-1]), owner.model_fields)
        return document.error(path, f"{name}: no such key{hint} (there are {', '.join(owner.model_fields)})")
    if first["type"] == "literal_error":
        choices = [part.strip("'") for part in first["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        return UnknownValue(document.where(*path) + name, given, choices, line=document.line(*path))
    wanted = {
        "dict_type": "a mapping (name: value)",
        "model_type": "a mapping (name: value)",
        "list_type": f"a list ([{given}])" if isinstance(given, str | int | float) else "a list",
        "string_type": "a name",
    }.get(first["type"])
    if wanted:
        return document.error(path, f"{name}: needs {wanted}, not {_kind(given)}")
    message = first["msg"][0].lower() + first["msg"][1:]
    return document.error(path, f"{name}: {given!r}: {message}")


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else repr(value)
