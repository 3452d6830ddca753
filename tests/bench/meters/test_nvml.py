"""NVML's books: the right device, the right process, and peaks between two looks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from vrambench.bench.measure.meters import nvml as nvml_module
from vrambench.bench.measure.meters.nvml import Nvml, Sampler

MIB = 2**20
ME = 4242


def sampler(nvml: Any, gpu: Any, *, before: bool = True, period: float = 0.001) -> Sampler:
    device = Nvml(nvml).device(gpu.uuid)
    return Sampler(device, device.baseline() if before else None, process_id=ME, period_seconds=period)


def grow(gpu: Any, pid: int | None, count: int = 64 * MIB) -> Callable[[], Callable[[], None]]:
    """What a job does to be identified: takes memory that NVML books to `pid`."""

    def add(amount: int) -> None:
        gpu.own += amount
        if pid is not None:
            gpu.processes[pid] = (gpu.processes.get(pid) or 0) + amount

    def take() -> Callable[[], None]:
        add(count)
        return lambda: add(-count)

    return take


def test_a_device_is_found_by_uuid_never_by_index(gpu: Any, make_nvml: Any) -> None:
    other = replace(gpu, uuid="GPU-ffffffff-0000-0000-0000-000000000000", name="Other")
    driver = Nvml(make_nvml(other, gpu))
    assert driver.device(gpu.uuid.removeprefix("GPU-")).name == gpu.name
    assert driver.device(other.uuid).name == "Other"
    assert driver.uuids() == [other.uuid, gpu.uuid]
    with pytest.raises(LookupError, match="no GPU with the UUID"):
        driver.device("99999999-0000-0000-0000-000000000000")


def test_a_mig_slice_is_found_by_its_uuid(gpu: Any, make_nvml: Any) -> None:
    gpu.uuid = "MIG-" + gpu.uuid.removeprefix("GPU-")
    assert Nvml(make_nvml(gpu)).device(gpu.uuid.removeprefix("MIG-")).uuid == gpu.uuid


def test_what_the_driver_reserves_is_not_in_use(gpu: Any, make_nvml: Any) -> None:
    gpu.others = 100 * MIB
    memory = Nvml(make_nvml(gpu)).device(gpu.uuid).memory()
    assert (memory.used, memory.reserved) == (100 * MIB, gpu.reserved)
    assert memory.free == memory.total - memory.used - gpu.reserved


def test_an_old_driver_cannot_tell_them_apart(gpu: Any, make_nvml: Any) -> None:
    gpu.hides_versioned, gpu.others = True, 100 * MIB
    memory = Nvml(make_nvml(gpu)).device(gpu.uuid).memory()
    assert (memory.used, memory.reserved) == (100 * MIB + gpu.reserved, None)


def test_a_device_may_have_no_memory_query_at_all(gpu: Any, make_nvml: Any) -> None:
    gpu.hides_memory = True
    driver = Nvml(make_nvml(gpu))
    assert driver.device(gpu.uuid).memory() is None
    assert driver.snapshot()[gpu.uuid].used is None
    watch = sampler(make_nvml(gpu), gpu)
    assert (watch.accounting, watch.read(), watch.peak_bytes) == (None, None, None)


def test_a_memory_query_that_fails_otherwise_is_an_error(gpu: Any, make_nvml: Any) -> None:
    nvml = make_nvml(gpu)

    def lost(*args: Any, **kwargs: Any) -> Any:
        raise nvml.NVMLError("GPU is lost")

    nvml.nvmlDeviceGetMemoryInfo = lost
    with pytest.raises(nvml.NVMLError, match="GPU is lost"):
        Nvml(nvml).device(gpu.uuid).memory()


def test_a_gpu_that_does_not_answer_keeps_no_other_from_being_seen(gpu: Any, make_nvml: Any) -> None:
    other = replace(gpu, uuid="GPU-ffffffff-0000-0000-0000-000000000000")
    nvml = make_nvml(other, gpu)
    answer = nvml.nvmlDeviceGetMemoryInfo

    def partly(asked: Any, **options: Any) -> Any:
        if asked is other:
            raise nvml.NVMLError("GPU is lost")
        return answer(asked, **options)

    nvml.nvmlDeviceGetMemoryInfo = partly
    assert list(Nvml(nvml).snapshot()) == [gpu.uuid]


def test_the_drivers_library_calls_its_errors_as_the_fake_does() -> None:
    pynvml = pytest.importorskip("pynvml")
    assert issubclass(pynvml.NVMLError_NotSupported, pynvml.NVMLError)
    assert type(pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)) is pynvml.NVMLError_NotSupported


def test_versions_and_energy_in_our_units(gpu: Any, make_nvml: Any) -> None:
    driver = Nvml(make_nvml(gpu))
    assert (driver.driver_version(), driver.cuda_version()) == ("580.159.04", "13.0")
    assert driver.device(gpu.uuid).energy_joules() == 5.0
    gpu.millijoules = None
    assert driver.device(gpu.uuid).energy_joules() is None


def test_the_jobs_own_process_is_counted_alone(gpu: Any, make_nvml: Any) -> None:
    gpu.others, gpu.processes = 3_000 * MIB, {7: 3_000 * MIB}
    watch = sampler(make_nvml(gpu), gpu)
    gpu.own, gpu.processes[ME] = 500 * MIB, 500 * MIB
    watch.identify(grow(gpu, ME))
    gpu.others = 9_000 * MIB
    assert watch.accounting == "process"
    assert watch.read() == 500 * MIB


def test_where_no_process_is_shown_the_devices_change_counts(gpu: Any, make_nvml: Any) -> None:
    gpu.others = 3_000 * MIB
    watch = sampler(make_nvml(gpu), gpu)
    gpu.own = 500 * MIB
    watch.identify(grow(gpu, None))
    assert watch.accounting == "device"
    assert watch.read() == 500 * MIB


def test_an_id_of_another_namespace_that_looks_like_ours_is_not_believed(gpu: Any, make_nvml: Any) -> None:
    gpu.others, gpu.processes = 3_000 * MIB, {ME: 3_000 * MIB}
    watch = sampler(make_nvml(gpu), gpu)
    gpu.own = 500 * MIB
    watch.identify(grow(gpu, None))
    assert watch.accounting == "device"
    assert watch.read() == 500 * MIB


def test_our_entry_under_another_namespaces_id_is_found_by_its_growth(gpu: Any, make_nvml: Any) -> None:
    gpu.others, gpu.processes = 3_000 * MIB, {ME: 3_000 * MIB}
    watch = sampler(make_nvml(gpu), gpu)
    gpu.own, gpu.processes[31337] = 500 * MIB, 500 * MIB
    watch.identify(grow(gpu, 31337))
    assert watch.accounting == "process"
    assert watch.read() == 500 * MIB


def test_bytes_that_the_system_keeps_from_us_are_not_taken_for_none(gpu: Any, make_nvml: Any) -> None:
    watch = sampler(make_nvml(gpu), gpu)
    gpu.own, gpu.processes = 500 * MIB, {ME: None}
    watch.identify(grow(gpu, None))
    assert watch.accounting == "device"


def test_without_a_look_before_and_without_a_process_nothing_is_known(gpu: Any, make_nvml: Any) -> None:
    watch = sampler(make_nvml(gpu), gpu, before=False)
    watch.identify(grow(gpu, None))
    assert watch.accounting is None
    assert watch.read() is None
    assert watch.peak_bytes is None


def test_a_peak_is_kept_until_the_reset(gpu: Any, make_nvml: Any) -> None:
    watch = sampler(make_nvml(gpu), gpu)
    for used in (100, 900, 300):
        gpu.own = used * MIB
        watch.read()
    assert watch.peak_bytes == 900 * MIB
    watch.reset()
    assert watch.peak_bytes is None
    watch.read()
    assert watch.peak_bytes == 300 * MIB


def test_the_thread_sees_what_comes_and_goes_and_ends_when_told(gpu: Any, make_nvml: Any) -> None:
    watch = sampler(make_nvml(gpu), gpu)
    watch.reset()
    watch.start()
    gpu.own = 800 * MIB
    deadline = time.monotonic() + 5
    while watch.peak_bytes != 800 * MIB and time.monotonic() < deadline:
        time.sleep(0.002)
    gpu.own = 0
    watch.stop()
    assert watch.peak_bytes == 800 * MIB
    asked = gpu.queries
    time.sleep(0.02)
    assert gpu.queries == asked


class Clock:
    """The time as the sampler reads it; a query of the driver takes `cost` of it, a wait what it asks for, `waits` times."""

    def __init__(self, nvml: Any, monkeypatch: pytest.MonkeyPatch, cost: float, waits: int = 0) -> None:
        self.now, self.cost, self.left = 100.0, cost, waits
        self.waited: list[float] = []
        self._answer = nvml.nvmlDeviceGetMemoryInfo
        nvml.nvmlDeviceGetMemoryInfo = self._query
        monkeypatch.setattr(nvml_module, "time", self)

    def perf_counter(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.waited.append(seconds)
        self.now += seconds
        self.left -= 1
        return self.left < 0

    def _query(self, *arguments: Any, **options: Any) -> Any:
        self.now += self.cost
        return self._answer(*arguments, **options)


def test_a_slow_driver_is_asked_less_often(gpu: Any, make_nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query of 2 ms is to take 0.5 % of the thread's time."""
    nvml = make_nvml(gpu)
    watch = sampler(nvml, gpu, period=0.001)
    clock = Clock(nvml, monkeypatch, cost=0.002, waits=3)
    watch._ended = clock  # type: ignore[assignment]
    watch._run()
    assert clock.waited == pytest.approx([0.001, 0.4, 0.4, 0.4])
    assert watch.samples == 3
    assert watch.query_seconds == pytest.approx(0.006)


def test_borders_inside_steps_ask_no_more_than_their_share(
    gpu: Any, make_nvml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query of 2 ms may be asked every 0.4 s."""
    nvml = make_nvml(gpu)
    watch = sampler(nvml, gpu)
    clock = Clock(nvml, monkeypatch, cost=0.002)
    assert watch.read_if_due() == 0
    clock.now += 0.39
    assert watch.read_if_due() is None
    clock.now += 0.02
    assert watch.read_if_due() == 0
    assert watch.read_if_due() is None
    gpu.own = 5 * MIB
    assert watch.read() == 5 * MIB, "whoever must know asks"


def test_a_driver_that_fails_ends_the_sampling_and_says_so(gpu: Any, make_nvml: Any) -> None:
    nvml = make_nvml(gpu)
    watch = sampler(nvml, gpu)

    def lost(*args: Any, **kwargs: Any) -> Any:
        raise nvml.NVMLError("GPU is lost")

    nvml.nvmlDeviceGetMemoryInfo = lost
    watch.start()
    deadline = time.monotonic() + 5
    while watch.failure is None and time.monotonic() < deadline:
        time.sleep(0.002)
    watch.stop()
    assert watch.failure == "NVMLError: GPU is lost"
