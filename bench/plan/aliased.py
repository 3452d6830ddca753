"""The selectors in our names, where they were typed in another tool's (`methods/aliases.py`).

    selection, notes = in_our_names(Selection(set=("seq_len=4096",)))
    selection.set          ("max_length=4096",)
    notes                  ("--set seq_len=4096 is read as --set max_length=4096 (torchtune)",)

Whatever is no alias is left as it is, for the errors that know what it is near to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vrambench.bench.plan.selection import Selection
from vrambench.methods.aliases import Alias, field_called, value_called
from vrambench.methods.errors import brief
from vrambench.methods.workload import FIELDS

QLORA = "qlora"
"""Of two axes: adapter lora on precision nf4."""


def in_our_names(selection: Selection) -> tuple[Selection, tuple[str, ...]]:
    """`selection` with aliases read, and a line for each selector that had one."""
    notes: list[str] = []

    def note(typed: str, read: str, sources: Iterable[str]) -> None:
        notes.append(f"{brief(typed)} is read as {brief(read)} ({'; '.join(dict.fromkeys(sources))})")

    axes: dict[str, str] = {}
    for axis, text in selection.axes.items():
        axes[axis], sources = _values(axis, text)
        if sources:
            note(f"--{axis} {text}", f"--{axis} {axes[axis]}", sources)
    if axes.get("adapter", "").strip().lower() == QLORA and axes.get("precision", "nf4") == "nf4":
        axes |= {"precision": "nf4", "adapter": "lora"}
        note(f"--adapter {selection.axes['adapter']}", "--precision nf4 --adapter lora", ["axolotl: adapter"])
    settled: dict[str, tuple[str, ...]] = {}
    for option, given in (("only", selection.only), ("set", selection.set), ("sweep", selection.sweep)):
        read = []
        for typed in given:
            ours, sources = _assignment(option, typed)
            if sources:
                note(f"--{option} {typed}", f"--{option} {ours}", sources)
            read.append(ours)
        settled[option] = tuple(read)
    return replace(selection, axes=axes, **settled), tuple(notes)  # type: ignore[arg-type]


def field_in_our_name(name: str) -> tuple[str, str | None]:
    """A field's name, and where it was an alias how it was read."""
    alias = _field(name)
    return (name, None) if alias is None else (alias.name, f"{brief(name)} is read as {alias.name} ({alias.source})")


def _assignment(option: str, typed: str) -> tuple[str, list[str]]:
    name, separator, text = typed.partition("=")
    alias = _field(name.strip()) if option != "only" else None
    ours = alias.name if alias else name
    values, sources = _values(ours.strip(), text)
    sources = [*([alias.source] if alias else []), *sources]
    return (ours + separator + values, sources) if sources else (typed, [])


def _field(name: str) -> Alias | None:
    return None if name in FIELDS else field_called(name)


def _values(place: str, text: str) -> tuple[str, list[str]]:
    """Values with commas between them, and the sources of those that were aliases."""
    found = [(value, value_called(place, value.strip())) for value in text.split(",")]
    sources = [alias.source for _, alias in found if alias]
    return (",".join(alias.name if alias else value for value, alias in found), sources) if sources else (text, [])
