"""Errors that users meet: each names the field, the value that was given and the nearest one that would do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
        message = f"{field}: {value!r} is not one of {', '.join(self.choices)}"
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
