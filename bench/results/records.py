"""What one cell gave: the records behind `cells/<id>.json` (schema 1).

Integers are bytes, seconds are floats, every key carries its unit, and None is unknown: a number here was measured (or,
under `predicted`, predicted), never made up. `Memory` is the ledger's first line:
requested <= allocated <= active <= reserved <= device.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1

Status = Literal["ok", "oom", "invalid", "pruned", "timeout", "crashed", "error"]
Source = Literal["measured", "predicted", "verified"]
Verdict = Literal["fits", "tight", "unsure", "does not fit"]

Count = Annotated[int, Field(ge=0)]
"""Bytes, or how often."""

FAILED: tuple[Status, ...] = ("timeout", "crashed", "error")
"""Statuses of a measurement that failed: run again with `--retry`, and exit code 4."""


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Memory(Record):
    """Peaks of the whole job, in bytes. On CUDA from the caching allocator and NVML; on the CPU, `requested` and `allocated` are
    the live tensor storages of one traced step, and the device's keys are None (there is no such device)."""

    requested_bytes: Count | None = None
    allocated_bytes: Count | None = None
    active_bytes: Count | None = None
    reserved_bytes: Count | None = None
    device_bytes: Count | None = None
    context_bytes: Count | None = None
    elsewhere_bytes: Count | None = None
    """What another process holds beside the job, as the workload says; in no other line."""
    managed_bytes: Count | None = None
    host_rss_bytes: Count | None = None
    host_pinned_bytes: Count | None = None
    num_alloc_retries: Count | None = None


class Share(Record):
    """What is live at a peak. `role` None: no model's. `kind`: one of vrambench.bench.results.forecast.KINDS, or what the job's own
    code names it."""

    role: str | None
    kind: str
    nbytes: Count


class Phase(Record):
    """One phase of one step (`step` is None for what is outside the steps: load): time in it, unless it was predicted, and the
    peaks inside it. `at_peak`: where it was predicted or recorded, what was in use at its peak of allocated memory, largest first;
    little ones are left out."""

    name: str
    step: int | None
    seconds: float | None
    allocated_bytes: Count | None = None
    reserved_bytes: Count | None = None
    device_bytes: Count | None = None
    at_peak: tuple[Share, ...] = ()


class Held(Record):
    """What was in use at the peak that one operator of one module asked for, in one phase. `role`, `kind`: whose it is, and what.
    `module`: its path below the role's, `layers.*` for all layers alike; "" outside of all. Where it was measured, `operator`
    is the line of code that asked."""

    role: str | None
    kind: str
    phase: str | None
    module: str
    operator: str
    nbytes: Count


class BlockName(Record):
    """What a block of the allocator's was. `used`: whether it was in use. `role`, `kind`: whose it is, and what, where that is
    known; `called`: what the job was at when it asked for it (`learn: policy/model.layers.*.mlp`), `where`: the innermost line of
    code that is not PyTorch's own; empty where that was not recorded."""

    used: bool = False
    role: str | None = None
    kind: str | None = None
    called: str = ""
    where: str = ""


class Stretch(NamedTuple):
    """Neighbouring blocks of one name, which is given by its place."""

    name: int
    nbytes: Count


class BlockMap(Record):
    """The allocator's memory when most was in use: of each segment its stretches, in order of addresses."""

    names: tuple[BlockName, ...]
    segments: tuple[tuple[Stretch, ...], ...]


class RoleBytes(Record):
    """What one role's model holds, counted by storages (shared storage belongs to the first role that has it)."""

    weights_bytes: Count
    gradients_bytes: Count
    """When the optimizer steps; the largest one's, where each steps inside the backward pass and is freed."""
    optimizer_bytes: Count
    shares: str | None = None
    """The role whose weights this one uses, if it has none of its own."""


class Throughput(Record):
    """Over the timed steps. `step_seconds` in order; rates from their median. Where the optimizer decomposes its matrices every so
    many steps (GaLore), rates hold that work's share of a step, whichever steps it fell into."""

    step_seconds: tuple[float, ...] = ()
    train_tokens_per_second: float | None = None
    train_tokens_per_second_without_svd: float | None = None
    """The same without that share; None where there are no such decompositions."""
    generated_tokens_per_second: float | None = None
    samples_per_second: float | None = None
    energy_joules: float | None = None
    """Of the device in the timed steps, from each one's begin to its end, where NVML counts it."""


class Learning(Record):
    """One value per step, warm-up included, the counted step not; None where it was no finite number, or the step gave none."""

    loss: tuple[float | None, ...] = ()
    reward: tuple[float | None, ...] = ()
    kl: tuple[float | None, ...] = ()
    metrics: dict[str, tuple[float | None, ...]] = Field(default_factory=dict)
    """What else the algorithm tells of each step, by the name that it gives it."""

    def of(self, name: str) -> tuple[float | None, ...]:
        """The series called `name`; none where it was not told."""
        found: tuple[float | None, ...] = getattr(self, name) if name in ("loss", "reward", "kl") else ()
        return found or self.metrics.get(name, ())


class Parameters(Record):
    """`total`: the parameters of all roles together, the frozen ones too, each once however many roles share it; a quantised
    weight counts as the numbers that it stands for. `trainable`: those of them that are trained."""

    total: int
    trainable: int


class OutOfMemory(Record):
    """Where memory ran out. None where the system does not say."""

    where: Literal["device", "host"]
    asked_bytes: Count | None = None
    missing_bytes: Count | None = None


class Sample(Record):
    """One run of a cell in one process."""

    status: Status
    reason: str | None = None
    phase: str | None = None
    """Where a job that did not end well was; None for one that did."""
    source: Source | None = None
    oom: OutOfMemory | None = None
    signal: str | None = None
    memory: Memory = Memory()
    phases: tuple[Phase, ...] = ()
    roles: dict[str, RoleBytes] = Field(default_factory=dict)
    throughput: Throughput = Throughput()
    learning: Learning = Learning()
    parameters: Parameters | None = None
    held: tuple[Held, ...] = ()
    """Of a predicted or recorded job: what was in use at the peak of allocated memory, largest first; little ones are left out."""
    blocks: BlockMap | None = None
    """Of a job whose allocator was recorded."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall time of the job by part, in order: start, meter, imports (of packages that its axis values need), load, warmup, steps,
    evaluate and save where the job does so (the one before, the other after counted_step), counted_step; and `total`. `data`: what
    making the steps' sequences took, which is in warmup, steps and counted_step, but in no step's own time."""
    notes: tuple[str, ...] = ()
    """What a reader must know to trust the numbers, in sentences (how device bytes were counted, what the cap cannot emulate)."""


class PredictedVerdict(Record):
    """What the forecast said: the verdict under the budget, and by how much more than predicted a measurement may show."""

    verdict: Verdict
    budget_bytes: int
    band_bytes: Count
    band_basis: str


class PredictedParts(Record):
    """What was predicted beside a measurement, in parts: the peaks inside each phase, what roles hold, and what is in use at the
    peak."""

    phases: tuple[Phase, ...] = ()
    roles: dict[str, RoleBytes] = Field(default_factory=dict)
    held: tuple[Held, ...] = ()


class Result(Sample):
    """A cell's result: one of its samples, with what it was and where. Of several samples it is the first that failed, or else the
    one with the median step time."""

    schema_: int = Field(SCHEMA, alias="schema")
    id: str
    name: str
    cell: dict[str, Any]
    rule: str | None = None
    """The validity rule's id, where status is `invalid`."""
    predicted: Memory | None = None
    predicted_verdict: PredictedVerdict | None = None
    predicted_parts: PredictedParts | None = None
    environment: dict[str, Any] = Field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    """Every sample, in the order in which they ran."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
