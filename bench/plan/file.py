"""What a matrix file may hold, by shape alone: sections, lists, names.

    document, file, mistakes = read(Path("matrix.yaml"))

Nothing here imports torch, so that a slip in the YAML is told at once; what the names mean is `matrix.py`'s part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from vrambench.bench.plan.document import Document, Key, dotted, load
from vrambench.methods.errors import ConfigurationError, UnknownValue, brief, did_you_mean, shown
from vrambench.methods.validated import complaint
from vrambench.methods.workload import FIELDS

Coverage = Literal["full", "pairwise"]
MOST_SAMPLES = 1000


class Section(BaseModel):
    """What the top level and each profile of a matrix may hold. None: not said here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workload: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, list[str]] = Field(default_factory=dict)
    exclude: list[dict[str, Any]] | None = None
    include: list[dict[str, Any]] | None = None
    sweep: dict[str, list[Any]] | None = None
    coverage: Coverage | None = None
    repeat: Annotated[int, Field(ge=1, le=MOST_SAMPLES, strict=True)] | None = None


class MatrixFile(Section):
    """The whole file."""

    profiles: dict[str, Section] = Field(default_factory=dict)
    default_profile: dict[Literal["cpu", "cuda", "predicted"], str] = Field(default_factory=dict)


def read(path: Path) -> tuple[Document, MatrixFile, list[ConfigurationError]]:
    """The matrix file at `path`, as it is written and by its sections, and every mistake in its shape, with file, line, field and
    the nearest valid value; what is wrong is left out of the sections. Raises ConfigurationError where nothing can be read."""
    document = load(path)
    if document.data is None:
        raise ConfigurationError(f"{document.name}: is empty; a matrix has at least axes (or include) and a workload")
    if not isinstance(document.data, dict):
        raise document.error(
            (), f"a matrix is a mapping ({', '.join(MatrixFile.model_fields)}), not {_kind(document.data)}"
        )
    data, mistakes = document.data, list[ConfigurationError]()
    try:
        file = MatrixFile(**data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        mistakes += [_explained(one, document) for one in details]
        file = MatrixFile(**_without(data, [_path(one) for one in details]))
    for kind, name in file.default_profile.items():
        if name not in file.profiles and not about_profiles(mistakes):
            mistakes.append(_no_profile(kind, name, file, document))
    return document, file, mistakes


def about_profiles(mistakes: Iterable[ConfigurationError]) -> bool:
    """Whether a mistake is in the profiles, so that those that were read are not all that there are."""
    return any((error.field or "").partition(".")[0] == "profiles" for error in mistakes)


def _no_profile(kind: str, name: str, file: MatrixFile, document: Document) -> ConfigurationError:
    """That the default profile of a device is none of the file's."""
    at = ("default_profile", kind)
    if not file.profiles:
        return document.error(at, f"{dotted(at)}: {shown(name)}: the matrix has no profiles")
    return UnknownValue(document.where(*at) + dotted(at), name, file.profiles, line=document.line(*at))


def _path(details: ErrorDetails) -> tuple[Key, ...]:
    return tuple(part for part in details["loc"] if part != "[key]")


def _without(data: Mapping[str, Any], paths: Iterable[tuple[Key, ...]]) -> dict[str, Any]:
    """`data` without what stands at `paths`: of a list, the whole of it."""
    kept = dict(data)
    for path in paths:
        inner = kept.get(str(path[0]))
        if len(path) > 1 and isinstance(inner, dict):
            kept[str(path[0])] = _without(inner, [path[1:]])
        else:
            kept.pop(str(path[0]), None)
    return kept


def _explained(first: ErrorDetails, document: Document) -> ConfigurationError:
    """One of pydantic's complaints about the file's shape, with its line."""
    path = _path(first)
    name, given = dotted(path), first["input"]
    if first["type"] == "extra_forbidden":
        owner = Section if "profiles" in path else MatrixFile
        hint = did_you_mean(str(path[-1]), owner.model_fields)
        if path[-1] in FIELDS:
            hint = "; it is a field of the workload"
        return document.error(path, f"{name}: no such key{hint} (there are {', '.join(owner.model_fields)})")
    if first["type"] == "literal_error":
        choices = [part.strip("'") for part in first["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        return UnknownValue(document.where(*path) + name, given, choices, line=document.line(*path))
    wanted = {
        "dict_type": "a mapping (name: value)",
        "model_type": "a mapping (name: value)",
        "list_type": f"a list ([{brief(str(given))}])" if isinstance(given, str | int | float) else "a list",
        "string_type": "a name",
    }.get(first["type"])
    if wanted:
        return document.error(path, f"{name}: needs {wanted}, not {_kind(given)}")
    return document.error(path, f"{name}: {shown(given)}: {complaint(first)}")


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else shown(value)
