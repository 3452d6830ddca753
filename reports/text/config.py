"""What `fit`, `plan` and `run` say of a trainer's configuration: what it was read as, and how each of its keys was read."""

from __future__ import annotations

from typing import TextIO

from vrambench.bench.plan.config import Config, ReadKey
from vrambench.methods.errors import shown
from vrambench.reports.text.answers import print_rows
from vrambench.reports.text.terminal import Output, plain


def print_config(config: Config, out: TextIO) -> None:
    """A table of the keys that are used or not modelled, and lines for the others and for what the file does not say."""
    console = Output(out)
    console.tell(f"{config.name}: read as {config.called} ({config.format})")
    rows = [(plain(one.key), plain(_value(one)), one.kind, plain(one.told)) for one in config.keys if one.told]
    if rows:
        print_rows(("key", "value", "read", ""), rows, out)
    without = [one.key for one in config.keys if not one.told]
    if without:
        console.tell(f"without effect on memory: {', '.join(without)}")
    if config.defaults:
        console.tell(f"by its defaults: {', '.join(one.told for one in config.defaults)}")
    for one in config.taken:
        console.tell(f"taken: {one.told}")


def _value(one: ReadKey) -> str:
    return one.value if isinstance(one.value, str) else shown(one.value)
