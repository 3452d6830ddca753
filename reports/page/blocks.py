"""The allocator's block map of one cell: where every block lay when most was in use, and what lay unused between, laid out in lines
of equally many bytes. Only cells whose allocator was recorded (`run --record`) have one."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt

from vrambench.bench.results.records import BlockMap, BlockName
from vrambench.reports import units
from vrambench.reports.page.charts import HUES, SHOWN, Chart, Legend, legend, rounded, specification
from vrambench.reports.page.kinds import OWN_HUE, colours
from vrambench.reports.rows import Row

CELLS = 12
"""Maps that a page holds."""
LINES = 20
"""Lines that a map is laid out in, at most."""
LINE = 13
"""Pixels that a line and its gap take."""
LEAST = 0.0004
"""Share of a map from which on a stretch is drawn by itself."""
HUED = 8
"""Names that have a hue of their own beside the roles' weights and optimizer state."""
UNUSED, LITTLE, OTHERS = "unused", "little blocks", "others"
FIXED = {OTHERS: "#8c8c8c", LITTLE: "#bcaed0", UNUSED: "#dddddd"}


class Told(NamedTuple):
    """What a block's name says, apart."""

    what: str
    module: str
    where: str
    phase: str


class Drawn(NamedTuple):
    """A piece of a line, in bytes from its begin."""

    line: int
    begin: int
    end: int
    name: str


def told(name: BlockName) -> Told:
    """`learn: policy/model.layers.*.mlp` is a phase, a role and its module; what is weights or optimizer state is called so, and
    what has another's text by that."""
    if not name.used:
        return Told(UNUSED, "", "", "")
    phase, colon, at = name.called.partition(": ")
    role, _, module = at.partition("/")
    known = " ".join(filter(None, (name.role, name.kind)))
    if not colon:
        return Told(known or name.called or name.where or "in use", "", name.where, "")
    return Told(known or f"{role or 'asked for'} in {phase}", module, name.where, phase)


def in_use(blocks: BlockMap) -> Counter[Told]:
    """Bytes of what was in use."""
    sums: Counter[Told] = Counter()
    for segment in blocks.segments:
        for place, nbytes in segment:
            if blocks.names[place].used:
                sums[told(blocks.names[place])] += nbytes
    return sums


def blocks_chart(rows: Sequence[Row]) -> Chart | None:
    """The maps of those of `rows` that have one, one at a time; None where none has."""
    maps = {row.index: row.result.blocks for row in rows if row.result and row.result.blocks}
    shown = [row for row in rows if row.index in maps][:CELLS]
    if not shown:
        return None
    sums: Counter[str] = Counter()
    for row in shown:
        for one, nbytes in in_use(maps[row.index]).items():
            sums[one.what] += nbytes
    hue = _hues(shown, sums)
    names = list(hue)
    drawn = {row.index: list(laid_out(maps[row.index], hue)) for row in shown}
    unit = units.common_unit(piece.end for of in drawn.values() for piece in of)
    legends = {"legend_blocks": Legend.of_names(names, {i: {piece.name for piece in of} for i, of in drawn.items()})}
    pieces = (
        alt.Chart(alt.NamedData(name="pieces"))
        .transform_filter(SHOWN)
        .transform_flatten(["line", "begin", "end", "place"])
        .transform_calculate(part=f"{json.dumps(names)}[datum.place]", held="datum.end - datum.begin")
    )
    chart = pieces.mark_bar(stroke="white", strokeWidth=0.4, height={"band": 0.86}).encode(
        x=alt.X("begin:Q", title=f"{unit} of a line", scale=alt.Scale(nice=False), axis=alt.Axis(grid=False)),
        x2="end:Q",
        y=alt.Y("line:O", title=None, axis=None),
        color=alt.Color(
            "part:N",
            scale=alt.Scale(domain=names, range=list(hue.values())),
            legend=legend(None, names, "legend_blocks", symbolType="square"),
        ),
        tooltip=[alt.Tooltip("part:N"), alt.Tooltip("held:Q", title=unit, format=",.4~r")],
    )
    data = [_data(row.index, drawn[row.index], names, unit) for row in shown]
    spec = specification(chart.properties(width=860, height=LINE * LINES), shown[:1], {"pieces": data}, legends)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    title = "The allocator's blocks when most was in use, segment after segment"
    described = "A map of one cell's memory: what lay where, and what lay unused between."
    indices = tuple(row.index for row in shown)
    return Chart("blocks", title, described, spec, indices, min_width=300, legends=legends, only=indices[0])


def laid_out(blocks: BlockMap, hue: Mapping[str, str]) -> Iterator[Drawn]:
    """The stretches in lines, what is little together, with the names that have a hue."""
    total = sum(nbytes for segment in blocks.segments for _, nbytes in segment)
    line_bytes = max(1, math.ceil(total / LINES))
    least = LEAST * total
    at = 0
    for name, nbytes in _merged(blocks, hue, least):
        left = nbytes
        while left:
            line, begin = divmod(at, line_bytes)
            piece = min(left, line_bytes - begin)
            yield Drawn(line, begin, begin + piece, name)
            at, left = at + piece, left - piece


def _merged(blocks: BlockMap, hue: Mapping[str, str], least: float) -> Iterator[tuple[str, int]]:
    little = 0
    for segment in blocks.segments:
        for place, nbytes in segment:
            if nbytes < least:
                little += nbytes
                continue
            if little:
                yield LITTLE, little
                little = 0
            what = told(blocks.names[place]).what
            yield what if what in hue else OTHERS, nbytes
    if little:
        yield LITTLE, little


def _hues(rows: Sequence[Row], sums: Counter[str]) -> dict[str, str]:
    """Weights and optimizer state as in the ledger, then what is most, then the rest together."""
    kinds = {what: what.rpartition(" ")[2] for what in sums}
    known = {name: hue for name, hue in colours(rows, [*kinds, *kinds.values()]).items() if hue != OWN_HUE}
    ledgers = {what: known.get(what) or known[kind] for what, kind in kinds.items() if what in known or kind in known}
    others = [what for what, _ in sums.most_common() if what not in ledgers][:HUED]
    return ledgers | dict(zip(others, HUES, strict=False)) | FIXED


def _data(index: int, drawn: Sequence[Drawn], names: Sequence[str], unit: units.Unit) -> dict[str, Any]:
    scale = units.SCALE[unit]
    return {
        "i": index,
        "line": [piece.line for piece in drawn],
        "begin": [rounded(piece.begin / scale) for piece in drawn],
        "end": [rounded(piece.end / scale) for piece in drawn],
        "place": [names.index(piece.name) for piece in drawn],
    }
