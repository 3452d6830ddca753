"""What a cell's details hold: facts in words, and small tables of its memory, roles, phases and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from vrambench.bench.results.curves import quarters
from vrambench.bench.results.records import Memory, Phase, Sample
from vrambench.reports import units
from vrambench.reports.filled import compared
from vrambench.reports.rows import Row

LEDGER_LINES = {
    "requested_bytes": "requested",
    "allocated_bytes": "allocated",
    "active_bytes": "active",
    "reserved_bytes": "reserved",
    "device_bytes": "device",
    "context_bytes": "CUDA context and libraries",
    "elsewhere_bytes": "another process'",
    "managed_bytes": "managed",
    "host_rss_bytes": "host, resident",
    "host_pinned_bytes": "host, pinned",
}


@dataclass(frozen=True)
class Table:
    """A small table in a cell's details."""

    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def facts(row: Row) -> tuple[tuple[str, str], ...]:
    facts: list[tuple[str, str | None]] = [("id", row.id)]
    if row.budget_bytes:
        margin = row.verdict.margin_bytes
        room = "" if margin is None else f", {units.size(abs(margin))} {'to spare' if margin >= 0 else 'too little'}"
        size = f"{units.size(row.budget_bytes)}: " if margin is None else ""
        facts.append(("budget", f"{size}{row.verdict.why}{room}"))
    if row.result:
        result, rates = row.result, row.result.throughput
        facts.append(("source", result.source if row.verdict.margin_bytes is None else None))
        if result.oom:
            asked, missing = units.size(result.oom.asked_bytes), units.size(result.oom.missing_bytes)
            facts.append(("out of memory", f"on the {result.oom.where}; asked for {asked}, missing {missing}"))
        facts.append(("signal", result.signal))
        if result.parameters:
            total, trained = result.parameters.total, result.parameters.trainable
            facts.append(("parameters", f"{total:,}, {trained:,} of them trained"))
        generated = rates.generated_tokens_per_second
        facts.append(("generated", None if generated is None else units.rate(generated, "tokens/s")))
        facts.append(
            ("samples", None if rates.samples_per_second is None else units.rate(rates.samples_per_second, "per s"))
        )
        facts.append(
            (
                "energy",
                None if rates.energy_joules is None else f"{units.rate(rates.energy_joules)} J over the timed steps",
            )
        )
        kl = quarters(result.learning.kl)
        facts.append(("KL", None if kl is None else units.change(kl)))
        retries = result.memory.num_alloc_retries
        facts.append(("allocator retries", f"{retries:,}" if retries else None))
        parts = ", ".join(f"{name} {units.seconds(value)}" for name, value in result.seconds.items())
        facts.append(("time", parts or None))
    return tuple((name, value) for name, value in facts if value is not None)


def tables(row: Row) -> tuple[Table, ...]:
    if row.result is None:
        return ()
    made = (
        _memory_table(row.result.memory, None if row.result.source == "predicted" else row.result.predicted),
        _part_table(row) or _role_table(row),
        _phase_table(row),
        _sample_table(row),
    )
    return tuple(table for table in made if table)


ERROR = ("predicted", "error", "of it")
"""Columns beside what was measured."""


def _beside(real: int | None, told: int | None) -> tuple[str, str, str]:
    """What was predicted, and by how much it is off."""
    if real is None or told is None:
        return units.size(told), units.DASH, units.DASH
    return units.size(told), units.signed_size(told - real), units.percent((told - real) / real) if real else units.DASH


def _memory_table(measured: Memory, predicted: Memory | None) -> Table | None:
    lines = []
    for key, name in LEDGER_LINES.items():
        real, told = getattr(measured, key), getattr(predicted, key, None)
        if real is not None or told is not None:
            lines.append((name, units.size(real), *(_beside(real, told) if predicted else ())))
    head = ("peak of", "measured", *(ERROR if predicted else ()))
    return Table("Memory", head, tuple(lines)) if lines else None


def _part_table(row: Row) -> Table | None:
    """Whose memory it was, beside what was predicted."""
    found = compared(row)
    lines = tuple((name, units.size(real), *_beside(real, told)) for name, real, told in found)
    recorded = row.result and row.result.held
    title = "In use at the peak" if recorded else "Roles (what else was in use: run --record)"
    return Table(title, ("whose", "measured", *ERROR), lines) if lines else None


def _role_table(row: Row) -> Table | None:
    roles = row.result.roles if row.result else {}
    lines = tuple(
        (
            name + (f" (shares {held.shares})" if held.shares else ""),
            units.size(held.weights_bytes),
            units.size(held.gradients_bytes),
            units.size(held.optimizer_bytes),
        )
        for name, held in roles.items()
    )
    return Table("Roles", ("role", "weights", "gradients", "optimizer"), lines) if lines else None


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _phase_table(row: Row) -> Table | None:
    """Steps together: how often a phase ran, its median time, the highest of its peaks."""
    phases = row.result.phases if row.result else ()
    if not phases:
        return None
    keys = [
        key
        for key in ("allocated_bytes", "reserved_bytes", "device_bytes")
        if any(getattr(p, key) is not None for p in phases)
    ]
    parts = row.result.predicted_parts if row.result else None
    told = parts.phases if parts and "allocated_bytes" in keys else ()
    lines = []
    for name in dict.fromkeys(phase.name for phase in phases):
        stretch = [phase for phase in phases if phase.name == name]
        peaks = [_highest(stretch, key) for key in keys]
        foretold = _highest([phase for phase in told if phase.name == name], "allocated_bytes")
        lines.append(
            (
                name,
                str(len(stretch)),
                units.seconds(_median([p.seconds for p in stretch if p.seconds is not None])),
                *map(units.size, peaks),
                *(_beside(peaks[0], foretold) if told else ()),
            )
        )
    head = ("phase", "times", "median", *(key.removesuffix("_bytes") for key in keys))
    return Table("Phases", (*head, *(ALLOCATED_ERROR if told else ())), tuple(lines))


ALLOCATED_ERROR = ("allocated, predicted", "error", "of it")


def _highest(phases: Sequence[Phase], key: str) -> int | None:
    return max((peak for phase in phases if (peak := getattr(phase, key)) is not None), default=None)


def _sample_table(row: Row) -> Table | None:
    samples: Sequence[Sample] = row.result.samples if row.result else ()
    if len(samples) < 2:
        return None
    lines = tuple(
        (
            str(number),
            sample.status,
            units.size(sample.memory.allocated_bytes),
            units.size(sample.memory.device_bytes),
            units.seconds(_median(sample.throughput.step_seconds)),
            units.rate(sample.throughput.train_tokens_per_second),
        )
        for number, sample in enumerate(samples, 1)
    )
    return Table("Samples", ("sample", "status", "allocated", "device", "step", "tokens/s"), lines)
