"""What was typed, as one of our pydantic models; complaints are in our words.

workload = validated(Workload, {"batch_size": 2})
"""

from __future__ import annotations

import marshal
import math
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from vrambench.methods.elsewhere import said_here
from vrambench.methods.errors import ConfigurationError, UnknownValue, brief, did_you_mean, nearest, shown
from vrambench.methods.workload import FIELDS

Kind = TypeVar("Kind", bound=BaseModel)

_WANTED = {
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a finite number",
    "bool": "must be true or false",
    "string": "must be text",
    "tuple": "must be a list",
    "list": "must be a list",
    "dict": "must be a mapping (name: value)",
    "model": "must be a mapping (name: value)",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "greater than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def validated(kind: type[Kind], data: object, *, prefix: str = "") -> Kind:
    """`kind` made of `data`, whose fields are written after `prefix`. Raises ConfigurationError with the field, the value and the
    nearest valid one."""
    given = check_mapping(data, prefix.rstrip("."))
    try:
        made = kind(**given)
    except ValidationError as error:
        raise explain(error, kind, prefix) from None
    for name, value in given.items():
        if value is not None:
            _check_number(prefix + name, value, getattr(made, name))
    return made


def validated_once(kind: type[Kind], data: Any, *, prefix: str = "") -> Kind:
    """As `validated`, and checked once for all who say the same: thousands of cells do. What is made is theirs together."""
    try:
        written = marshal.dumps(data, 2)  # of plain values' exact types: True is not 1, and a list is no tuple
    except ValueError:
        return validated(kind, data, prefix=prefix)
    return _made_of(kind, written, prefix)


@lru_cache(maxsize=1024)
def _made_of(kind: type[Kind], written: bytes, prefix: str) -> Kind:
    return validated(kind, marshal.loads(written), prefix=prefix)


def check_mapping(data: object, field: str) -> Mapping[str, Any]:
    """`data`, which is said under `field`. Raises ConfigurationError where it is no mapping."""
    if not isinstance(data, Mapping):
        raise ConfigurationError(f"{field}: {shown(data)} is not a mapping of settings", field=field)
    return data


def _check_number(field: str, given: object, made: object) -> None:
    """What pydantic lets pass where a class of options does not forbid it: a bool that becomes a number, a number that
    is not finite."""
    if isinstance(given, list | tuple) and isinstance(made, list | tuple):
        for one, other in zip(given, made, strict=False):
            _check_number(field, one, other)
    elif isinstance(given, bool) and not isinstance(made, bool):
        raise ConfigurationError(f"{field}: {shown(given)}: must be a number", field=field)
    elif isinstance(made, float) and not math.isfinite(made):
        raise ConfigurationError(f"{field}: {shown(given)}: must be a finite number", field=field)


def explain(error: ValidationError, kind: type[BaseModel], prefix: str = "") -> ConfigurationError:
    """The first of pydantic's complaints, in our words: field, value, nearest valid one."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    field = prefix + name
    if first["type"] == "extra_forbidden":
        return unknown_option(name, kind.model_fields, prefix)
    if first["type"] == "literal_error":
        annotation = str(first["ctx"]["expected"])
        return UnknownValue(
            field, first["input"], [part.strip("'") for part in annotation.replace(" or ", ", ").split(", ")]
        )
    message, value = complaint(first), shown(first["input"])
    if not first["loc"]:  # of several fields together
        field = prefix.rstrip(".")
        return ConfigurationError(f"{field}: {message}" if field else message, field=field)
    lacking = first["type"] == "missing" and len(first["loc"]) == 1  # the value given is the whole mapping
    if not lacking and (first["type"] != "value_error" or value not in message):  # our own messages may name it already
        message = f"{value}: {message}"
    return ConfigurationError(f"{field}: {message}", field=field)


def unknown_option(name: str, fields: Iterable[str], prefix: str) -> ConfigurationError:
    """That none of the `fields`, which are written after `prefix`, is called `name`."""
    choices = [choice for choice in fields if choice != "options"]
    return ConfigurationError(
        f"{prefix}{brief(name)}: no such field{_meant(name, choices, prefix)} (there are {', '.join(choices)})",
        field=prefix + name,
    )


def _meant(name: str, choices: Iterable[str], prefix: str) -> str:
    """The nearest choice, as it has to be typed."""
    hint = nearest(name, choices)
    return f"; did you mean '{prefix}{hint}'?" if hint else ""


def unknown_field(name: str, namespaces: Mapping[str, Collection[str]] | None = None) -> ConfigurationError:
    """That a workload has neither a field nor one of the `namespaces`, each with the names of its options, called `name`."""
    return ConfigurationError(f"workload: unknown field {shown(name)}{meant_by(name, namespaces)}", field=name)


def meant_by(name: str, namespaces: Mapping[str, Collection[str]] | None = None) -> str:
    """What was meant by a field called `name`, as the end of an error: what says the same here, an option without its namespace, or
    the nearest name; nothing where there is none."""
    named = namespaces or {}
    options = [f"{namespace}.{name}" for namespace, fields in named.items() if name in fields]
    said = said_here(name) or (f"it is the option {' or '.join(options)}" if options else None)
    return f"; {said}" if said else did_you_mean(name, (*FIELDS, *named))


def complaint(details: Mapping[str, Any]) -> str:
    """What one of pydantic's error details wants, in our words: `must be at least 1`."""
    kind, context = str(details["type"]), details.get("ctx", {})
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        bound = context[name]
        return f"must be {words} {int(bound) if bound == int(bound) else bound}"
    if kind in ("too_long", "too_short"):
        number = context["max_length" if kind == "too_long" else "min_length"]
        return f"must have {'at most' if kind == 'too_long' else 'at least'} {number} values"
    if kind == "missing":
        return "lacks a value"
    if kind in ("value_error", "assertion_error"):  # words of a validator, ours or a user's own
        return str(context["error"])
    stem, _, rest = kind.partition("_")
    known = rest in ("type", "parsing", "parsing_size", "from_float", "number")
    return _WANTED[stem] if known and stem in _WANTED else "is not a value that it can have"
