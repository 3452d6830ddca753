"""How far one field goes: the largest value that is not predicted out of memory.

ask = lambda cell: predictor.forecast(cell, budget, card)
largest(cell, "batch_size", ask)        Maximum: the value, what stops the next one, and every value that was tried
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

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

SHARES = (0.4, 0.1, 0.0)
"""How far beyond what surely fits the next probe is, of the way to what surely does not, after so many more that do not fit: the
boundary is often where cached memory would have to be given back. After more, lines are no guide."""

FINENESS = 64
"""Tokens are searched in steps of at most this part of their number, powers of two: with one token more or less, fragmentation may
decide, and it does so by luck."""

TOKENS = (*PARTS, "max_length")
WORK = (*TOKENS, "batch_size", "rollout_batch", "group_size", "micro_rollout_batch_size", "eval_batch_size")
"""Fields on which weights and optimizer state do not depend."""


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


def rejection(cell: Cell) -> Finding | None:
    """The rule that forbids `cell` on CUDA."""
    return next((finding for finding in check(cell, "cuda") if finding.kind == "reject"), None)


def largest(
    cell: Cell,
    field: str,
    ask: Ask,
    *,
    said: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Maximum:
    """The largest value of `field` whose verdict is not "does not fit", while that of the next one is, or a rule forbids it. The
    next one is one more; of tokens, the next multiple of the largest power of two that is no more than a 64th of them (FINENESS).

    The next probe is between where what is reserved without a limit meets the budget, below which it fits, and where what is in
    use does, beyond which it does not: each by a line through the probes before. Where memory goes up and down with the field,
    there may be larger values that fit again: these are not looked for.

    Where there is a rollout, `batch_size` and `gradient_accumulation_steps` take `rollout_batch` along, so that it stays as
    many optimizer steps; `rollout_batch` and `group_size` themselves go by whole ones. That memory grows with the field is taken
    for granted. `said`: what was said of the workload, for lengths that the cell's own max_length cuts.
    Raises UnknownValue where `field` is none of `integer_fields(cell)`.
    """
    check_searched(cell, field)
    search = _Search(cell, field, ask, said or {}, tell)
    low, high = search.ends()
    value, over = low * search.unit, high * search.unit
    probes = search.probes
    return Maximum(
        field=field,
        value=value or None,
        device_bytes=probes[value].device_bytes if value else None,
        along=_along(cell, field, value) if value else {},
        bound=search.stops.get(over) or f"{field} {over} does not fit",
        probes=tuple(probes.values()),
    )


class _Point(NamedTuple):
    """Of one count: bytes in use, and of the device without a limit."""

    used: int
    unlimited: int


class _Search:
    """The search for the largest value of one field, in counts of `unit`. `stops`: values that are not asked for, with the reason;
    `points`: by count, 0 with weights and optimizer alone."""

    def __init__(
        self,
        cell: Cell,
        field: str,
        ask: Ask,
        said: Mapping[str, Any],
        tell: Callable[[str], None],
    ) -> None:
        self.cell, self.field, self.ask, self.said, self.tell = cell, field, ask, said, tell
        self.longest = _longest(cell, said) if field == "max_length" else None
        self.unit = _unit(cell, field)
        self.probes: dict[int, Probe] = {}
        self.stops: dict[int, str] = {}
        self.points: dict[int, _Point] = {}
        self.budget = cell.workload.own_budget

    def ends(self) -> tuple[int, int]:
        """The largest count that fits, 0 for none, and the next one."""
        own = max(1, getattr(self.cell.workload, self.field) // self.unit)
        least = 2 if self.field == "max_length" else 1  # a prompt's token and a response's
        low, high = own, cast(int | None, None)
        if not self._fits(own):
            if self._held_is_too_much():
                self.stops[own * self.unit] = (
                    "weights, optimizer state and CUDA's context alone take more than the budget"
                )
                return 0, own
            if own <= least or not self._fits(least):
                return 0, least if least * self.unit in self.probes else own
            low, high = least, own
        fitted, streak = high is None, 0  # how the last probe ended, and how many before it ended so
        while high is None or self._after(low) < high:
            if high is None:
                count = min(max(self._meets("used") or 2 * low, low + 1 + low // 8), FARTHEST_STEP * low)
                if self._variant(count) is None:
                    count = self._last_allowed(low, count)
                    if count == low or self._fits(count):
                        return count, count + 1
                    high, fitted, streak = count, False, 0
                    continue
            else:
                count = self._between(low, high, fitted, streak) if streak < len(SHARES) else (low + high) // 2
            count = max(self._on_grid(count), self._after(low))
            fits = self._fits(count)
            fitted, streak = fits, streak + 1 if fits == fitted else 0
            low, high = (count, high) if fits else (low, count)
        return low, high

    def _between(self, low: int, high: int, fitted: bool, streak: int) -> int:
        """Where the next probe tells most, by lines through those before."""
        surely, at_most = self._meets("unlimited"), self._meets("used")
        first = surely if surely is not None and low < surely < high else low
        last = at_most if at_most is not None and first < at_most < high else high
        return first + int((last - first) * (0.5 if fitted else SHARES[streak]))

    def _meets(self, name: Literal["used", "unlimited"]) -> int | None:
        """Where these bytes come to the budget, by a line through the two points nearest to it. None where they do not rise."""
        points = sorted((abs(getattr(point, name) - self.budget), count) for count, point in self.points.items())
        if len(points) < 2:
            return None
        first, second = sorted(count for _, count in points[:2])
        one, other = getattr(self.points[first], name), getattr(self.points[second], name)
        return first + (self.budget - one) * (second - first) // (other - one) if other > one else None

    def _after(self, count: int) -> int:
        """The next count that may be tried."""
        return self._on_grid(count) + self._step(count)

    def _on_grid(self, count: int) -> int:
        return count - count % self._step(count)

    def _step(self, count: int) -> int:
        if self.field not in TOKENS or count < 2 * FINENESS:
            return 1
        return 1 << (count // FINENESS).bit_length() - 1

    def _last_allowed(self, low: int, high: int) -> int:
        """The largest count from `low` on that nothing but memory forbids; `high` is forbidden."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._variant(middle) is not None else (low, middle)
        return low

    def _variant(self, count: int) -> Cell | None:
        """The cell with so many; None where it is not asked for, as `stops` says."""
        cell, field, value = self.cell, self.field, count * self.unit
        if value > (self.longest or value):
            self.stops[value] = f"no sequence has more than {self.longest} tokens"
            return None
        if value > FARTHEST.get(field, value):
            self.stops[value] = f"not searched beyond {FARTHEST[field]}"
            return None
        try:
            variant = changed(cell, {field: value} | _along(cell, field, value), said=self.said)
        except ConfigurationError as error:
            self.stops[value] = error.message
            return None
        rule = rejection(variant)
        if rule is not None:
            self.stops[value] = f"{rule.rule}: {rule.reason}"
        return variant if rule is None else None

    def _fits(self, count: int) -> bool:
        variant = self._variant(count)
        if variant is None:
            return False
        forecast = self.ask(variant)
        value = count * self.unit
        self.probes[value] = _probe(value, forecast)
        self.budget = forecast.margin_bytes + (forecast.memory.device_bytes or 0)
        used = (forecast.memory.active_bytes or 0) + (forecast.memory.context_bytes or 0)
        held = min(used - 1, _held_bytes(forecast))
        self.points.setdefault(0, _Point(held, held))
        self.points[count] = _Point(used, forecast.unlimited_bytes)
        self.tell(f"{self.field} {value}: {forecast.verdict}")
        return forecast.fits

    def _held_is_too_much(self) -> bool:
        """Weights and optimizer state alone take more than the budget."""
        return self.field in WORK and self.points[0].used > self.budget


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
