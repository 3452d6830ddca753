"""What becomes of claims: predicted for a GPU without one, and predicted or measured by runs that hold their cells.

    ran = Ran.of("first", folder.info, folder.results())
    for one in answer(load_claims(path), [ran], predict_all):
        one.claim.id, one.predicted, one.measured, one.verdicts

A claim is answered by one run at a time, which must hold all its cells: of a run on a GPU, or of one that was predicted, those that
the claim names, of a run on a CPU those of its part `cpu`, which are other, smaller jobs and are marked so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vrambench.bench.claims.cells import Cells, cells_of, on_cpu
from vrambench.bench.claims.claimed import Verdict, judge, told
from vrambench.bench.claims.file import Claim, Claims, Layers
from vrambench.bench.claims.formula import Name
from vrambench.bench.claims.values import Values, foretold, of_forecast, of_results
from vrambench.bench.results import PREDICTED
from vrambench.bench.results.forecast import Outcome
from vrambench.bench.results.records import Result
from vrambench.methods.cell import Cell, from_flat
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.sizes import parse_size
from vrambench.methods.workload import AXIS_NAMES

Predict = Callable[[Sequence[Cell]], Mapping[str, Outcome]]
ON_CPU = "the CPU"
NOT_MEASURED = "not measured here"
TOLD = (*AXIS_NAMES, "model", "budget")
"""What a cell says as it is written, in a claim as in a result, once a size is bytes."""


@dataclass(frozen=True)
class Ran:
    """A run, as claims see it. `where`: on what it ran; `told`: what its cells say of TOLD; `capacity_bytes`: what its GPU
    offers."""

    name: str
    where: str
    on_cpu: bool
    results: tuple[Result, ...]
    told: frozenset[tuple[Any, ...]]
    capacity_bytes: int | None = None
    _today: dict[str, str | None] = field(default_factory=dict, compare=False, repr=False)
    _by_axes: dict[tuple[tuple[str, Any], ...], list[Result]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, name: str, info: Mapping[str, Any], results: Iterable[Result]) -> Ran:
        """`info`: run.json's content."""
        gpu = (info.get("environment") or {}).get("gpu") or {}
        device = str(info.get("device") or "cpu")
        cpu, kept = device.startswith("cpu"), tuple(results)
        return cls(
            name=name,
            where=ON_CPU if cpu else PREDICTED if device == PREDICTED else str(gpu.get("name") or device),
            on_cpu=cpu,
            results=kept,
            told=frozenset(tuple(result.cell.get(name) for name in TOLD) for result in kept),
            capacity_bytes=gpu.get("usable_bytes") or gpu.get("total_bytes"),
        )

    def result(self, cell: Cell) -> Result | None:
        """What the cell gave. A file's id is that of the version which wrote it, so it is made anew."""
        wanted = (*cell.axes.items(), ("model", cell.workload.model))
        if not self._by_axes:
            for one in self.results:
                said = tuple((name, one.cell.get(name)) for name, _ in wanted)
                self._by_axes.setdefault(said, []).append(one)
        return next((one for one in self._by_axes.get(wanted, ()) if self._id_today(one) == cell.id), None)

    def _id_today(self, result: Result) -> str | None:
        """The id of the result's cell; None where this version does not know what it says."""
        if result.id not in self._today:
            try:
                self._today[result.id] = from_flat(result.cell).id
            except (ConfigurationError, KeyError):
                self._today[result.id] = None
        return self._today[result.id]


@dataclass(frozen=True)
class Found:
    """What a formula came to. `where`: `predicted`, or on what it was measured; `run` the run's name. `value` and `verdict` are
    None where it came to nothing, and `reason` says why. `device_bytes` (without a limit), `budget_bytes` and `tight` where
    one cell is asked whether it fits."""

    where: str
    value: float | bool | None = None
    verdict: Verdict | None = None
    reason: str | None = None
    run: str | None = None
    device_bytes: int | None = None
    budget_bytes: int | None = None
    tight: bool = False


@dataclass(frozen=True)
class Answer:
    """A claim with what was found. `cells`: those on a GPU, by the formula's names."""

    claim: Claim
    cells: Cells
    predicted: Found | None = None
    measured: tuple[Found, ...] = ()

    @property
    def found(self) -> tuple[Found, ...]:
        return (*((self.predicted,) if self.predicted else ()), *self.measured)

    @property
    def verdicts(self) -> dict[Verdict, list[str]]:
        """Each verdict that was come to, and where. One means that all agree."""
        verdicts: dict[Verdict, list[str]] = {}
        for one in self.found:
            if one.verdict and one.where not in verdicts.setdefault(one.verdict, []):
                verdicts[one.verdict].append(one.where)
        return verdicts

    @property
    def reason(self) -> str | None:
        """Why there is no verdict, or why one that was looked for is lacking."""
        if self.claim.not_here:
            return self.claim.not_here
        reasons = list(dict.fromkeys(one.reason for one in self.found if one.reason and not one.verdict))
        if reasons:
            return "; ".join(reasons)
        return None if self.verdicts else _how(self.claim)

    def document(self) -> dict[str, Any]:
        """As `claims --json` prints it; numbers as the formula gives them."""
        claim = self.claim
        cells = {name: {"id": cell.id, "cell": cell.flat()} for name, (cell, *_) in self.cells.items()}
        return {
            "id": claim.id,
            "claim": claim.claim,
            "source": claim.source,
            "claimed": claim.claimed.text,
            "claimed_value": claim.claimed.value,
            "unit": claim.claimed.unit,
            "formula": claim.formula.text if claim.formula else None,
            "assumed": claim.assumed,
            "note": claim.note,
            "predicted": _row(self.predicted, claim) if self.predicted else None,
            "measured": [_row(one, claim) for one in self.measured],
            "verdict": next(iter(self.verdicts)) if len(self.verdicts) == 1 else None,
            "verdicts": self.verdicts,
            "reason": self.reason,
            "cells": cells,
        }


def answer(claims: Claims, runs: Sequence[Ran] = (), predict: Predict | None = None) -> tuple[Answer, ...]:
    """What becomes of each claim. Without `predict`, what was predicted is what the runs tell of that, and cells of claims that no
    run can hold are not looked at. Raises ConfigurationError where a claim's cells cannot be."""
    cells: dict[str, Cells] = {}
    for claim in claims.claims.values():
        asked = predict is not None or any(not ran.on_cpu and _may_hold(ran, claim.cells) for ran in runs)
        cells[claim.id] = cells_of(claim, claim.cells) if claim.cells and asked else {}
    outcomes = predict(_to_predict(claims, cells)) if predict else {}
    return tuple(
        Answer(
            claim,
            cells[claim.id],
            (_predicted(claim, cells[claim.id], outcomes) if predict else _foretold(claim, cells[claim.id], runs))
            if _predictable(claim)
            else None,
            tuple(
                found for ran in runs if ran.where != PREDICTED and (found := _measured(claim, cells[claim.id], ran))
            ),
        )
        for claim in claims.claims.values()
    )


def answered(claims: Claims, runs: Sequence[Ran]) -> tuple[Answer, ...]:
    """The claims that runs answer, by what they measured or predicted."""
    return tuple(one for one in answer(claims, runs) if one.verdicts)


def _predictable(claim: Claim) -> bool:
    return claim.formula is not None and claim.formula.predictable


def _to_predict(claims: Claims, cells: Mapping[str, Cells]) -> list[Cell]:
    wanted = [one for claim in claims.claims.values() if _predictable(claim) for (one, *_) in cells[claim.id].values()]
    return [cell for cell in wanted if _refused(cell) is None]


def _refused(cell: Cell) -> str | None:
    """The rule that forbids the cell on CUDA, and why."""
    from vrambench.bench.plan.validity import check

    found = check(cell, "cuda")
    return next((f"the rule {one.rule} forbids it: {one.reason}" for one in found if one.kind == "reject"), None)


def _predicted(claim: Claim, cells: Cells, outcomes: Mapping[str, Outcome]) -> Found:
    values: dict[str, Values] = {}
    reasons: dict[str, str] = {}
    for name, (cell, *_) in cells.items():
        outcome = outcomes.get(cell.id) or Outcome(reason=_refused(cell) or "no prediction was made")
        if outcome.forecast is None:
            reasons[name] = outcome.reason or "it cannot be predicted"
            continue
        values[name] = of_forecast(outcome.forecast)
        if outcome.forecast.verdict == "unsure" and outcome.forecast.unmodelled:
            reasons[name] = f"not sure whether it fits: {outcome.forecast.unmodelled[0].reason}"
    found = _found(claim, values, reasons, PREDICTED)
    asked = claim.formula.fits_of if claim.formula else None
    forecast = outcomes[cells[asked][0].id].forecast if asked and asked in values else None
    if forecast is None:
        return found
    device, budget = forecast.unlimited_bytes, forecast.budget_bytes
    return replace(found, device_bytes=device, budget_bytes=budget, tight=forecast.verdict == "tight")


def _foretold(claim: Claim, cells: Cells, runs: Sequence[Ran]) -> Found | None:
    """What the first run gives that says by its predictions; None where none has predicted all of the claim's cells."""
    for ran in runs:
        there = {name: ran.result(cell) for name, (cell, *_) in cells.items()} if not ran.on_cpu else {}
        values = {name: told for name, one in there.items() if one and (told := foretold(one))}
        if not there or len(values) < len(there):
            continue
        found = _found(claim, values, dict.fromkeys(there, "not sure whether it fits"), PREDICTED, ran.name)
        one = there.get(claim.formula.fits_of or "") if claim.formula else None
        if one is None or one.predicted is None or one.predicted_verdict is None:
            return found
        device, verdict = one.predicted.device_bytes, one.predicted_verdict
        return replace(found, device_bytes=device, budget_bytes=verdict.budget_bytes, tight=verdict.verdict == "tight")
    return None


def _measured(claim: Claim, cells: Cells, ran: Ran) -> Found | None:
    """What a run gave; None where it has none of the claim's cells."""
    if claim.formula is None:
        return None
    where = ran.where
    if ran.on_cpu:
        if not _may_hold(ran, claim.on_cpu or {}):
            return None
        cells = on_cpu(claim)
        models = dict.fromkeys(cell.workload.model for several in cells.values() for cell in several)
        where = f"{where}, at {' and '.join(models)}"
    there = {name: [held for cell in several if (held := ran.result(cell))] for name, several in cells.items()}
    if not any(there.values()):
        return None
    values: dict[str, Values] = {}
    reasons: dict[str, str] = {}
    for name, results in there.items():
        if len(results) < len(cells[name]):
            reasons[name] = (
                f"the run {ran.name} has {len(results)} of its {len(cells[name])} cells"
                if results
                else f"the run {ran.name} lacks it"
            )
            continue
        values[name] = of_results(results, ran.capacity_bytes)
        ended = next((one for one in results if one.status != "ok"), None)
        if ended:
            reasons[name] = f"it ended as {ended.status}" + (f": {ended.reason}" if ended.reason else "")
    return _found(claim, values, reasons, where, ran.name)


def _found(
    claim: Claim, values: Mapping[str, Values], reasons: Mapping[str, str], where: str, run: str | None = None
) -> Found:
    assert claim.formula is not None
    given: dict[Name, float | bool] = {}
    for name in sorted(claim.formula.names):
        value = values.get(name[0], {}).get(name[1:])
        if value is None:
            why = reasons.get(name[0], f"{'.'.join(name[1:])} is not known")
            return Found(where, reason=f"{name[0]}: {why} ({where})", run=run)
        given[name] = value
    try:
        value = claim.formula.value(given)
    except ZeroDivisionError:
        return Found(where, reason=f"the formula divides by zero ({where})", run=run)
    return Found(where, value, judge(value, claim.claimed), run=run)


def _how(claim: Claim) -> str:
    """How a claim that nothing answered yet can be."""
    if _predictable(claim):
        return "nothing was predicted, and no run that was named has its cells"
    cpu = f", or on a CPU with: vrambench run --device cpu --claims {claim.id}" if claim.on_cpu else ""
    return f"no prediction tells it; a run on a GPU does: vrambench run --claims {claim.id}{cpu}"


def _may_hold(ran: Ran, layers: Mapping[str, Layers]) -> bool:
    """Whether the run has a cell that says of TOLD what one of these says: told without making the cells, which takes torch."""
    return any(_alike(told, wanted) for wanted in map(_told, layers.values()) for told in ran.told)


def _told(layers: Layers) -> tuple[Any, ...]:
    """What is said of TOLD; None where nothing is, or what making the cell will complain about."""
    said = {name: setting.value for name, setting in layers.all.items()}
    try:
        said["budget"] = parse_size(said["budget"])
    except (KeyError, ValueError):
        said["budget"] = None
    return tuple(said.get(name) for name in TOLD)


def _alike(told: Sequence[Any], wanted: Sequence[Any]) -> bool:
    return all(None in (one, other) or one == other for one, other in zip(told, wanted, strict=True))


def _row(found: Found, claim: Claim) -> dict[str, Any]:
    return {
        "where": found.where,
        "run": found.run,
        "value": found.value,
        "told": told(found.value, claim.claimed) or None,
        "verdict": found.verdict,
        "reason": found.reason,
    }
