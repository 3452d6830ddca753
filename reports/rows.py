"""Rows: every cell of the runs that are reported, with what every view derives from its result in the same way.

In: `Run`s, that is run folders as the store reads them (or records made by hand). Out: one `Row` per cell of each
run, in the order of run.json; a cell without a result is a row too (`not run`), and so is one whose file cannot be
read (`unreadable`). Nothing here formats or renders.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal

from vrambench.bench.plan.document import as_yaml
from vrambench.bench.predict.band import error_band
from vrambench.bench.results.curves import quarters
from vrambench.bench.results.records import Memory, Result
from vrambench.bench.results.settings import flat_settings
from vrambench.methods.cards import DRIVERS_SHARE
from vrambench.methods.workload import AXIS_NAMES, FIELDS
from vrambench.reports.units import DASH, size

STATUSES = ("ok", "oom", "timeout", "crashed", "error", "invalid", "pruned", "unreadable", "not run")
"""Every status that a row can have, in the order in which they are counted and listed."""

Fit = Literal["fits", "tight", "unsure", "does not fit", "unknown"]
FITS = ("fits", "tight", "unsure", "does not fit")
"""Verdicts that are known, the best first."""


@dataclass(frozen=True)
class Run:
    """One run as it is reported: its name, run.json, results, the names of result files that could not be read, and why
    they could not, by the cell's id."""

    name: str
    info: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[Result, ...] = ()
    corrupted: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether a cell fits its budget, from which source that is known, and by how much. `why`: the words for it, or
    why it is unknown."""

    fit: Fit
    why: str
    source: str | None = None
    margin_bytes: int | None = None


@dataclass(frozen=True)
class Row:
    """One cell of one run. `index` is its place among all rows of the report: pages and charts refer to it by that."""

    index: int
    run: str
    id: str
    name: str
    status: str
    cell: Mapping[str, Any]
    result: Result | None = None
    device_capacity_bytes: int | None = None
    unreadable: str | None = None
    """Why its result file cannot be read, where that is known."""

    @cached_property
    def axes(self) -> tuple[str, ...]:
        return tuple(str(self.cell.get(axis, "")) for axis in AXIS_NAMES)

    @property
    def algorithm(self) -> str:
        return str(self.cell.get("algorithm", ""))

    @property
    def memory(self) -> Memory:
        return self.result.memory if self.result else Memory()

    @property
    def budget_bytes(self) -> int | None:
        budget = self.cell.get("budget")
        return budget if isinstance(budget, int) and budget > 0 else None

    @property
    def reason(self) -> str | None:
        """Why the cell has the status it has, in words: its own reason, else what the status stands for."""
        if self.result is None:
            if self.status != "unreadable":
                return "the run ended before it"
            return f"its result file is {self.unreadable}" if self.unreadable else "its result file cannot be read"
        if self.result.reason:
            return self.result.reason
        return f"ended by {self.result.signal}" if self.result.signal else None

    @cached_property
    def step_seconds(self) -> float | None:
        """Median of the timed steps."""
        steps = self.result.throughput.step_seconds if self.result else ()
        return median(steps) if steps else None

    @property
    def tokens_per_second(self) -> float | None:
        return self.result.throughput.train_tokens_per_second if self.result else None

    @cached_property
    def rates(self) -> tuple[float, ...]:
        """Train tokens per second by each timed step of each sample: what the rate is the middle of."""
        if self.result is None or not self.tokens_per_second or not self.step_seconds:
            return ()
        tokens = self.tokens_per_second * self.step_seconds
        samples = self.result.samples or (self.result,)
        return tuple(tokens / step for sample in samples for step in sample.throughput.step_seconds if step > 0)

    @property
    def loss(self) -> tuple[float | None, float | None] | None:
        return quarters(self.result.learning.loss) if self.result else None

    @property
    def reward(self) -> tuple[float | None, float | None] | None:
        return quarters(self.result.learning.reward) if self.result else None

    @cached_property
    def verdict(self) -> Verdict:
        return judge(self)


def judge(row: Row) -> Verdict:
    """Whether `row` fits its budget. Only device memory tells (measured, else predicted); a cell that ran out of it
    does not fit. A predicted cell has the verdict that its forecast gave. A measured one fits where it took no more than the
    budget, tightly where the allocator had to give back cached memory for it."""
    result, budget = row.result, row.budget_bytes
    if result is None or budget is None:
        return Verdict("unknown", "no result" if result is None else "no budget was set")
    if result.status == "invalid":
        return Verdict("unknown", "never started: a rule forbids it")
    ended = result.status in ("ok", "oom")
    if ended and result.source == "predicted" and result.memory.device_bytes is not None:
        return _predicted(result, result.memory.device_bytes, budget)
    if result.status == "oom" and not (result.oom and result.oom.where == "host"):
        capacity = row.device_capacity_bytes
        if result.source != "verified" and capacity is not None and capacity < (1 - DRIVERS_SHARE) * budget:
            return Verdict(
                "unknown", f"ran out of a device of {size(capacity)}, smaller than the budget of {size(budget)}"
            )
        return Verdict("does not fit", "ran out of device memory", result.source)
    held = result.memory.device_bytes if result.status == "ok" else None
    if held is not None:
        source, given_back = result.source or "measured", result.memory.num_alloc_retries or 0
        times = f", after cached memory was given back {given_back:,} times" if given_back else ""
        fit: Fit = "does not fit" if held > budget else "tight" if given_back else "fits"
        return Verdict(fit, f"{source}: {size(held)} of {size(budget)}{times}", source, budget - held)
    if result.predicted and result.predicted.device_bytes is not None:
        return _predicted(result, result.predicted.device_bytes, budget)
    why = "no device memory was measured" if result.status == "ok" else f"the cell ended as {result.status}"
    return Verdict("unknown", why)


def _predicted(result: Result, device: int, budget: int) -> Verdict:
    """The forecast's own verdict. Files of versions that did not store it have the one that the published band gives."""
    told = result.predicted_verdict
    band = told.band_bytes if told else round(error_band().share * device)
    fit: Fit = (
        told.verdict if told else "does not fit" if device > budget else "tight" if device + band > budget else "fits"
    )
    why = f"predicted: {size(device)} of {size(budget)}, the error band is {size(band)}"
    return Verdict(fit, why, "predicted", budget - device)


def rows_of(runs: Sequence[Run]) -> tuple[Row, ...]:
    """A row for every cell of run.json, in its order, and one for each result that run.json does not name."""
    rows: list[Row] = []
    for run in runs:
        results = {result.id: result for result in run.results}
        unreadable = {Path(name).stem for name in run.corrupted}
        capacity = device_capacity(run.info)
        planned = [cell for cell in run.info.get("cells") or () if isinstance(cell, Mapping)]
        known = {str(cell.get("id")) for cell in planned}
        extra = [{"id": result.id, "name": result.name} for result in run.results if result.id not in known]
        for entry in (*planned, *extra):
            key = str(entry.get("id"))
            result = results.get(key)
            absent = "unreadable" if key in unreadable else "not run"
            flat = {name: value for name, value in entry.items() if name not in ("id", "name")}
            rows.append(
                Row(
                    index=len(rows),
                    run=run.name,
                    id=key,
                    name=str(entry.get("name") or key),
                    status=result.status if result else absent,
                    cell=result.cell if result else flat,
                    result=result,
                    device_capacity_bytes=capacity,
                    unreadable=run.unreadable.get(key),
                )
            )
    return tuple(rows)


def device_capacity(info: Mapping[str, Any]) -> int | None:
    """What the run's GPU offers to processes, in bytes, where its environment says so."""
    environment = info.get("environment")
    gpu = environment.get("gpu") if isinstance(environment, Mapping) else None
    if not isinstance(gpu, Mapping):
        return None
    capacity = gpu.get("usable_bytes") or gpu.get("total_bytes")
    return capacity if isinstance(capacity, int) else None


def setting_text(row: Row, name: str) -> str:
    """A setting as tables show it, by its dotted name."""
    namespace, _, option = name.partition(".")
    value = row.cell.get(namespace)
    if option:
        value = value.get(option) if isinstance(value, Mapping) else None
    if value is None:
        return DASH
    if isinstance(value, bool):
        return str(value).lower()
    return size(value) if name == "budget" and isinstance(value, int) else str(value)


def varying_fields(rows: Iterable[Row]) -> tuple[str, ...]:
    """The workload's fields that were swept: those in which two cells with the same axes differ."""
    seen: dict[tuple[tuple[str, ...], str], set[str]] = {}
    for row in rows:
        for key, value in flat_settings(row.cell).items():
            seen.setdefault((row.axes, key), set()).add(repr(value))
    order = {name: place for place, name in enumerate(FIELDS)}
    names = {key for (_, key), values in seen.items() if len(values) > 1}
    return tuple(sorted(names, key=lambda name: (order.get(name, len(order)), name)))


def axis_options(cell: Mapping[str, Any]) -> str:
    """The cell's axis values as the command line takes them."""
    return shlex.join(word for axis in AXIS_NAMES if axis in cell for word in (f"--{axis}", str(cell[axis])))


def setting_options(cell: Mapping[str, Any]) -> dict[str, str]:
    """Every setting of the cell as the command line takes it, by dotted name: all of them, so that it does not matter
    what a matrix, or the defaults of a later version, say of them."""
    settings = flat_settings(cell)
    budget = settings.get("budget")
    if isinstance(budget, int) and budget % 2**30 == 0:
        settings["budget"] = f"{budget // 2**30}GiB"
    return {key: shlex.join(("--set", f"{key}={as_yaml(value)}")) for key, value in settings.items()}


def pareto(points: Iterable[tuple[int, float, float]]) -> set[int]:
    """The keys of the points that no other beats: (key, cost, gain), lower cost and higher gain are better."""
    front: set[int] = set()
    best = float("-inf")
    for key, _, gain in sorted(points, key=lambda point: (point[1], -point[2])):
        if gain > best:
            front.add(key)
            best = gain
    return front


def peak_basis(rows: Iterable[Row]) -> str | None:
    """Which of the ledger's lines the rows are compared by: the outermost that every cell has which is ok (if none is: which ran
    out of memory), else None."""
    ended = list(rows)
    placed = next(filter(None, ([row.memory for row in ended if row.status == one] for one in ("ok", "oom"))), [])
    for key in ("device_bytes", "reserved_bytes", "allocated_bytes"):
        if placed and all(getattr(memory, key) is not None for memory in placed):
            return key
    return None
