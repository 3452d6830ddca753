"""Records a job's phases: when each began, how long it took, and the meter's peaks inside it.

A job says only which phase it enters; stretches of one phase in one step are one record (times added, peaks the maximum).
The device is waited for at every border, so that a phase's time and peaks are its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vrambench.bench.meters import Meter, PhasePeaks
from vrambench.bench.result import Phase
from vrambench.methods.device import Device


class Recorder:
    """`listen(phase, step)` is called at every border, for whoever shows progress."""

    def __init__(
        self, device: Device, meter: Meter, listen: Callable[[str, int | None], None] = lambda name, step: None
    ) -> None:
        self._device = device
        self._meter = meter
        self._listen = listen
        self._records: dict[tuple[str, int | None], Phase] = {}
        self._began = 0.0
        self.step: int | None = None
        self.phase: str | None = None

    @property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(self._records.values())

    def phases_of(self, step: int | None) -> tuple[Phase, ...]:
        """The records of one step."""
        return tuple(record for (_, its_step), record in self._records.items() if its_step == step)

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
        self._device.synchronize()
        seconds = time.perf_counter() - self._began
        peaks = self._meter.end_phase()
        key = (self.phase, self.step)
        self._records[key] = _joined(self._records.get(key), self.phase, self.step, seconds, peaks)
        self.phase = None


def _joined(before: Phase | None, name: str, step: int | None, seconds: float, peaks: PhasePeaks) -> Phase:
    return Phase(
        name=name,
        step=step,
        seconds=seconds + (before.seconds if before else 0.0),
        allocated_bytes=highest(before and before.allocated_bytes, peaks.allocated_bytes),
        reserved_bytes=highest(before and before.reserved_bytes, peaks.reserved_bytes),
        device_bytes=highest(before and before.device_bytes, peaks.device_bytes),
    )


def highest(*values: int | None) -> int | None:
    """The largest known value; None where none is known."""
    known = [value for value in values if value is not None]
    return max(known, default=None)
