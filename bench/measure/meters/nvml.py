"""What the driver says a GPU holds: NVML, for one device, sampled beside the job.

    driver = Nvml.open()                        # None where there is no NVML
    before = driver.snapshot()                  # every GPU, before CUDA is touched
    ...                                         # CUDA is initialised; torch says the device's uuid
    sampler = Sampler(driver.device(uuid), before.get(uuid))
    sampler.start(); sampler.reset(); ...; sampler.peak_bytes; sampler.stop()

A device is found by its UUID, never by an index: torch orders GPUs by speed, NVML by PCI address, and
CUDA_VISIBLE_DEVICES renames torch's. `pynvml` is handed in, so that every line here runs without a GPU too.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

PERIOD_SECONDS = 0.01
# A query takes the driver's locks: the thread's may have this share of the time, whatever one costs, and those inside a job's
# steps as much again.
SHARE = 0.005

Accounting = Literal["process", "device"]


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of one GPU. `reserved`: what the driver keeps for itself, which `used` excludes; None where the driver is
    too old to tell them apart (before 510), and then `used` includes it."""

    total: int
    used: int
    free: int
    reserved: int | None


@dataclass(frozen=True)
class Baseline:
    """A GPU before the job: bytes in use, None where the driver does not tell, and by which process ids as far as NVML shows
    them."""

    used: int | None
    processes: dict[int, int | None] = field(default_factory=dict)


class Nvml:
    """The driver's library, initialised. `library` is the module pynvml."""

    def __init__(self, library: Any) -> None:
        self._library = library
        library.nvmlInit()

    @classmethod
    def open(cls) -> Nvml | None:
        """None where the package or the driver's library is missing."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            return cls(pynvml)
        except pynvml.NVMLError:
            return None

    def driver_version(self) -> str:
        return _text(self._library.nvmlSystemGetDriverVersion())

    def cuda_version(self) -> str:
        """The newest CUDA that the driver supports, as `13.0`."""
        number = self._library.nvmlSystemGetCudaDriverVersion_v2()
        return f"{number // 1000}.{number % 1000 // 10}"

    def uuids(self) -> list[str]:
        """Of every GPU, in the order of their PCI addresses."""
        count = self._library.nvmlDeviceGetCount()
        handles = [self._library.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        return [_text(self._library.nvmlDeviceGetUUID(handle)) for handle in handles]

    def snapshot(self) -> dict[str, Baseline]:
        """What is on every GPU now, by its UUID; without those that do not answer, which may not be the job's."""
        found = {}
        for uuid in self.uuids():
            with contextlib.suppress(LookupError, self._library.NVMLError):
                found[uuid] = self.device(uuid).baseline()
        return found

    def device(self, uuid: str) -> NvmlDevice:
        """The GPU (or MIG slice) with this UUID, with or without its prefix, as torch prints it. LookupError where
        there is none."""
        names = [uuid] if uuid.startswith(("GPU-", "MIG-")) else [f"GPU-{uuid}", f"MIG-{uuid}"]
        for name in names:
            try:
                return NvmlDevice(self._library, self._library.nvmlDeviceGetHandleByUUID(name), name)
            except self._library.NVMLError:
                continue
        raise LookupError(f"NVML knows no GPU with the UUID {uuid}")

    def close(self) -> None:
        self._library.nvmlShutdown()


class NvmlDevice:
    """One GPU as the driver sees it."""

    def __init__(self, library: Any, handle: Any, uuid: str) -> None:
        self._library = library
        self._handle = handle
        self._versioned = True
        self.uuid = uuid

    @property
    def name(self) -> str:
        return _text(self._library.nvmlDeviceGetName(self._handle))

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        try:
            major, minor = self._library.nvmlDeviceGetCudaComputeCapability(self._handle)
        except self._library.NVMLError:
            return None
        return int(major), int(minor)

    def memory(self) -> DeviceMemory | None:
        """Bytes now, by the versioned query; the first one counts what the driver reserves as used. None where the driver has
        neither (GB10 and others, whose memory is the host's)."""
        if self._versioned:
            try:
                told = self._library.nvmlDeviceGetMemoryInfo(self._handle, version=self._library.nvmlMemory_v2)
            except self._library.NVMLError:
                self._versioned = False
            else:
                return DeviceMemory(int(told.total), int(told.used), int(told.free), int(told.reserved))
        try:
            told = self._library.nvmlDeviceGetMemoryInfo(self._handle)
        except self._library.NVMLError_NotSupported:
            return None
        return DeviceMemory(int(told.total), int(told.used), int(told.free), None)

    def processes(self) -> dict[int, int | None]:
        """Bytes by process id, as far as NVML shows them: none inside many containers, ids of the host inside others,
        no bytes where the system keeps them from us."""
        try:
            listed = self._library.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._library.NVMLError:
            return {}
        return {entry.pid: None if entry.usedGpuMemory is None else int(entry.usedGpuMemory) for entry in listed}

    def energy_joules(self) -> float | None:
        """Since the driver was loaded; None on GPUs that do not count it."""
        try:
            return self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000
        except self._library.NVMLError:
            return None

    def baseline(self) -> Baseline:
        memory = self.memory()
        return Baseline(None if memory is None else memory.used, self.processes())


class Sampler:
    """This job's bytes on one GPU, now and at most, kept by a thread of its own.

    `before` is the GPU before the job, None where it was not seen then. Until `identify` has found the job among
    NVML's processes, its bytes are the device's change since `before`, and None where that is not known either.
    Job and thread share the numbers under a lock; a reading is a query of the driver.
    """

    def __init__(
        self,
        device: NvmlDevice,
        before: Baseline | None,
        *,
        process_id: int | None = None,
        period_seconds: float = PERIOD_SECONDS,
    ) -> None:
        self.device = device
        self._before = before
        self._process_id = os.getpid() if process_id is None else process_id
        self._counted: int | None = None
        self._period = period_seconds
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._peak: int | None = None
        self._cost = 0.0
        self._due_at = -math.inf
        self.failure: str | None = None
        self.samples = 0
        self.query_seconds = 0.0
        """Time spent in queries by the thread."""

    @property
    def accounting(self) -> Accounting | None:
        """How bytes are counted: those of the job's process, or the device's change; None where neither can be."""
        if self._counted is not None:
            return "process"
        return None if self._before is None or self._before.used is None else "device"

    def identify(self, grow: Callable[[], Callable[[], None]]) -> None:
        """Finds the job among NVML's processes. `grow` takes some device memory and gives what releases it again.

        An entry is this job's if its bytes follow: the entry with this process' id, or, where NVML shows another
        namespace's ids, the only entry that is new since before the job. An id alone proves nothing inside a
        container.
        """
        at_first = self.device.processes()
        release = grow()
        grown = self.device.processes()
        release()
        moved = [pid for pid, used in grown.items() if used is not None and used > (at_first.get(pid) or 0)]
        if self._process_id in moved:
            self._counted = self._process_id
        elif self._before is not None:
            new = [pid for pid in moved if pid not in self._before.processes]
            self._counted = new[0] if len(new) == 1 else None

    def read(self) -> int | None:
        """This job's bytes on the device now; the peak counts it."""
        began = time.perf_counter()
        value = self._query()
        with self._lock:
            self._cost = time.perf_counter() - began
            if value is not None:
                self._peak = value if self._peak is None else max(self._peak, value)
        return value

    def read_if_due(self) -> int | None:
        """`read` inside a job's steps: None where the last such reading is so fresh that one more would take more of the time
        than `SHARE`."""
        if time.perf_counter() < self._due_at:
            return None
        value = self.read()
        self._due_at = time.perf_counter() + self._cost / SHARE
        return value

    def _query(self) -> int | None:
        if self._counted is not None:
            return self.device.processes().get(self._counted)
        if self._before is None or self._before.used is None:
            return None
        memory = self.device.memory()
        return None if memory is None else max(0, memory.used - self._before.used)

    @property
    def peak_bytes(self) -> int | None:
        """The most that was read since `reset`, the readings of the thread among them."""
        with self._lock:
            return self._peak

    def reset(self) -> None:
        """Begins a new stretch, without a reading: the job reads at its end, and a query may cost a millisecond."""
        with self._lock:
            self._peak = None

    def start(self) -> None:
        """Starts the thread, unless it runs. Its period grows where a query costs more than its share of it."""
        if self._thread is not None:
            return
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, name="vrambench-nvml", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and waits for it. The numbers stay."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            if not self._thread.is_alive():
                self._thread = None

    def _run(self) -> None:
        wait = self._period
        while not self._ended.wait(wait):
            try:
                self.read()
            except Exception as error:  # a thread's exception would vanish
                self.failure = f"{type(error).__name__}: {error}"
                return
            self.samples += 1
            self.query_seconds += self._cost
            wait = max(self._period, self._cost / SHARE)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
