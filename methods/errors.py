"""Errors that users meet: each names the field, the value that was given and the nearest one that would do."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any


class ConfigurationError(ValueError):
    """A mistake in a matrix, on the command line or in a workload. `str(error)` is one line for people.

    `field` is the dotted name of what was wrong (`workload.ppo.epochs`), or None where no single field is to blame;
    `line` the line of the file it stands on, added by whoever read that file.
    """

    def __init__(self, message: str, *, field: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.line = line


class UnknownValue(ConfigurationError):
    """`value` is none of `choices`: `algorithm: 'ppoo' is not one of sft, ppo, remax; did you mean 'ppo'?`"""

    def __init__(self, field: str, value: object, choices: Iterable[str], *, line: int | None = None) -> None:
        self.choices = tuple(choices)
        hint = nearest(str(value), self.choices)
        message = f"{field}: {shown(value)} is not one of {', '.join(self.choices)}"
        super().__init__(message + (f"; did you mean {hint!r}?" if hint else ""), field=field, line=line)


def nearest(value: str, choices: Iterable[str]) -> str | None:
    """The choice most like `value`, or None where nothing comes near."""
    lowered = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(value.lower(), lowered, n=1, cutoff=0.5)
    return lowered[matches[0]] if matches else None


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """`; did you mean 'ppo'?`, or nothing where no choice comes near."""
    hint = nearest(value, choices)
    return f"; did you mean {hint!r}?" if hint else ""


def shown(value: object) -> str:
    """A value as it is written in YAML, quoted where it is text: `null`, `true`, `.inf`, `'ppoo'`, `[4, 'x']`."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if value != value else ".inf" if value > 0 else "-.inf"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {shown(held)}' for key, held in value.items())}}}"
    return repr(value)


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
