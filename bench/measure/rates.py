"""A job's rates: tokens and sequences per second, from the times of its timed steps.

GaLore's optimizers decompose every target matrix once in some hundred optimizer steps, all in the same step (arXiv 2407.08296). A
short job times many such steps or none; so that work is taken out of the steps' times and its share over the gap put in.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vrambench.bench.results.records import Throughput


@dataclass(frozen=True)
class Timed:
    """What was timed. `step_seconds`, `rollout_seconds` (empty without rollouts) and `energy_joules` of each timed step, in order;
    `train_tokens` of each of them, `generated_tokens` and `samples` of one step."""

    step_seconds: Sequence[float]
    rollout_seconds: Sequence[float]
    energy_joules: Sequence[float | None]
    train_tokens: Sequence[int]
    generated_tokens: int
    samples: int


@dataclass(frozen=True)
class Decompositions:
    """The decompositions of a job that has taken `steps` steps, the first `warmup` of them untimed.

    `seconds`: time in phase `svd` by step, where there was any. `gap`: optimizer steps from one decomposition to the next, the
    first of all being one. `optimizer_steps`: those of one step of the job, on average.
    """

    seconds: Mapping[int, float]
    gap: int
    optimizer_steps: float
    warmup: int
    steps: int

    @property
    def timed(self) -> int:
        """How many fell into timed steps."""
        if not any(self.warmup <= step < self.steps for step in self.seconds):
            return 0
        return max(1, self._count(self.steps) - self._count(self.warmup))

    @property
    def each_seconds(self) -> float | None:
        """Time of one, of all targets together: the mean of those in timed steps or, where there are none, of all; None without
        any."""
        first = self.warmup if self.timed else 0
        seconds = [seconds for step, seconds in self.seconds.items() if first <= step < self.steps]
        return sum(seconds) / (self.timed or self._count(self.steps)) if seconds else None

    @property
    def share_seconds(self) -> float | None:
        """Of one, what belongs to each step of the job."""
        each = self.each_seconds
        return None if each is None else each * self.optimizer_steps / self.gap

    def note(self) -> str | None:
        """What a reader must know of the rates."""
        if self.share_seconds is None:
            return None
        where = f"{self.timed} in the timed steps" if self.timed else "all in warm-up, where the first is slowest"
        return (
            f"tokens and samples per second hold the decompositions' share of a step, {self.share_seconds:.4g} s: each takes "
            f"{self.each_seconds:.4g} s, once in {self.gap} optimizer steps ({where})"
        )

    def _count(self, steps: int) -> int:
        """Decompositions in the job's first `steps` steps."""
        return -(-round(steps * self.optimizer_steps) // self.gap)


def throughput(timed: Timed, decompositions: Decompositions | None) -> Throughput:
    """Rates from the median timed step; unknown where no step was timed. Where steps have unequal tokens, from the step of the
    median rate, as long as the median one."""
    if not timed.step_seconds:
        return Throughput()
    energy = [joules for joules in timed.energy_joules if joules is not None]
    lasted, whole = list(timed.step_seconds), None
    if decompositions is not None:
        svd = decompositions.seconds
        lasted = [seconds - svd.get(step, 0.0) for step, seconds in enumerate(lasted, decompositions.warmup)]
    plain = statistics.median(lasted)
    tokens = _tokens(lasted, timed.train_tokens)
    if decompositions is not None:
        share = decompositions.share_seconds
        whole = None if share is None else plain + share
    seconds = plain if decompositions is None else whole
    rollout = statistics.median(timed.rollout_seconds) if timed.rollout_seconds else None
    return Throughput(
        step_seconds=tuple(timed.step_seconds),
        train_tokens_per_second=tokens / seconds if seconds else None,
        train_tokens_per_second_without_svd=tokens / plain if decompositions is not None else None,
        generated_tokens_per_second=timed.generated_tokens / rollout if rollout else None,
        samples_per_second=timed.samples / seconds if seconds else None,
        energy_joules=sum(energy) if len(energy) == len(timed.step_seconds) else None,
    )


def _tokens(seconds: Sequence[float], tokens: Sequence[int]) -> float:
    """Of a step as long as the median one."""
    if len(set(tokens)) == 1:
        return tokens[0]
    return statistics.median(seconds) * statistics.median(
        count / lasted for count, lasted in zip(tokens, seconds, strict=True)
    )
