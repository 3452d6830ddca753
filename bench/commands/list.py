"""`vrambench list`: what can be asked for, so that nobody has to know the names by heart."""

from __future__ import annotations

import json
import re
from typing import Annotated

import typer

from vrambench.bench.commands import completion
from vrambench.bench.commands.shared import Json, stdout_kept_clean
from vrambench.methods.errors import ConfigurationError, UnknownValue, did_you_mean, shown

SENTENCES = ("meaning", "reason")
"""What stands without its name."""


def list(
    what: Annotated[
        str,
        typer.Argument(metavar="WHAT", help="models, cards, fields, values or rules.", autocompletion=completion.lists),
    ],
    word: Annotated[
        str,
        typer.Argument(
            metavar="[WORD]", help="Only lines with this word, or with a number that begins so.", show_default=False
        ),
    ] = "",
    *,
    as_json: Json = False,
) -> None:
    """List what can be asked for: models, cards, fields, axis values, rules."""
    from vrambench.reports.text.lists import LISTS

    if what not in LISTS:
        raise UnknownValue("list", what, LISTS)
    with stdout_kept_clean() as out:
        records = LISTS[what]()
        inside = re.compile((r"(?<![\d.])" if word.isdigit() else "") + re.escape(word), re.IGNORECASE)
        wanted = [one for one in records if inside.search(" ".join(one.values()))]
        if not wanted:
            hint = did_you_mean(word, [one["name"] for one in records])
            raise ConfigurationError(f"list {what}: none of {len(records)} has {shown(word)}{hint}")
        if as_json:
            print(json.dumps(wanted, indent=1), file=out)
            return
        for one in wanted:
            told = [text if key in SENTENCES else f"{key} {text}" for key, text in one.items() if key != "name"]
            print(f"{one['name']}: {'; '.join(told)}", file=out)
