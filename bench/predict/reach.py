"""How far one field goes: the largest value that is not predicted out of memory.

ask = lambda cell: predictor.forecast(cell, budget, card)
largest(cell, "batch_size", ask)        Maximum: the value, what stops the next one, and every value that was tried
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

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

FARTHEST_STEP = 32
"""How many times as large as the one that fits the next value may be that is tried."""


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
    along_a_line: bool = False,
) -> Maximum:
    """The largest value of `field` whose verdict is not "does not fit": doubled from the cell's own, then bisected. The next
    probe with `along_a_line` is where a line through those before it meets the budget: half as many predictions. Where
    memory goes up and down with the field, several values are such ends, and the two ways may find different ones.

    Where there is a rollout, `batch_size` and `gradient_accumulation_steps` take `rollout_batch` along, so that it stays as
    many optimizer steps; `rollout_batch` and `group_size` themselves go by whole ones. That memory grows with the field is taken
    for granted. `said`: what was said of the workload, for lengths that the cell's own max_length cuts.
    Raises UnknownValue where `field` is none of `integer_fields(cell)`.
    """
    check_searched(cell, field)
    longest, unit = _longest(cell, said or {}) if field == "max_length" else None, _unit(cell, field)
    probes, stops = dict[int, Probe](), dict[int, str]()
    points: dict[int, tuple[int, int]] = {}  # bytes in use and missing; of no work, those of weights and optimizer

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
        used = (forecast.memory.active_bytes or 0) + (forecast.memory.context_bytes or 0)
        points.setdefault(0, (min(used - 1, _held_bytes(forecast)), 0))
        points[count] = (used, (forecast.oom.missing_bytes or 0) if forecast.oom else 0)
        tell(f"{field} {value}: {forecast.verdict}")
        return forecast.fits

    own = max(1, getattr(cell.workload, field) // unit)
    if along_a_line:
        least = 2 if field == "max_length" else 1  # a prompt's token and a response's
        low, high = _along_a_line(own, least, fits, lambda high: _meets(points, cell.workload.own_budget, high))
    else:
        low, high = _bisected(own, fits)
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


def _bisected(own: int, fits: Callable[[int], bool]) -> tuple[int, int]:
    """The largest count that fits, 0 for none, and the next one; by doubling and halving."""
    low, high = (own, 2 * own) if fits(own) else (0, own)
    while low and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, high


def _along_a_line(
    own: int, least: int, fits: Callable[[int], bool], guess: Callable[[int | None], int | None]
) -> tuple[int, int]:
    """The same; no count is below `least`. `guess`: where the end may be, given the smallest count that does not fit (None:
    not known). Every other probe between the two halves the way, so that no curve takes long."""
    low, high = own, cast(int | None, None)
    if not fits(own):
        if own <= least or not fits(least):
            return 0, min(own, least)
        low, high = least, own
    halve = False
    while high is None or high - low > 1:
        guessed = guess(high)
        if high is None:
            count = min(max(guessed or 2 * low, low + 1 + low // 8), FARTHEST_STEP * low)
        else:
            inside = guessed is not None and low < guessed < high and not halve
            count = guessed if inside and guessed is not None else (low + high) // 2
            halve = not halve
        low, high = (count, high) if fits(count) else (low, count)
    return low, high


def _meets(points: Mapping[int, tuple[int, int]], budget: int, high: int | None) -> int | None:
    """Where the bytes in use come to `budget`, by a line through the two points nearest to it; from `high` down by what was missing
    there. None where they do not rise. `points`: by count, bytes in use and missing ones."""
    nearest = sorted(points.items(), key=lambda point: abs(point[1][0] - budget))[:2]
    if len(nearest) < 2:
        return None
    (first, (one, _)), (second, (other, _)) = sorted(nearest)
    if other <= one:
        return None
    if high is not None and high in points and points[high][1]:
        return high - -(-points[high][1] * (second - first) // (other - one))
    return first + (budget - one) * (second - first) // (other - one)


def _held_bytes(forecast: Forecast) -> int:
    """What the job holds however little it works on."""
    roles = forecast.roles.values()
    return sum(role.weights_bytes + role.optimizer_bytes for role in roles) + (forecast.memory.context_bytes or 0)


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
