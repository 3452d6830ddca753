"""What is predicted for a cell, as it is shown and stored: bytes, the verdict under a budget, and what it rests on."""

from __future__ import annotations

from vrambench.bench.results.records import (
    Held,
    Memory,
    OutOfMemory,
    Parameters,
    Phase,
    PredictedParts,
    PredictedVerdict,
    Record,
    RoleBytes,
    Share,
    Verdict,
)

PRUNED_OVER = 1.25
"""A cell predicted to need more than this many budgets is not worth its run."""


KINDS = {
    "weights": "the model's, and an adapter's",
    "gradients": "of what is trained, complete",
    "optimizer": "the optimizer's state",
    "kv_cache": "keys and values of every token of a rollout",
    "engine_buffers": "what DeepSpeed gathers gradients in",
    "gathered_weights": "weights that have come from the host for the modules that are at work",
    "activations": "what layers compute, and keep where a backward pass follows",
    "logits_and_loss": "scores of the whole vocabulary, and what is computed from them",
    "backward_temporaries": "gradients of logits and layers on their way, and weights unpacked for them",
    "step_temporaries": "what the optimizer's step computes with; in list kernels as large as all parameters",
    "load_temporaries": "what loading leaves behind",
    "save_temporaries": "what saving computes with: products of an adapter's factors, layers unpacked to merge them",
    "workspace": "what operators take inside themselves, and cuBLAS keeps",
    "data": "tokens, rewards and other numbers",
}
"""What can be live, in words."""


class PredictedPhase(Record):
    """Peaks inside one phase of one step (None: outside the steps), and what is in use at that of allocated memory, largest first;
    little ones are left out."""

    name: str
    step: int | None
    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int
    at_peak: tuple[Share, ...] = ()


class Unmodelled(Record):
    """What the prediction leaves out. `nbytes`: the most that the job may take for it, None where nobody knows. `less`: with it the
    job may also take less than is predicted. `decisive`: the prediction may be one of another job, more or less."""

    reason: str
    nbytes: int | None = None
    less: bool = False
    decisive: bool = False


class PredictedBatch(Record):
    """A batch of sequences of several lengths: `rows` of `row_tokens` each, in which so many `sequences` have `tokens`, and the
    rest is padding. `step`: the simulated one with it, in which `allocated_bytes` is the most that is allocated."""

    step: int
    rows: int
    row_tokens: int
    tokens: int
    sequences: int
    allocated_bytes: int


class PredictedBatches(Record):
    """The `worst` batch, and the share of all batches that have as many tokens, of however many sequences; the middle one by size
    is `usual`."""

    worst: PredictedBatch
    worst_share: float
    usual: PredictedBatch


class Forecast(Record):
    """The prediction for one cell and budget. `limiting_phase`, `limiting_role`: where the most memory is in use; `at_peak` is
    what that is, and `held` who asked for it. `margin_bytes`: budget less device bytes, negative where it does not fit.
    `band_bytes`: by how much more a measurement may show, and `band_basis` how that is known. `oom`: where memory runs out under
    the budget.
    `rising_order_bytes`: what more is reserved (less, where negative) if the driver places memory at rising addresses.
    Bytes of a cell that does not fit are those that it takes without a limit; `unlimited_bytes` are the device's without one,
    whatever the verdict. `host_bytes`: of host memory for what is offloaded
    or saved. `batches`: where sequences are of several lengths. `unmodelled`: what is left out; where that may decide, the verdict
    is `unsure`, with an `oom` where what is predicted does not fit.
    `alloc_conf`: the allocator's options that it rests on, where they are not PyTorch's defaults.
    `seconds`: what predicting took."""

    budget_bytes: int
    verdict: Verdict
    margin_bytes: int
    band_bytes: int
    band_basis: str
    memory: Memory
    unlimited_bytes: int
    phases: tuple[PredictedPhase, ...]
    roles: dict[str, RoleBytes]
    parameters: Parameters
    limiting_phase: str
    limiting_step: int | None
    limiting_role: str | None
    at_peak: tuple[Share, ...]
    held: tuple[Held, ...] = ()
    oom: OutOfMemory | None = None
    oom_phase: str | None = None
    fragmentation_bytes: int
    rising_order_bytes: int = 0
    host_bytes: int
    batches: PredictedBatches | None = None
    unmodelled: tuple[Unmodelled, ...] = ()
    alloc_conf: str = ""
    outside: str
    notes: tuple[str, ...] = ()
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether it is predicted to run, be it only just, or as far as is known."""
        return self.verdict in ("fits", "tight") or (self.verdict == "unsure" and self.oom is None)

    @property
    def stored_verdict(self) -> PredictedVerdict:
        """What a result keeps of it, beside the memory."""
        return PredictedVerdict(
            verdict=self.verdict,
            budget_bytes=self.budget_bytes,
            band_bytes=self.band_bytes,
            band_basis=self.band_basis,
        )

    @property
    def stored_phases(self) -> tuple[Phase, ...]:
        """As a result holds phases, without times."""
        return tuple(Phase(**phase.model_dump(), seconds=None) for phase in self.phases)

    @property
    def stored_parts(self) -> PredictedParts:
        """What a result keeps of it beside a measurement, in parts."""
        return PredictedParts(phases=self.stored_phases, roles=self.roles, held=self.held)

    @property
    def device_peak(self) -> PredictedPhase:
        """The first phase in which the device bytes were at their highest: the allocator keeps what it once reserved."""
        return max(self.phases, key=lambda phase: phase.device_bytes)

    @property
    def far_over(self) -> bool:
        """Whether it needs so much more than the budget that running it would tell nothing new."""
        return (self.memory.device_bytes or 0) > PRUNED_OVER * self.budget_bytes


class Outcome(Record):
    """A cell's forecast, or why there is none."""

    forecast: Forecast | None = None
    reason: str | None = None
