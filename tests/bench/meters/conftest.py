"""A driver and a CUDA allocator that need no GPU: they keep books as the real ones do, and the meters read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

MIB = 2**20


class NVMLError(Exception):
    """What pynvml raises."""


class NVMLError_NotSupported(NVMLError):
    """What it raises where a device has no such thing."""


@dataclass
class FakeGpu:
    """One card: `others` is what foreign processes hold, `processes` what NVML lists (by id; None: bytes kept from
    us)."""

    uuid: str
    name: str = "NVIDIA Fake 24GB"
    total: int = 24_576 * MIB
    reserved: int = 400 * MIB
    others: int = 0
    own: int = 0
    processes: dict[int, int | None] = field(default_factory=dict)
    millijoules: int | None = 5_000
    hides_versioned: bool = False
    hides_memory: bool = False
    queries: int = 0

    @property
    def used(self) -> int:
        return self.others + self.own


class FakeNvml:
    """The functions of pynvml that the meters use, over `gpus`."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NVMLError_NotSupported
    nvmlMemory_v2 = 0x02000028

    def __init__(self, *gpus: FakeGpu) -> None:
        self.gpus = gpus
        self.started = 0

    def nvmlInit(self) -> None:
        self.started += 1

    def nvmlShutdown(self) -> None:
        self.started -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.159.04"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13000

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        return self._only(gpu for gpu in self.gpus if gpu.uuid == uuid)

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:
        return gpu.name

    def nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu) -> tuple[int, int]:
        return 8, 9

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu, version: int | None = None) -> Any:
        gpu.queries += 1
        if gpu.hides_memory:
            raise NVMLError_NotSupported("Not Supported")
        if version is None:
            return SimpleNamespace(
                total=gpu.total, used=gpu.used + gpu.reserved, free=gpu.total - gpu.used - gpu.reserved
            )
        if gpu.hides_versioned:
            raise NVMLError("Function Not Found")
        free = gpu.total - gpu.used - gpu.reserved
        return SimpleNamespace(total=gpu.total, used=gpu.used, free=free, reserved=gpu.reserved)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: FakeGpu) -> list[Any]:
        gpu.queries += 1
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in gpu.processes.items()]

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: FakeGpu) -> int:
        if gpu.millijoules is None:
            raise NVMLError("Not Supported")
        return gpu.millijoules

    def _only(self, found: Any) -> FakeGpu:
        for gpu in found:
            return gpu
        raise NVMLError("Not Found")


class FakeCuda:
    """What the meter uses of `torch.cuda`, over one FakeGpu: `take` and `give` stand for a job's allocations.

    Every allocation is a segment of its own that goes back to the driver with `empty_cache`. `listed_as` is the process
    id under which NVML lists this process, None where it lists none.
    """

    CONTEXT = 500 * MIB

    def __init__(self, gpu: FakeGpu, *, listed_as: int | None, initialized: bool = False) -> None:
        self.gpu = gpu
        self.listed_as = listed_as
        self.fraction: float | None = None
        self._initialized = False
        self._outside = 0
        self._allocated = self._reserved = self._allocated_peak = self._reserved_peak = 0
        self.num_alloc_retries = 0
        if initialized:
            self.init()

    def is_initialized(self) -> bool:
        return self._initialized

    def set_device(self, device: Any) -> None:
        assert self._initialized
        self.current = device

    def init(self) -> None:
        self._initialized = True
        self._outside = self.CONTEXT
        self._tell()

    def grow_context(self, count: int) -> None:
        """Kernels that load late: device memory outside the allocator."""
        self._outside += count
        self._tell()

    def take(self, count: int) -> None:
        self._allocated += count
        self._reserved = max(self._reserved, self._allocated)
        self._allocated_peak = max(self._allocated_peak, self._allocated)
        self._reserved_peak = max(self._reserved_peak, self._reserved)
        self._tell()

    def give(self, count: int) -> None:
        self._allocated -= count

    def empty_cache(self) -> None:
        self._reserved = self._allocated
        self._tell()

    def caching_allocator_alloc(self, count: int, device: object) -> int:
        self.take(count)
        return count

    def caching_allocator_delete(self, count: int) -> None:
        self.give(count)

    def synchronize(self, device: object) -> None:
        pass

    def get_device_properties(self, device: object) -> Any:
        return SimpleNamespace(uuid=self.gpu.uuid.removeprefix("GPU-"), total_memory=self.gpu.total)

    def mem_get_info(self, device: object) -> tuple[int, int]:
        return self.gpu.total - self.gpu.reserved - self.gpu.used, self.gpu.total

    def set_per_process_memory_fraction(self, fraction: float, device: object) -> None:
        self.fraction = fraction

    def reset_peak_memory_stats(self, device: object) -> None:
        self._allocated_peak, self._reserved_peak = self._allocated, self._reserved

    def memory_stats_as_nested_dict(self, device: object) -> dict[str, Any]:
        allocated = {"all": {"current": self._allocated, "peak": self._allocated_peak}}
        reserved = {"all": {"current": self._reserved, "peak": self._reserved_peak}}
        return {
            "requested_bytes": allocated,
            "allocated_bytes": allocated,
            "active_bytes": allocated,
            "reserved_bytes": reserved,
            "num_alloc_retries": self.num_alloc_retries,
        }

    def _tell(self) -> None:
        self.gpu.own = self._outside + self._reserved if self._initialized else 0
        if self.listed_as is not None and self._initialized:
            self.gpu.processes[self.listed_as] = self.gpu.own


@pytest.fixture
def gpu() -> FakeGpu:
    """An idle card."""
    return FakeGpu("GPU-11111111-2222-3333-4444-555555555555")


@pytest.fixture
def make_nvml() -> Callable[..., FakeNvml]:
    return FakeNvml


@pytest.fixture
def make_cuda() -> Callable[..., FakeCuda]:
    return FakeCuda
