"""Records a job's phases: when each began, how long it took, and the meter's peaks inside it.

A job says only which phase it enters; stretches of one phase in one step are one record (times added, peaks the maximum).
The device is waited for at every border, so that a phase's time and peaks are its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from vrambench.bench.measure.meters import Meter, PhasePeaks
from vrambench.bench.results.records import Phase
from vrambench.methods.device import Device


@dataclass
class _Stretches:
    """All stretches of one phase in one step so far."""

    seconds: float = 0.0
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    device_bytes: int | None = None

    def add(self, seconds: float, peaks: PhasePeaks) -> None:
        self.seconds += seconds
        self.allocated_bytes = highest(self.allocated_bytes, peaks.allocated_bytes)
        self.reserved_bytes = highest(self.reserved_bytes, peaks.reserved_bytes)
        self.device_bytes = highest(self.device_bytes, peaks.device_bytes)


class Recorder:
    """`listen(phase, step)` is called at every border, for whoever shows progress."""

    def __init__(
        self, device: Device, meter: Meter, listen: Callable[[str, int | None], None] = lambda name, step: None
    ) -> None:
        self._device = device
        self._meter = meter
        self._listen = listen
        self._records: dict[tuple[str, int | None], _Stretches] = {}
        self._began = 0.0
        self.step: int | None = None
        self.phase: str | None = None

    @property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(Phase(name=name, step=step, **vars(record)) for (name, step), record in self._records.items())

    def phases_of(self, step: int | None) -> tuple[Phase, ...]:
        """The records of one step."""
        return tuple(
            Phase(name=name, step=its, **vars(record)) for (name, its), record in self._records.items() if its == step
        )

    def enter(self, name: str) -> None:
        """The job enters phase `name`; the one before is closed."""
        self.close()
        self._listen(name, self.step)
        self.phase = name
        self._meter.begin_phase(name, self.step)
        self._began = time.perf_counter()

    def close(self) -> None:
        """Ends the current phase, if there is one; after an error too, so that its peaks are kept."""
        if self.phase is None:
            return
        name, self.phase = self.phase, None
        try:
            self._device.synchronize()
        finally:  # a broken device answers no more, but its allocator's peaks are read on the host
            seconds = time.perf_counter() - self._began
            record = self._records.setdefault((name, self.step), _Stretches())
            record.add(seconds, self._meter.end_phase())


def highest(*values: int | None) -> int | None:
    """The largest known value; None where none is known."""
    known = [value for value in values if value is not None]
    return max(known, default=None)
