"""The view of what filled the memory: by role and kind, and inside each phase."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from vrambench.bench.results.forecast import KINDS
from vrambench.reports import units
from vrambench.reports.filled import COUNTED, beyond_peak, foretold, parts, prediction_error
from vrambench.reports.page.charts import SHOWN, Chart, Legend, category, hues, legend, rounded, shapes, specification
from vrambench.reports.page.kinds import colours
from vrambench.reports.page.view import ChartsData, View
from vrambench.reports.report import Report
from vrambench.reports.rows import Row

LEDGER_CELLS = 40
"""Bars that one chart holds."""
BUDGET_IN_SIGHT = 1.6
"""A budget so many times the highest bar is not drawn: it would leave the bars a corner."""


def ledger(report: Report) -> ChartsData | None:
    """What filled the memory, per role and kind, and the peak inside each phase; of the first cells of the table that
    have them, cells that ran out of memory too."""
    filled = {row.index: found for row in report.rows if (found := parts(row))}
    peaks = {row.index: of for row in report.rows if (of := phase_peaks(row))}
    bars = by_size(report, {index: sum(held for _, held in of) for index, of in filled.items()})
    dots = by_size(report, {index: max(of.values()) for index, of in peaks.items()})
    drawn = (
        *([ledger_bars(bars, report.labels, filled)] if bars else []),
        *([phase_dots(dots, report.labels, peaks)] if dots else []),
    )
    if not drawn:
        return None
    remarks = []
    if over := [row for row in bars if beyond_peak(row)]:
        remarks.append(
            f"In {units.plural(len(over), 'cell')} the roles hold more than the peak of allocated memory: part of "
            "them lies outside the device's allocator (on the host, or in managed memory). No rest is drawn there."
        )
    if max(len(bars), len(dots)) > LEDGER_CELLS:
        remarks.append(
            f"Drawn: {LEDGER_CELLS} of the cells that the filters leave, the largest first, or as the table is sorted."
        )
    if kinds := _kinds(bars):
        remarks.append(f"{kinds}.")
    return ChartsData(drawn, _words(bars), tuple(remarks))


def _words(bars: Sequence[Row]) -> str:
    words = ["Where peaks do not fall together, what is beyond allocated memory is the difference between peaks."]
    if any(row.result and not row.result.held and row.result.roles for row in bars):
        words.insert(
            0,
            "Of a cell that was measured and not recorded (run --record), weights, gradients and optimizer state are counted by "
            "role; the rest of what was allocated is activations and workspace.",
        )
    if any(row.result and row.result.held for row in bars):
        words.insert(0, "Of a predicted or recorded cell, what is live at the peak is told by kind.")
    if any(prediction_error(row) for row in bars):
        words.append("A mark on a bar is what was predicted, with the prediction's error.")
    if any(foretold(row) for row in bars):
        words.append("The thin bar below it is the prediction by role and kind.")
    return " ".join(words)


def _kinds(bars: Sequence[Row]) -> str:
    there = {held.kind for row in bars if row.result for held in row.result.held}
    return "; ".join(f"{kind}: {words}" for kind, words in KINDS.items() if kind in there and kind not in COUNTED)


def by_size(report: Report, sizes: Mapping[int, int]) -> list[Row]:
    """Rows that have one, the largest first."""
    return sorted((report.rows[index] for index in sizes), key=lambda row: (-sizes[row.index], row.index))


def ledger_bars(rows: Sequence[Row], labels: Mapping[int, str], filled: Mapping[int, list[tuple[str, int]]]) -> Chart:
    """One stacked bar per cell: its `parts`, in bytes by row index; the budget as a line, and what was predicted as a mark."""
    unit = units.common_unit(sum(held for _, held in of) for of in filled.values())
    told = {row.index: of for row in rows if (of := foretold(row))}
    hue = colours(rows, dict.fromkeys(name for of in (*filled.values(), *told.values()) for name, _ in of))
    order = list(hue)
    names = list(map(category, order))
    data = [_bar(row, labels, filled[row.index], unit, order) for row in rows]
    thin = [_bar(row, labels, told[row.index], unit, order) for row in rows if row.index in told]
    ends = [_end(row, labels, sum(held for _, held in filled[row.index]), unit) for row in rows]
    y = _cells_axis()
    x = alt.X("held:Q", title=unit, stack="zero")
    colour = alt.Color(
        "part:N", scale=alt.Scale(domain=names, range=list(hue.values())), legend=legend(None, names, "legend_part")
    )
    tooltip = [alt.Tooltip("cell:N"), alt.Tooltip("part:N"), alt.Tooltip("held:Q", title=unit, format=",.4~r")]
    of_ends = alt.Chart(alt.NamedData(name="ends")).transform_filter(SHOWN).transform_calculate(rank=RANK)
    layers = [
        _parts_of("bars", names)
        .mark_bar(height=12)
        .encode(x=x, y=y, color=colour, order=alt.Order("place:Q"), tooltip=tooltip),
        of_ends.mark_text(align="left", dx=5, fontSize=10).encode(x="top:Q", y=y, text="words:N"),
    ]
    if any("told" in end for end in ends):
        marks = of_ends.transform_filter("isValid(datum.told)").mark_tick(color="#111111", thickness=2, size=16)
        layers.append(marks.encode(x="told:Q", y=y, tooltip=[alt.Tooltip("cell:N"), alt.Tooltip("words:N")]))
    highest = max(end["top"] for end in ends)
    if thin:
        bars = _parts_of("foretold", names).mark_bar(height=4, yOffset=9)
        tips = [tooltip[0], alt.Tooltip("part:N", title="predicted"), tooltip[2]]
        layers.append(bars.encode(x=x, y=y, color=colour, order=alt.Order("place:Q"), tooltip=tips))
    if line := _budget_line(rows, unit, highest):
        layers.append(line)
    described = (
        f"Stacked bars of {units.plural(len(rows), 'cell')}: bytes by role and kind, and the rest up to the peaks."
    )
    legends = {
        "legend_part": Legend.of_names(
            names,
            {row.index: [category(name) for name, _ in (*filled[row.index], *told.get(row.index, ()))] for row in rows},
        )
    }
    chart = alt.layer(*layers).properties(width=620, height=alt.Step(22 if thin else 18))
    datasets = {"bars": data, "ends": ends, **({"foretold": thin} if thin else {})}
    title = "Memory by role and kind" + ("; dotted line: the budget" if line else "")
    return _ranked("ledger", title, described, chart, rows, datasets, legends)


def _parts_of(dataset: str, order: Sequence[str]) -> Any:
    """The bars' parts, one by one."""
    return (
        alt.Chart(alt.NamedData(name=dataset))
        .transform_filter(SHOWN)
        .transform_flatten(["place", "held"])
        .transform_calculate(rank=RANK, part=_named(order))
    )


def _end(row: Row, labels: Mapping[int, str], top: int, unit: units.Unit) -> dict[str, Any]:
    """What stands at a bar's end: its size, how the cell ended unless well, and by how much the prediction is off."""
    scale = units.SCALE[unit]
    error = prediction_error(row)
    words = [units.size(top), *([] if row.status == "ok" else [row.status])]
    end: dict[str, Any] = {"i": row.index, "cell": labels[row.index], "top": rounded(top / scale)}
    if error:
        told, share = error
        end["told"] = rounded(told / scale)
        words.append(f"predicted {units.percent(share if abs(share) >= 0.0005 else 0.0)}")
    return end | {"words": ", ".join(words)}


def _budget_line(rows: Sequence[Row], unit: units.Unit, highest: float) -> Any:
    budgets = {row.budget_bytes for row in rows}
    budget = next(iter(budgets))
    if len(budgets) > 1 or budget is None or budget / units.SCALE[unit] > BUDGET_IN_SIGHT * highest:
        return None
    data = alt.Data(values=[{"budget": rounded(budget / units.SCALE[unit]), "words": f"budget {units.size(budget)}"}])
    rule = alt.Chart(data).mark_rule(color="#d55e00", strokeDash=[3, 2], strokeWidth=1.5)
    return rule.encode(x="budget:Q", tooltip=[alt.Tooltip("words:N", title="line")])


def phase_peaks(row: Row) -> dict[str, int]:
    """The highest peak inside each phase over all steps, by phase: of allocated memory, or of what else is known."""
    phases = row.result.phases if row.result else ()
    for key in ("allocated_bytes", "reserved_bytes", "device_bytes"):
        known = [(phase.name, getattr(phase, key)) for phase in phases if getattr(phase, key) is not None]
        if known:
            peaks: dict[str, int] = {}
            for name, peak in known:
                peaks[name] = max(peak, peaks.get(name, 0))
            return peaks
    return {}


def phase_dots(rows: Sequence[Row], labels: Mapping[int, str], peaks: Mapping[int, Mapping[str, int]]) -> Chart:
    """One line of dots per cell: the peak inside each phase."""
    unit = units.common_unit(peak for row in rows for peak in peaks[row.index].values())
    order = list(dict.fromkeys(name for row in rows for name in peaks[row.index]))
    data = [_bar(row, labels, list(peaks[row.index].items()), unit, order) for row in rows]
    chart = (
        _parts_of("dots", order)
        .mark_point(filled=True, size=60, opacity=0.9)
        .encode(
            x=alt.X("held:Q", title=unit, scale=alt.Scale(zero=True)),
            y=_cells_axis(),
            color=alt.Color("part:N", scale=hues(order), legend=legend("phase", order, "legend_phase")),
            shape=alt.Shape("part:N", scale=shapes(order), legend=legend("phase", order, "legend_phase")),
            tooltip=[
                alt.Tooltip("cell:N"),
                alt.Tooltip("part:N", title="phase"),
                alt.Tooltip("held:Q", title=f"peak, {unit}", format=",.4~r"),
            ],
        )
        .properties(width=620, height=alt.Step(18))
    )
    described = f"Dots of {units.plural(len(rows), 'cell')}: the peak inside each phase."
    legends = {"legend_phase": Legend.of_names(order, {row.index: peaks[row.index] for row in rows})}
    return _ranked(
        "phases", "Peak of allocated memory inside each phase", described, chart, rows, {"dots": data}, legends
    )


RANK = "shown[datum.i]"


def _bar(
    row: Row, labels: Mapping[int, str], held: Sequence[tuple[str, int]], unit: units.Unit, order: Sequence[str]
) -> dict[str, Any]:
    return {
        "i": row.index,
        "cell": labels[row.index],
        "place": [order.index(name) for name, _ in held],
        "held": [rounded(nbytes / units.SCALE[unit]) for _, nbytes in held],
    }


def _named(order: Sequence[str]) -> str:
    """The expression that turns a part's place back into its name."""
    return f"{json.dumps(list(order))}[datum.place]"


def _cells_axis() -> Any:
    axis = alt.Axis(labelLimit=alt.ExprRef(expr="room"), ticks=False, domain=False)
    return alt.Y("cell:N", title=None, sort=alt.EncodingSortField("rank", op="min"), axis=axis)


def _ranked(
    id_: str,
    title: str,
    described: str,
    chart: Any,
    rows: Sequence[Row],
    datasets: dict[str, Any],
    legends: dict[str, Legend],
) -> Chart:
    spec = specification(chart, rows[:LEDGER_CELLS], datasets, legends)
    indices = tuple(row.index for row in rows)
    return Chart(id_, title, described, spec, indices, limit=LEDGER_CELLS, legends=legends, labelled=True)


VIEW = View("ledger", "What filled the memory", "charts.html", ledger)
