"""What a job says between its beginning and its end. Nothing here needs torch: whoever waits for a job imports it."""

from __future__ import annotations

from dataclasses import dataclass

from vrambench.bench.results.records import Memory, Parameters, Phase, Source


@dataclass(frozen=True)
class Progress:
    """What a job has measured since it last said so: after load (`parameters`), and after every step.

    `phases` ended since then; `step_seconds` is the step's time if it was a timed one; `memory` the job's peaks so far.
    """

    memory: Memory
    phases: tuple[Phase, ...]
    source: Source = "measured"
    notes: tuple[str, ...] = ()
    step_seconds: float | None = None
    parameters: Parameters | None = None
