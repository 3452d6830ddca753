"""How far predictions are from what was measured, by others and by `make gpu`: writes docs/accuracy.md beside this file, and what
others' figures say of each kind of job into results/published/accuracy.json, for the error bands (bench/predict/band.py).

    .venv/bin/python docs/accuracy.py

Its rows are those of published.py, and the results under results/ (measured.py). The page holds no times of its own, so it
changes only where a prediction, a row or a result does.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from measured import sections
from published import LEFT, ROWS, VERDICT_SETTINGS, VERDICTS, Row, VerdictRow

from vrambench.bench.predict.band import PUBLISHED, Kind, bands, error_band, kind_of
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.cards import CARDS, Card
from vrambench.methods.cell import Cell

PAGE = Path(__file__).with_name("accuracy.md")
RESULTS = Path(__file__).parents[1] / "results"
COMPARISON = RESULTS / PUBLISHED / "accuracy.json"
COMMAND = ".venv/bin/python docs/accuracy.py"
UNITS = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "B": 1}
KEYS = ("allocated", "active", "reserved", "device")
Predict = Callable[[Cell, Card], Forecast]


@dataclass(frozen=True)
class Compared:
    """A row with its prediction. `predicted_bytes`: of the row's key, and what its versions held. `kind`: that of its job."""

    row: Row
    forecast: Forecast
    predicted_bytes: int = field(init=False)
    kind: Kind = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", kind_of(self.row.job.cell()))
        phases = [one for one in self.forecast.phases if one.name == self.row.phase]
        found = getattr(phases[0] if phases else self.forecast.memory, f"{self.row.key}_bytes")
        assert found is not None
        object.__setattr__(self, "predicted_bytes", found + self.row.held_bytes)

    def error(self, unit: str | None = None) -> float:
        """Signed, as a share of the published figure: positive where the prediction is higher."""
        return self.predicted_bytes / (self.row.published * UNITS[unit or self.row.unit]) - 1


def render(predict: Predict, results: Path = RESULTS) -> str:
    """The page, with predictions by `predict` for a cell on a card, and what was measured in `results`."""
    ours = sections(results)
    compared = [Compared(row, predict(row.job.cell(), CARDS[row.job.card])) for row in ROWS]
    verdicts = [(row, predict(row.job.cell(), CARDS[row.job.card])) for row in VERDICTS]
    alike = [one for one in compared if one.row.alike]
    other = [one for one in compared if not one.row.alike]
    lines = [*_head(alike, other, verdicts, [line[3:] for line in ours if line.startswith("## ")]), *ours]
    lines += ["## Error bands by kind of job", "", *_bands(results), "", "## Re-created", "", *_by_kind(alike)]
    lines += ["## Re-created in part", ""]
    lines += ["The source used techniques that no value of our axes has, so the error is not the predictor's.", ""]
    lines += [*_table(other), "", "## Verdicts", "", VERDICT_SETTINGS, "", *_verdicts(verdicts), ""]
    lines += [
        "What others claim of one method against another is in [claims.md](claims.md).",
        "",
        "## Not re-created",
        "",
    ]
    lines += [f"- {left.what}: {left.reason}." for left in LEFT]
    lines += ["", "## Row by row", "", *_details(compared)]
    return "\n".join(lines).rstrip() + "\n"


def _head(
    alike: list[Compared], other: list[Compared], verdicts: list[tuple[VerdictRow, Forecast]], measured: list[str]
) -> list[str]:
    errors = [abs(one.error()) for one in alike]
    worst = max(alike, key=lambda one: abs(one.error()))
    stated = [abs(one.error()) for one in alike if one.row.stated]
    unsure = sum(forecast.verdict == "unsure" for _, forecast in verdicts)
    right = sum(forecast.fits == row.fits for row, forecast in verdicts if forecast.verdict != "unsure")
    known = [one for one in alike if one.row.known]
    worst_known = max(known, key=lambda one: abs(one.error()))
    ours = "**No GPU measurement of ours is included yet.**"
    if measured:
        ours = f"Our own measurements come first: {', '.join(measured)}."
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
    return [
        "# Predictions against published figures", "",
        f"Written by `{COMMAND}` (`make accuracy`) with {packages}. Every prediction was made without a GPU; "
        f"nothing is fitted. "
        "The published figures are others' measurements with other versions, and often with settings that are not "
        "published: what "
        f"had to be assumed is said row by row. {ours}", "",
        f"- {len(alike)} figures re-created: median absolute error "
        f"{_percent(statistics.median(errors), sign=False)}, worst "
        f"{_percent(worst.error())} (`{worst.row.id}`). The {len(stated)} of them whose source names the counter: "
        f"median "
        f"{_percent(statistics.median(stated), sign=False)}, worst {_percent(max(stated), sign=False)}.",
        f"- {len(known)} figures of jobs that are known in full: median "
        f"{_percent(statistics.median(abs(one.error()) for one in known), sign=False, places=2)}, worst "
        f"{_percent(worst_known.error(), places=2)} (`{worst_known.row.id}`: {worst_known.row.why})",
        f"- {len(other)} more in part only; {right} of {len(verdicts)} published verdicts agree, {unsure} are unsure.", "",
        "Errors are signed: + where the prediction is higher. *Counter* is the line of our ledger that is compared "
        "(allocated <= active "
        "<= reserved <= device); a question mark where the source does not name its own. GB are 10^9 bytes, GiB "
        "2^30; for sources that "
        "write GB the last column reads it as GiB.", "",
    ]  # fmt: skip


def _table(compared: list[Compared]) -> list[str]:
    lines = ["| row | what | published | counter | predicted | error | if GiB |", "|---|---|--:|---|--:|--:|--:|"]
    for one in compared:
        row = one.row
        unit = "GiB" if row.unit in ("B", "MiB") else row.unit
        published = _size(row.published * UNITS[row.unit], unit)
        counter = row.key + ("" if row.stated else "?")
        other = _percent(one.error("GiB")) if row.unit == "GB" else ""
        predicted = _size(one.predicted_bytes, unit)
        lines.append(
            f"| {row.id} | {row.what} | {published} | {counter} | {predicted} | {_percent(one.error())} | {other} |"
        )
    return lines


def _by_kind(compared: list[Compared]) -> list[str]:
    """A table for each kind of job, in the rows' order."""
    kinds = dict.fromkeys(one.kind for one in compared)
    return [
        line
        for kind in kinds
        for line in (f"### {kind}", "", *_table([one for one in compared if one.kind == kind]), "")
    ]


def _bands(results: Path) -> list[str]:
    """For each kind, how many of its jobs were compared, how far they were from their predictions, and the band of the next."""
    lines = [
        "By how much more than predicted a job of each kind may take. A kind that is not here has the widest of all: "
        f"{_percent(error_band(None, results).share, sign=False)}. Errors are signed as everywhere here.", "",
        "| kind | compared | by | errors | band |", "|---|--:|---|---|--:|",
    ]  # fmt: skip
    for kind, found in bands(results).items():
        errors = [1 / (1 + one.excess) - 1 for one in found]
        spread = _percent(errors[0]) if len(errors) == 1 else f"{_percent(min(errors))} to {_percent(max(errors))}"
        by = ", ".join(dict.fromkeys(one.source for one in found))
        lines.append(
            f"| {kind} | {len(found)} | {by} | {spread} | {_percent(error_band(kind, results).share, sign=False)} |"
        )
    return lines


def comparison(predict: Predict) -> dict[str, object]:
    """Others' figures as tests/gpu/compare.py writes our own: only those whose job and counter are known."""
    rows: list[dict[str, object]] = []
    for row in ROWS:
        if row.alike and row.stated:
            one = Compared(row, predict(row.job.cell(), CARDS[row.job.card]))
            measured = round(row.published * UNITS[row.unit])
            sizes = {"predicted": {row.key: one.predicted_bytes}, "measured": {row.key: measured}}
            rows.append({"id": row.id, "kind": list(one.kind), "status": "ok", **sizes})
    for verdict in VERDICTS:
        forecast = predict(verdict.job.cell(), CARDS[verdict.job.card])
        rows.append({
            "id": verdict.id, "kind": list(kind_of(verdict.job.cell())), "status": "ok" if verdict.fits else "oom",
            "predicted": {"device": forecast.memory.device_bytes}, "measured": {}, "budget": forecast.budget_bytes,
        })  # fmt: skip
    return {"rows": rows}


def _verdicts(rows: list[tuple[VerdictRow, Forecast]]) -> list[str]:
    lines = ["| row | what | published | predicted | device | budget | agrees |", "|---|---|---|---|--:|--:|---|"]
    for row, forecast in rows:
        said = "fits" if row.fits else "does not fit"
        agrees = "unsure" if forecast.verdict == "unsure" else "yes" if forecast.fits == row.fits else "**no**"
        sizes = f"{_size(forecast.memory.device_bytes or 0)} | {_size(forecast.budget_bytes)}"
        lines.append(f"| {row.id} | {row.what} | {said} | {forecast.verdict} | {sizes} | {agrees} |")
    missed = [row for row, forecast in rows if forecast.fits != row.fits]
    lines += ["", *(f"- {row.id}: {row.why or 'not explained.'}" for row in missed)]
    unsure = [(row, one.reason) for row, told in rows if told.verdict == "unsure" for one in told.unmodelled]
    return [*lines, *(f"- {row.id}: unsure, {reason}." for row, reason in unsure)]


def _details(compared: list[Compared]) -> list[str]:
    lines = []
    for one in compared:
        row, forecast = one.row, one.forecast
        ledger = ", ".join(f"{key} {_size(getattr(forecast.memory, key + '_bytes') or 0)}" for key in KEYS)
        ledger += f", managed on top {_size(forecast.memory.managed_bytes)}" if forecast.memory.managed_bytes else ""
        peaks: dict[str, int] = {}
        for phase in forecast.phases:
            peaks[phase.name] = max(peaks.get(phase.name, 0), phase.allocated_bytes)
        large = [share for share in forecast.at_peak if share.nbytes >= 2**25]
        held = ", ".join(f"{share.kind.replace('_', ' ')} {_size(share.nbytes)}" for share in large)
        lines += [
            f"### {row.id}", "",
            f"- Source: {row.source}. {row.settings.rstrip('.')}.",
            f"- Cell: {row.job.axes}, on {row.job.card}. Predicted: {ledger}.",
            f"- Allocated, highest by phase: {', '.join(f'{name} {_size(size)}' for name, size in peaks.items())}. "
            f"At the peak "
            f"({forecast.limiting_phase}): {held}.",
            f"- Error {_percent(one.error())}: {row.why.strip()}", "",
        ]  # fmt: skip
    return lines


def _size(nbytes: float, unit: str = "GiB") -> str:
    return f"{nbytes / UNITS[unit]:.2f} {unit}"


def _percent(share: float, *, sign: bool = True, places: int = 1) -> str:
    return f"{100 * share:{'+' if sign else ''}.{places}f} %"


def main() -> None:
    predictor, made = Predictor(), dict[tuple[str, str], Forecast]()

    def predict(cell: Cell, card: Card) -> Forecast:
        if (cell.id, card.name) not in made:
            made[cell.id, card.name] = predictor.forecast(cell, card.usable_bytes, card)
        return made[cell.id, card.name]

    COMPARISON.write_text(json.dumps(comparison(predict), indent=1) + "\n")
    error_band.cache_clear()
    for row in VERDICTS:  # they rest on the bands
        made.pop((row.job.cell().id, row.job.card), None)
    PAGE.write_text(render(predict))


if __name__ == "__main__":
    main()
