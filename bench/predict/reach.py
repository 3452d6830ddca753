"""How far one field goes: the largest value that is not predicted out of memory.

ask = lambda cell: predictor.forecast(cell, budget, card)
largest(cell, "batch_size", ask)        Maximum: the value, what stops the next one, and every value that was tried
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vrambench.bench.plan.validity import Finding, check
from vrambench.bench.predict.answer import Maximum, Probe
from vrambench.bench.predict.changes import changed
from vrambench.bench.predict.searchable import NOT_SEARCHED, check_searchable
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.lengths import parse_lengths
from vrambench.methods.workload import PARTS

Ask = Callable[[Cell], Forecast]

FARTHEST = {"gradient_accumulation_steps": 64}
"""How far a field is searched whose own bytes stop growing while predicting takes longer and longer. The others end at a rule, at
the budget or at the field's own bound."""


def integer_fields(cell: Cell) -> tuple[str, ...]:
    """The workload's fields that are whole numbers in this cell and that its memory depends on."""
    without = {*NOT_SEARCHED, *(() if cell.workload.lengths is None else PARTS)}
    return tuple(
        name
        for name, value in cell.workload.model_dump(exclude={"options", "budget"}).items()
        if isinstance(value, int) and not isinstance(value, bool) and name not in without
    )


def check_searched(cell: Cell, field: str) -> None:
    """UnknownValue or ConfigurationError where `field` is none whose largest value can be asked for."""
    check_searchable(field, integer_fields(cell))


def rejection(cell: Cell, *, bf16: bool = True) -> Finding | None:
    """The rule that forbids `cell` on CUDA."""
    return next((finding for finding in check(cell, "cuda", bf16=bf16) if finding.kind == "reject"), None)


def largest(
    cell: Cell,
    field: str,
    ask: Ask,
    *,
    bf16: bool = True,
    said: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Maximum:
    """The largest value of `field` whose verdict is not "does not fit": doubled from the cell's own, then bisected.

    Where there is a rollout, `batch_size` and `gradient_accumulation_steps` take `rollout_batch` along, so that it stays as
    many optimizer steps; `rollout_batch` and `group_size` themselves go by whole ones. That memory grows with the field is taken
    for granted. `said`: what was said of the workload, for lengths that the cell's own max_length cuts.
    Raises UnknownValue where `field` is none of `integer_fields(cell)`.
    """
    check_searched(cell, field)
    longest, unit = _longest(cell, said or {}) if field == "max_length" else None, _unit(cell, field)
    probes, stops = dict[int, Probe](), dict[int, str]()

    def fits(count: int) -> bool:
        value = count * unit
        if value in stops or value in probes:
            return value in probes and probes[value].verdict != "does not fit"
        if value > (longest or value):
            stops[value] = f"no sequence has more than {longest} tokens"
            return False
        if value > FARTHEST.get(field, value):
            stops[value] = f"not searched beyond {FARTHEST[field]}"
            return False
        try:
            variant = changed(cell, {field: value} | _along(cell, field, value), said=said)
        except ConfigurationError as error:
            stops[value] = error.message
            return False
        rule = rejection(variant, bf16=bf16)
        if rule is not None:
            stops[value] = f"{rule.rule}: {rule.reason}"
            return False
        forecast = ask(variant)
        probes[value] = _probe(value, forecast)
        tell(f"{field} {value}: {forecast.verdict}")
        return forecast.fits

    own = max(1, getattr(cell.workload, field) // unit)
    low, high = (own, 2 * own) if fits(own) else (0, own)
    while low and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    value = low * unit
    over = high * unit if value or not probes else min(probes)  # of none that fits, not the rule below the smallest
    return Maximum(
        field=field,
        value=value or None,
        device_bytes=probes[value].device_bytes if value else None,
        along=_along(cell, field, value) if value else {},
        bound=stops.get(over) or f"{field} {over} does not fit",
        probes=tuple(probes.values()),
    )


def _probe(value: int, forecast: Forecast) -> Probe:
    return Probe(
        value=value,
        unlimited_bytes=forecast.unlimited_bytes,
        device_bytes=forecast.memory.device_bytes if forecast.fits else None,
        verdict=forecast.verdict,
        num_alloc_retries=forecast.memory.num_alloc_retries or 0,
        oom_phase=forecast.oom_phase,
        oom=forecast.oom,
    )


def _longest(cell: Cell, said: Mapping[str, Any]) -> int | None:
    """Beyond how many tokens max_length leaves all sequences as they are; None where it is what says how long they are."""
    work = cell.workload
    lengths = parse_lengths(said["lengths"]) if "lengths" in said else work.lengths
    return max(lengths) if lengths is not None and work.packing == "none" else None


def _unit(cell: Cell, field: str) -> int:
    """Between two valid values of `field`: rollouts are whole optimizer steps."""
    work = cell.workload
    if field == "group_size":
        step = work.batch_size * work.gradient_accumulation_steps
        return step // math.gcd(step, work.rollout_batch or 1)
    return cell.rollout_unit if field == "rollout_batch" else 1


def _along(cell: Cell, field: str, value: int) -> dict[str, int]:
    """What changes with `field`, so that a rollout stays as many optimizer steps as it is."""
    workload = cell.workload
    if workload.rollout_batch is None or field not in ("batch_size", "gradient_accumulation_steps"):
        return {}
    return {"rollout_batch": workload.rollout_batch * value // getattr(workload, field)}
