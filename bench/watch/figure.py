"""A ledger as notebooks show it: what was live at the peak as bars, the code's memory over time, and the table.

One piece of HTML that loads nothing and runs no script; text has the page's own colour, light or dark.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from vrambench.bench.predict.replay import whose
from vrambench.bench.predict.tracing.trace import ALLOC, FREE, MARK, Trace
from vrambench.reports.units import printable, size

WIDTH, HEIGHT = 720, 200
"""Of the timeline, in its own units; it is as wide as the page lets it be."""
MOST_MOMENTS = 360
MOST_NAMED = 7
OTHER = "other"
COLOURS = ("#1f83c6", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#9a7d0a")
"""Okabe and Ito's, as the report's: told apart by all kinds of colour vision, on light and dark."""
LETTER = 6.5
"""What a letter of the timeline's takes, in its units."""


class Moment(NamedTuple):
    """What was live after an event, in bytes by owner and kind (`policy weights`)."""

    event: int
    live: dict[str, int]


class Span(NamedTuple):
    """A phase, by its first event and the one after its last."""

    name: str
    begin: int
    end: int


class Band(NamedTuple):
    """An owner's share of the timeline, stacked on those before it: an SVG polygon's points."""

    name: str
    colour: str
    points: str


def followed(trace: Trace, peak_event: int, most: int = MOST_MOMENTS) -> tuple[list[Moment], Counter[str]]:
    """The highest moment of each of `most` stretches of equally many events, and the one after `peak_event`; and the most that each
    owner ever held, in bytes."""
    stretch = max(1, math.ceil(len(trace.events) / most))
    tops: dict[int, tuple[int, int]] = {}
    for index, (_, total) in enumerate(trace.live()):
        if index // stretch not in tops or total > tops[index // stretch][0]:
            tops[index // stretch] = total, index
    wanted = {peak_event, *(index for _, index in tops.values())}
    live, highest = Counter[str](), Counter[str]()
    held: dict[int, tuple[str, int]] = {}
    found: list[Moment] = []
    for index, event in enumerate(trace.events):
        if event.kind == ALLOC:
            name = called(*whose(event, trace))
            held[event.ident] = name, event.nbytes
            live[name] += event.nbytes
            highest[name] = max(highest[name], live[name])
        elif event.kind == FREE:
            name, nbytes = held.pop(event.ident)
            live[name] -= nbytes
        if index in wanted:
            found.append(Moment(index, {name: nbytes for name, nbytes in live.items() if nbytes}))
    return found, highest


def called(role: str | None, kind: str) -> str:
    """An owner and what it is, in words."""
    return printable(" ".join(filter(None, (role, kind))).replace("_", " "))


def spans(trace: Trace) -> list[Span]:
    """The phases in order, each step's for itself."""
    begun = [(index, event.place) for index, event in enumerate(trace.events) if event.kind == MARK]
    ends = [*(index for index, _ in begun[1:]), len(trace.events)]
    return [
        Span(printable(f"{place.phase}" + ("" if place.step is None else f", step {place.step}")), begin, end)
        for (begin, place), end in zip(begun, ends, strict=True)
        if end > begin + 1
    ]


def bands(found: Sequence[Moment], names: Sequence[str], events: int) -> list[Band]:
    """The moments as bands of the named owners, and of all others, one above the other."""
    highest = max(sum(moment.live.values()) for moment in found)
    across = [WIDTH * moment.event / max(1, events - 1) for moment in found]
    below = [0.0] * len(found)
    made: list[Band] = []
    for name, colour in zip((*names, OTHER), (*COLOURS[: len(names)], "#8c8c8c"), strict=True):
        shares = [
            moment.live.get(name, 0)
            if name != OTHER
            else sum(nbytes for one, nbytes in moment.live.items() if one not in names)
            for moment in found
        ]
        above = [low + HEIGHT * share / highest for low, share in zip(below, shares, strict=True)]
        if any(shares):
            there = zip(across, above, strict=True)
            back = zip(reversed(across), reversed(below), strict=True)
            points = " ".join(f"{x:.1f},{HEIGHT - y:.1f}" for x, y in (*there, *back))
            made.append(Band(name, colour, points))
        below = above
    return made


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("figure.html")


def figure(verdict: str, trace: Trace, peak_event: int, rows: Sequence[tuple[str, str]]) -> str:
    """HTML of what `trace` holds, whose peak is at that event: `verdict` over it, and under it `rows`, what was counted and how
    much. Where no memory was used there are none."""
    found, highest = followed(trace, peak_event) if rows else ([], Counter[str]())
    at_peak = next((moment.live for moment in found if moment.event == peak_event), {})
    names = [name for name, _ in highest.most_common(MOST_NAMED)]
    scale = WIDTH / max(1, len(trace.events) - 1)
    owners = [(name, at_peak.get(name, 0), highest[name], colour) for name, colour in zip(names, COLOURS, strict=False)]
    return _template().render(
        verdict=printable(verdict),
        owners=[
            (name, here, size(here), size(most), colour)
            for name, here, most, colour in sorted(owners, key=lambda owner: -owner[1])
        ],
        widest=max(at_peak.values(), default=1),
        bands=bands(found, names, len(trace.events)) if found else [],
        spans=[(one.name, one.begin * scale, (one.end - one.begin) * scale) for one in spans(trace)],
        peak=size(sum(at_peak.values())),
        peak_at=peak_event * scale,
        rows=[(printable(name), count) for name, count in rows],
        width=WIDTH,
        height=HEIGHT,
        letter=LETTER,
    )
