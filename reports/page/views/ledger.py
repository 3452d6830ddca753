"""The view of what filled the memory: by role and kind, and inside each phase."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from vrambench.reports import units
from vrambench.reports.page.charts import SHOWN, Chart, hues, legend, rounded, shapes, specification
from vrambench.reports.page.view import ChartsData, View
from vrambench.reports.report import Report
from vrambench.reports.rows import Row

LEDGER_CELLS = 40
"""Bars that one chart holds."""
# One hue per kind; the policy strongest, further roles lighter.
KIND_HUES = {
    "weights": ("#1f6fb0", "#5b9fd4", "#93c3e6", "#c0dcf0"),
    "gradients": ("#d55e00", "#e98e4e", "#f2b48a", "#f7d3bc"),
    "optimizer": ("#00805d", "#3aab8a", "#7fcbb3", "#b5e2d4"),
}
REST_HUES = {"activations and workspace": "#b7a6cf", "held by the allocator": "#9a9a9a", "outside PyTorch": "#c4c4c4"}
RANK = "shown[datum.i]"


def ledger(report: Report) -> ChartsData | None:
    """What filled the memory, per role and kind, and the peak inside each phase; of the first cells of the table that
    have them."""
    bars = [row for row in report.rows if row.result and row.result.roles]
    dots = [row for row in report.rows if row.result and phase_peaks(row)]
    made = [
        ledger_bars(bars, report.labels) if bars else None,
        phase_dots(dots, report.labels) if dots else None,
    ]
    drawn = tuple(chart for chart in made if chart)
    if not drawn:
        return None
    remarks = []
    if over := [row for row in bars if beyond_peak(row)]:
        remarks.append(
            f"In {units.plural(len(over), 'cell')} the roles hold more than the peak of allocated memory: part of "
            "them lies outside the device's allocator (on the host, or in managed memory). No rest is drawn there."
        )
    if max(len(bars), len(dots)) > LEDGER_CELLS:
        remarks.append(f"Drawn: the first {LEDGER_CELLS} cells, in the order and selection of the table.")
    text = (
        "Weights, gradients and optimizer state are counted by role; what is left up to the peak of allocated memory is "
        "activations and workspace. Peaks need not fall together, so the parts beyond allocated memory are differences between "
        "peaks."
    )
    return ChartsData(drawn, text, tuple(remarks))


def segments(row: Row) -> list[tuple[str, int]]:
    """What filled a cell's memory, in bytes: roles' parts, then the rest up to each further peak, as far as these are
    known."""
    assert row.result is not None
    memory = row.result.memory
    parts = [
        (f"{role} {kind}", getattr(held, f"{kind}_bytes"))
        for role, held in row.result.roles.items()
        for kind in KIND_HUES
    ]
    filled = sum(held for _, held in parts)
    peaks = (memory.allocated_bytes, memory.reserved_bytes, memory.device_bytes)
    for name, peak in zip(REST_HUES, peaks, strict=True):
        if peak is None or peak < filled:
            break
        parts.append((name, peak - filled))
        filled = peak
    return [(name, held) for name, held in parts if held > 0]


def beyond_peak(row: Row) -> bool:
    """Whether the roles hold more than the peak of what was allocated on the device."""
    if row.result is None or row.memory.allocated_bytes is None:
        return False
    held = sum(r.weights_bytes + r.gradients_bytes + r.optimizer_bytes for r in row.result.roles.values())
    return held > row.memory.allocated_bytes


def ledger_bars(rows: Sequence[Row], labels: Mapping[int, str]) -> Chart:
    """One stacked bar per cell: `segments`."""
    parts = {row.index: segments(row) for row in rows}
    unit = units.common_unit(sum(held for _, held in of) for of in parts.values())
    roles = list(dict.fromkeys(role for row in rows if row.result for role in row.result.roles))
    colours = {
        f"{role} {kind}": hues[min(place, len(hues) - 1)]
        for kind, hues in KIND_HUES.items()
        for place, role in enumerate(roles)
    } | REST_HUES
    present = {name for of in parts.values() for name, _ in of}
    order = [name for name in colours if name in present]
    data = [_bar(row, labels, parts[row.index], unit, order) for row in rows]
    chart = (
        alt.Chart(alt.NamedData(name="bars"))
        .transform_filter(SHOWN)
        .transform_flatten(["place", "held"])
        .transform_calculate(rank=RANK, part=_named(order))
        .mark_bar(height=12)
        .encode(
            x=alt.X("held:Q", title=unit, stack="zero"),
            y=_cells_axis(),
            color=alt.Color(
                "part:N",
                scale=alt.Scale(domain=order, range=[colours[name] for name in order]),
                legend=legend(None, order),
            ),
            order=alt.Order("place:Q"),
            tooltip=[alt.Tooltip("cell:N"), alt.Tooltip("part:N"), alt.Tooltip("held:Q", title=unit, format=",.4~r")],
        )
        .properties(width=620, height=alt.Step(18))
    )
    alt_text = (
        f"Stacked bars of {units.plural(len(rows), 'cell')}: bytes by role and kind, and the rest up to the peaks."
    )
    return _ranked("ledger", "Memory by role and kind", alt_text, chart, rows, {"bars": data})


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


def phase_dots(rows: Sequence[Row], labels: Mapping[int, str]) -> Chart:
    """One line of dots per cell: the peak inside each phase."""
    peaks = {row.index: phase_peaks(row) for row in rows}
    unit = units.common_unit(peak for of in peaks.values() for peak in of.values())
    order = list(dict.fromkeys(name for of in peaks.values() for name in of))
    data = [_bar(row, labels, list(peaks[row.index].items()), unit, order) for row in rows]
    chart = (
        alt.Chart(alt.NamedData(name="dots"))
        .transform_filter(SHOWN)
        .transform_flatten(["place", "held"])
        .transform_calculate(rank=RANK, part=_named(order))
        .mark_point(filled=True, size=60, opacity=0.9)
        .encode(
            x=alt.X("held:Q", title=unit, scale=alt.Scale(zero=True)),
            y=_cells_axis(),
            color=alt.Color("part:N", scale=hues(order), legend=legend("phase", order)),
            shape=alt.Shape("part:N", scale=shapes(order), legend=legend("phase", order)),
            tooltip=[
                alt.Tooltip("cell:N"),
                alt.Tooltip("part:N", title="phase"),
                alt.Tooltip("held:Q", title=f"peak, {unit}", format=",.4~r"),
            ],
        )
        .properties(width=620, height=alt.Step(18))
    )
    described = f"Dots of {units.plural(len(rows), 'cell')}: the peak inside each phase."
    return _ranked("phases", "Peak inside each phase", described, chart, rows, {"dots": data})


def _bar(
    row: Row, labels: Mapping[int, str], parts: Sequence[tuple[str, int]], unit: units.Unit, order: Sequence[str]
) -> dict[str, Any]:
    return {
        "i": row.index,
        "cell": labels[row.index],
        "place": [order.index(name) for name, _ in parts],
        "held": [rounded(held / units.SCALE[unit]) for _, held in parts],
    }


def _named(order: Sequence[str]) -> str:
    """The expression that turns a part's place back into its name."""
    return f"{json.dumps(list(order))}[datum.place]"


def _cells_axis() -> Any:
    axis = alt.Axis(labelLimit=460, ticks=False, domain=False)
    return alt.Y("cell:N", title=None, sort=alt.EncodingSortField("rank", op="min"), axis=axis)


def _ranked(id_: str, title: str, described: str, chart: Any, rows: Sequence[Row], datasets: dict[str, Any]) -> Chart:
    spec = specification(chart, rows[:LEDGER_CELLS], datasets)
    return Chart(id_, title, described, spec, tuple(row.index for row in rows), limit=LEDGER_CELLS)


VIEW = View("ledger", "What filled the memory", "charts.html", ledger)
