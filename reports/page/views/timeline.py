"""The view of one cell over its phases, and of what was live at its peak."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from vrambench.bench.results.records import Phase
from vrambench.reports import units
from vrambench.reports.filled import BEYOND, LITTLE, WHOLE, parts, told_parts
from vrambench.reports.page.blocks import blocks_chart, in_use
from vrambench.reports.page.charts import SHOWN, Chart, Legend, legend, rounded, specification
from vrambench.reports.page.kinds import colours
from vrambench.reports.page.view import ChartsData, View
from vrambench.reports.report import Report
from vrambench.reports.rows import Row

CELLS = 60
"""Cells that can be chosen, those nearest to their budget first."""
PHASES = 48
"""Phases of a cell that are drawn, the first ones."""
HELD = 14
"""Parts that are told of what was live at the peak, the largest."""
LINES = ("allocated", "reserved", "device")
LINE_HUES = {"reserved": "#8c8c8c", "device": "#56b4e9", "predicted": "#c65b9a"}


@dataclass(frozen=True)
class Live:
    """A part of what was in use at the peak: whose and what, and where it is known which module and operator asked for it, and
    when."""

    what: str
    module: str
    operator: str
    phase: str
    nbytes: int

    @property
    def size(self) -> str:
        return units.size(self.nbytes)


@dataclass(frozen=True)
class TimelineData(ChartsData):
    """`choices`: cells by row index; the first is drawn first. `live`: by row index, what was in use at the peak."""

    choices: tuple[tuple[int, str], ...] = ()
    live: dict[int, tuple[Live, ...]] | None = None


def timeline(report: Report) -> TimelineData | None:
    """None where no cell knows the peaks of its phases."""
    rows = chosen([row for row in report.rows if row.result and any(map(_known, row.result.phases))])
    if not rows:
        return None
    text = (
        "A bar is the peak of allocated memory inside one phase of one step, by role and kind where it was predicted or recorded "
        "(run --record); the marks are what was reserved, what the device held, and, of a measured cell, what was predicted to be "
        "allocated. Below: what was in use at the highest peak, and who asked for "
        "it, where the result tells."
    )
    blocks = blocks_chart(rows)
    return TimelineData(
        (timeline_chart(rows, report), *([blocks] if blocks else [])),
        text,
        (f"Of {units.plural(len(report.rows), 'cell')} those nearest to their budget can be chosen.",)
        if len(rows) == CELLS
        else (),
        choices=tuple((row.index, report.labels[row.index]) for row in rows),
        live={row.index: live(row) for row in rows},
    )


def chosen(rows: Sequence[Row]) -> list[Row]:
    """Cells that a reader asks about: those that were recorded first, then the nearest to their budget, else the largest."""

    def distance(row: Row) -> tuple[bool, float, int]:
        margin = row.verdict.margin_bytes
        far = abs(margin) if margin is not None else 2.0**62 - (row.memory.allocated_bytes or 0)
        return not (row.result and row.result.blocks), far, row.index

    return sorted(rows, key=distance)[:CELLS]


def live(row: Row) -> tuple[Live, ...]:
    """The largest first."""
    assert row.result
    blocks = in_use(row.result.blocks) if row.result.blocks else {}
    found = (
        [Live(one.what, one.module, one.where, one.phase, nbytes) for one, nbytes in blocks.items()]
        or [
            Live(" ".join(filter(None, (one.role, one.kind))), one.module, one.operator, one.phase or "", one.nbytes)
            for one in row.result.held
        ]
        or [Live(name, "", "", "", nbytes) for name, nbytes in parts(row) if name not in BEYOND]
    )
    return tuple(sorted(found, key=lambda one: -one.nbytes)[:HELD])


def _known(phase: Phase) -> bool:
    return any(getattr(phase, f"{line}_bytes") is not None for line in LINES)


def timeline_chart(rows: Sequence[Row], report: Report) -> Chart:
    """One cell at a time, over its phases in order."""
    phases = {row.index: [phase for phase in row.result.phases if _known(phase)][:PHASES] for row in rows if row.result}
    unit = units.common_unit(getattr(one, f"{line}_bytes") for of in phases.values() for one in of for line in LINES)
    filled = {index: [phase_parts(row, one) for one in phases[index]] for index, row in zip(phases, rows, strict=True)}
    hue = colours(rows, dict.fromkeys(name for of in filled.values() for one in of for name, _ in one))
    names = list(hue)
    data = [_data(row, phases[row.index], unit) for row in rows]
    legends = {
        "legend_timeline": Legend.of_names(
            names, {index: {name for one in of for name, _ in one} for index, of in filled.items()}
        )
    }
    x = alt.X(
        "when:N", sort=None, title="phases in order", axis=alt.Axis(labelAngle=-40, labelOverlap=True, labelLimit=110)
    )
    bars, ticks = _part_bars(names, hue, x, unit), _line_ticks(data, x, unit)
    budget = alt.Chart(alt.NamedData(name="budgets")).transform_filter(SHOWN).transform_filter("isValid(datum.budget)")
    rule = budget.mark_rule(color="#d55e00", strokeDash=[3, 2]).encode(y="budget:Q", tooltip=["words:N"])
    layered = alt.layer(bars, ticks, rule).properties(width=860, height=240)
    of_rows = [_parts(row, filled[row.index], one["when"], names, unit) for row, one in zip(rows, data, strict=True)]
    datasets = {"parts": of_rows, "phases": data, "budgets": [_budget(row, phases[row.index], unit) for row in rows]}
    spec = specification(layered, rows[:1], datasets, legends)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    described = "Bars of one cell: the peak of allocated memory inside each phase of each step."
    indices = tuple(row.index for row in rows)
    title = "Memory over the phases of one cell; dotted line: its budget"
    return Chart("timeline", title, described, spec, indices, min_width=300, legends=legends, only=indices[0])


def _part_bars(names: Sequence[str], hue: Mapping[str, str], x: Any, unit: units.Unit) -> Any:
    """What was in use at each phase's peak, stacked."""
    of_parts = (
        alt.Chart(alt.NamedData(name="parts"))
        .transform_filter(SHOWN)
        .transform_flatten(["at", "place", "held"])
        .transform_calculate(when="datum.names[datum.at]", part=f"{json.dumps(names)}[datum.place]")
    )
    return of_parts.mark_bar().encode(
        x=x,
        y=alt.Y("held:Q", title=unit, stack="zero"),
        color=alt.Color(
            "part:N",
            scale=alt.Scale(domain=names, range=list(hue.values())),
            legend=legend(None, names, "legend_timeline", symbolType="square"),
        ),
        order=alt.Order("place:Q"),
        tooltip=[
            alt.Tooltip("when:N", title="phase"),
            alt.Tooltip("part:N"),
            alt.Tooltip("held:Q", title=unit, format=",.4~r"),
        ],
    )


def _line_ticks(data: Sequence[Mapping[str, Any]], x: Any, unit: units.Unit) -> Any:
    """A mark for each further line of the ledger that any cell has."""
    base = (
        alt.Chart(alt.NamedData(name="phases"))
        .transform_filter(SHOWN)
        .transform_flatten(["when", *LINES, "predicted", "took"])
    )
    tooltip = [
        alt.Tooltip("when:N", title="phase"),
        *(alt.Tooltip(f"{line}:Q", title=f"{line}, {unit}", format=",.4~r") for line in (*LINES, "predicted")),
        alt.Tooltip("took:N"),
    ]
    hues = {
        line: colour
        for line, colour in LINE_HUES.items()
        if any(told is not None for one in data for told in one[line])
    }
    marks = base.transform_fold(list(hues), as_=["line", "held"]).transform_filter("isValid(datum.held)")
    return marks.mark_tick(thickness=2.5, orient="horizontal", bandSize=22).encode(
        x=x,
        y="held:Q",
        stroke=alt.Stroke(
            "line:N",
            scale=alt.Scale(domain=list(hues), range=list(hues.values())),
            legend=alt.Legend(title="marks", orient="top", symbolType="stroke"),
        ),
        tooltip=tooltip,
    )


def phase_parts(row: Row, phase: Phase) -> list[tuple[str, int]]:
    """What was in use at the phase's peak, by role and kind where that is told, and the rest of what was allocated."""
    allocated = phase.allocated_bytes or 0
    told = told_parts(phase.at_peak, row.result.roles if row.result else ())
    rest = allocated - sum(held for _, held in told)
    return [*told, (LITTLE if told else WHOLE, rest)] if rest > 0 or not told else told


def _parts(
    row: Row, filled: Sequence[Sequence[tuple[str, int]]], when: Sequence[str], names: Sequence[str], unit: units.Unit
) -> dict[str, Any]:
    flat = [(at, names.index(name), held) for at, one in enumerate(filled) for name, held in one]
    return {
        "i": row.index,
        "names": when,
        "at": [at for at, _, _ in flat],
        "place": [place for _, place, _ in flat],
        "held": [rounded(held / units.SCALE[unit]) for _, _, held in flat],
    }


def _data(row: Row, phases: Sequence[Phase], unit: units.Unit) -> dict[str, Any]:
    scale = units.SCALE[unit]
    told: Counter[str] = Counter()
    when = []
    for phase in phases:
        name = phase.name if phase.step is None else f"{phase.step} {phase.name}"
        told[name] += 1
        when.append(name if told[name] == 1 else f"{name} ({told[name]})")
    held = {
        line: [
            None if (found := getattr(phase, f"{line}_bytes")) is None else rounded(found / scale) for phase in phases
        ]
        for line in LINES
    }
    foretold = [None if (found := _foretold(row, phase)) is None else rounded(found / scale) for phase in phases]
    took = [units.seconds(phase.seconds) for phase in phases]
    return {"i": row.index, "when": when, **held, "predicted": foretold, "took": took}


def _foretold(row: Row, phase: Phase) -> int | None:
    """The peak of allocated memory that was predicted for the phase in this step, else in the last step that was simulated."""
    parts = row.result.predicted_parts if row.result else None
    alike = [one for one in parts.phases if one.name == phase.name] if parts else []
    same = [one for one in alike if one.step == phase.step]
    return (same or alike)[-1].allocated_bytes if alike else None


def _budget(row: Row, phases: Sequence[Phase], unit: units.Unit) -> dict[str, Any]:
    """None where the cell stays so far below it that its bars would be small."""
    highest = max((getattr(phase, f"{line}_bytes") or 0 for phase in phases for line in LINES), default=0)
    told = row.budget_bytes if row.budget_bytes and row.budget_bytes <= 3 * highest else None
    budget = rounded(told / units.SCALE[unit]) if told else None
    return {"i": row.index, "budget": budget, "words": f"budget {units.size(told)}"}


VIEW = View("timeline", "One cell over its phases", "timeline.html", timeline)
