"""The CPU's meter: resident memory of the process, and, for what is traced, the bytes of live tensor storages.

There is no caching allocator and no device here: reserved and device bytes stay unknown.
"""

from __future__ import annotations

from vrambench.bench.measure.meters import PhasePeaks
from vrambench.bench.measure.meters.host import peak_rss_bytes, reset_peak_rss
from vrambench.bench.measure.meters.storages import StorageTrace
from vrambench.bench.results.records import Memory, Source


class CpuMeter:
    """While `trace` is set, phases and the job's peaks are read from it."""

    def __init__(self) -> None:
        self.trace: StorageTrace | None = None
        self._allocated: int | None = None
        self._notes: tuple[str, ...] = ()

    def start(self) -> None:
        if not reset_peak_rss():
            self._notes = ("the peak of resident memory could not be reset: it includes what came before the job",)

    def begin_phase(self, name: str, step: int | None) -> None:
        if self.trace is not None:
            self.trace.begin_phase(name)

    def end_phase(self) -> PhasePeaks:
        if self.trace is None:
            return PhasePeaks()
        self._allocated = max(self._allocated or 0, self.trace.peak_bytes)
        return PhasePeaks(allocated_bytes=self.trace.phase_peaks.get(self.trace.phase or ""))

    def peak_bytes(self) -> int | None:
        return self._allocated

    def memory(self) -> Memory:
        return Memory(requested_bytes=self._allocated, allocated_bytes=self._allocated, host_rss_bytes=peak_rss_bytes())

    @property
    def source(self) -> Source:
        return "measured"

    def energy_joules(self) -> float | None:
        return None

    def notes(self) -> tuple[str, ...]:
        return (*self._notes, "bytes are live tensor storages of one traced step; the CPU has no caching allocator")

    def stop(self) -> None:
        pass

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass
