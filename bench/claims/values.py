"""What a formula may ask of a cell, from its prediction and from its results.

    of_forecast(forecast)[("device_bytes",)]
    of_results(results)[("policy", "weights_bytes")]
    foretold(result)[("device_bytes",)]

A value that is not known is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from vrambench.bench.claims.formula import FITS, LEARNING, MEMORY, RATES, ROLE_BYTES
from vrambench.bench.results import PREDICTED
from vrambench.bench.results.curves import quarters
from vrambench.bench.results.forecast import Forecast
from vrambench.bench.results.records import Memory, Parameters, Result, RoleBytes, Sample
from vrambench.methods.cards import DRIVERS_SHARE

Values = dict[tuple[str, ...], float | bool]
"""By the words that follow the cell's name in a formula."""


def of_forecast(forecast: Forecast) -> Values:
    """What is predicted. Whether it fits is not known where what is left out may decide."""
    values = _held(forecast.memory, forecast.roles, forecast.parameters)
    return values if forecast.verdict == "unsure" else values | {(FITS,): forecast.fits}


def foretold(result: Result) -> Values:
    """What was predicted of a result: of all of it, or beside its measurement; nothing where that was not done."""
    parts = result.roles if result.source == PREDICTED else result.predicted_parts and result.predicted_parts.roles
    if result.predicted is None or result.predicted_verdict is None:
        return {}
    values, verdict = _held(result.predicted, parts or {}, result.parameters), result.predicted_verdict.verdict
    return values if verdict == "unsure" else values | {(FITS,): verdict in ("fits", "tight")}


def of_results(results: Sequence[Result], capacity_bytes: int | None = None) -> Values:
    """What was measured: of all samples of all results, the median; it fits where all of them did. `capacity_bytes`: what the
    device offers."""
    samples = [(result, sample) for result in results for sample in result.samples or (result,)]
    fit = {_fits(sample, result.cell.get("budget"), capacity_bytes) for result, sample in samples}
    ended_well = all(sample.status == "ok" for _, sample in samples)
    values = _middle([_of_sample(sample) for _, sample in samples]) if ended_well else {}
    return values if None in fit else values | {(FITS,): all(fit)}


def _middle(found: Sequence[Values]) -> Values:
    """The median of each value that all have."""
    names = set.intersection(*(set(one) for one in found)) if found else set()
    return {name: median(float(one[name]) for one in found) for name in names}


def _of_sample(sample: Sample) -> Values:
    values = _held(sample.memory, sample.roles, sample.parameters)
    throughput = sample.throughput
    rates = {"step_seconds": median(throughput.step_seconds)} if throughput.step_seconds else {}
    rates |= {name: getattr(throughput, name) for name in RATES if name != "step_seconds"}
    curves = {name: quarters(getattr(sample.learning, name)) for name in LEARNING}
    learnt = {name: ends[1] for name, ends in curves.items() if ends}
    return values | {(name,): value for name, value in (rates | learnt).items() if value is not None}


def _held(memory: Memory, roles: Mapping[str, RoleBytes], parameters: Parameters | None) -> Values:
    values: Values = {(name,): held for name in MEMORY if (held := getattr(memory, name)) is not None}
    for name in ROLE_BYTES:
        values |= {(role, name): getattr(held, name) for role, held in roles.items()}
        if roles:
            values[(name,)] = sum(getattr(held, name) for held in roles.values())
    if parameters is not None:
        values |= {("parameters",): parameters.total, ("trainable_parameters",): parameters.trainable}
    return values


def _fits(sample: Sample, budget: Any, capacity: int | None) -> bool | None:
    """Whether a measured job fits its budget; None where that is not known."""
    if not isinstance(budget, int):
        return None
    if sample.status == "oom" and not (sample.oom and sample.oom.where == "host"):
        small = capacity is not None and capacity < (1 - DRIVERS_SHARE) * budget
        return None if small and sample.source != "verified" else False
    device = sample.memory.device_bytes if sample.status == "ok" else None
    return None if device is None else device <= budget
