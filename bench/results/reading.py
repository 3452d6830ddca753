"""Reading the JSON of a run's folder, which may be damaged: cut short, not ours, or of a newer version.

parse(file)                     # raises OSError or ValueError, whatever the file holds
schema_refused(data)            # why this version does not read it; None: it does
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from vrambench.bench.results.records import SCHEMA
from vrambench.methods.validated import complaint

DEEPEST = 32
"""Lists and mappings inside each other; no file of ours has ten, and code that walks them may then recurse."""
SHOWN = 60
"""Characters of a bad value that a message repeats."""


class Refused(NamedTuple):
    """Why a file is not read. `newer`: it is one of ours, of a schema that this version does not know."""

    reason: str
    newer: bool = False


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON; what is unknown is null")


def parse(file: Path) -> Any:
    """The file's JSON as plain data. Raises OSError where it cannot be read, ValueError where it is none."""
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise OSError(errno.EINVAL, "it is no regular file", str(file))
    content = file.read_bytes()
    if not content.strip():
        raise ValueError("it is empty")
    try:
        data = json.loads(content, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise ValueError("it is not a text file") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _deeper(data, DEEPEST):
        raise ValueError("nested too deeply")
    return data


def schema_refused(data: Any) -> Refused | None:
    """Why a file with that content is none that this version reads; None where it is."""
    found = data.get("schema") if isinstance(data, dict) else None
    if type(found) is int and found == SCHEMA:
        return None
    if type(found) is int and found > SCHEMA:
        written = str(found) if found < 10**6 else "a far newer number"
        return Refused(f"of schema {written}, which a newer vrambench wrote; this version reads schema {SCHEMA}", True)
    if isinstance(data, dict) and "schema" not in data:
        return Refused("no file of vrambench's: it has no schema")
    return Refused(f"not of schema {SCHEMA}, the one that this version reads")


def in_words(error: ValidationError) -> str:
    """The first thing that is wrong: its place, what is there, and what must be."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        words = "is not there"
    elif first["type"] == "extra_forbidden":
        words = "nothing is called so"
    elif first["type"] == "literal_error":
        words = f"{_short(first['input'])} is not one of {first['ctx']['expected'].replace(' or ', ', ')}"
    else:
        words = f"{_short(first['input'])}: {complaint(first)}"
    return f"{place}: {words}" if place else words


def _short(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value[: SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and mappings lie in more than so many others: gone down level by level."""
    level = [value]
    for _ in range(levels + 1):
        inside = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for of in inside for one in of if isinstance(one, dict | list)]
        if not level:
            return False
    return True
