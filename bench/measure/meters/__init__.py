"""Meters read what a job holds: from CUDA's allocator and NVML, or, on the CPU, from tensor storages and the system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vrambench.bench.results.records import Memory, Source


@dataclass(frozen=True)
class PhasePeaks:
    """Peaks inside one phase, in bytes; None where this meter cannot tell."""

    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    device_bytes: int | None = None


class Meter(Protocol):
    """One object per job, in the job's own process. The device is idle whenever a phase begins or ends."""

    def start(self) -> None:
        """Before anything of the job is on the device."""

    def begin_phase(self, name: str, step: int | None) -> None:
        """Resets the peaks."""

    def end_phase(self) -> PhasePeaks:
        """The peaks since `begin_phase`."""

    def peak_bytes(self) -> int | None:
        """The most that was allocated so far, in the phases that have ended; None where that is not counted yet."""

    def memory(self) -> Memory:
        """Peaks of the whole job so far."""

    @property
    def source(self) -> Source:
        """`verified` while the budget is enforced as the device's cap, else `measured`."""

    def energy_joules(self) -> float | None:
        """What the device has used, counted from some moment before the job; None where nobody counts."""

    def notes(self) -> tuple[str, ...]:
        """What a reader must know to trust the numbers."""

    def stop(self) -> None:
        """After the job; what was read stays readable."""

    def pause(self) -> None:
        """No readings of its own until `resume`: for steps that are to be taken without a meter."""

    def resume(self) -> None:
        """Goes on after `pause`."""
