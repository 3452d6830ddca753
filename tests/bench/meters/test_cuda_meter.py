"""The CUDA meter over a fake card: phases, the job's peaks, what lies outside the allocator, the cap and its
refusals."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from vrambench.bench.measure.meters import Meter
from vrambench.bench.measure.meters.cuda import CudaMeter, managed_bytes
from vrambench.bench.measure.meters.nvml import Nvml
from vrambench.methods.errors import ConfigurationError

MIB, GIB = 2**20, 2**30
DEVICE = torch.device("cuda", 0)


def meter(cuda: Any, nvml: Any | None, budget: int | None = None) -> CudaMeter:
    made = CudaMeter(
        DEVICE,
        budget,
        cuda=cuda,
        driver=lambda: Nvml(nvml) if nvml is not None else None,
        load_kernels=lambda device: None,
    )
    as_protocol: Meter = made
    assert as_protocol is made
    return made


def test_each_phase_has_its_own_peaks_and_the_job_the_largest(gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    cuda = make_cuda(gpu, listed_as=os.getpid())
    watch = meter(cuda, make_nvml(gpu))
    watch.start()
    watch.begin_phase("load", None)
    cuda.take(1_000 * MIB)
    assert watch.peak_bytes() is None
    load = watch.end_phase()
    watch.begin_phase("learn", 0)
    cuda.take(3_000 * MIB)
    assert watch.peak_bytes() == 1_000 * MIB
    cuda.give(3_000 * MIB)
    learn = watch.end_phase()
    assert watch.peak_bytes() == 4_000 * MIB, "what was held inside the phase, not what is left of it"
    cuda.empty_cache()
    watch.begin_phase("rollout", 1)
    cuda.take(500 * MIB)
    cuda.give(500 * MIB)
    rollout = watch.end_phase()
    watch.stop()
    assert [p.allocated_bytes for p in (load, learn, rollout)] == [1_000 * MIB, 4_000 * MIB, 1_500 * MIB]
    assert [p.reserved_bytes for p in (load, learn, rollout)] == [1_000 * MIB, 4_000 * MIB, 1_500 * MIB]
    assert learn.device_bytes == 4_000 * MIB + cuda.CONTEXT
    assert rollout.device_bytes == 1_500 * MIB + cuda.CONTEXT
    memory = watch.memory()
    assert memory.allocated_bytes == memory.reserved_bytes == 4_000 * MIB
    assert memory.device_bytes == 4_000 * MIB + cuda.CONTEXT
    assert memory.context_bytes == cuda.CONTEXT
    assert watch.source == "measured"


def test_peaks_of_a_phase_that_broke_off_are_readable(gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    cuda = make_cuda(gpu, listed_as=os.getpid())
    watch = meter(cuda, make_nvml(gpu))
    watch.start()
    watch.begin_phase("learn", 0)
    cuda.take(2_000 * MIB)
    cuda.give(1_500 * MIB)
    cuda.num_alloc_retries = 2
    memory = watch.memory()
    assert memory.allocated_bytes == 2_000 * MIB
    assert memory.num_alloc_retries == 2
    assert watch.end_phase().allocated_bytes == 2_000 * MIB


def test_the_allocators_retries_count_from_the_jobs_start(gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    cuda = make_cuda(gpu, listed_as=os.getpid())
    cuda.num_alloc_retries = 3
    watch = meter(cuda, make_nvml(gpu))
    watch.start()
    assert watch.memory().num_alloc_retries == 0
    cuda.num_alloc_retries = 5
    assert watch.memory().num_alloc_retries == 2


def test_the_identification_leaves_no_trace_in_the_peaks(gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    cuda = make_cuda(gpu, listed_as=os.getpid())
    watch = meter(cuda, make_nvml(gpu))
    watch.start()
    memory = watch.memory()
    assert memory.reserved_bytes == 0
    assert memory.device_bytes == memory.context_bytes == cuda.CONTEXT


def test_a_context_that_grows_is_seen_at_the_next_border(gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    cuda = make_cuda(gpu, listed_as=os.getpid())
    watch = meter(cuda, make_nvml(gpu))
    watch.start()
    watch.begin_phase("learn", 0)
    cuda.take(100 * MIB)
    cuda.grow_context(60 * MIB)
    watch.end_phase()
    assert watch.memory().context_bytes == cuda.CONTEXT + 60 * MIB


def test_in_a_container_the_devices_change_counts_and_the_note_says_so(
    gpu: Any, make_nvml: Any, make_cuda: Any
) -> None:
    gpu.others = 3_000 * MIB
    cuda = make_cuda(gpu, listed_as=None)
    watch = meter(cuda, make_nvml(gpu))
    watch.start()
    cuda.take(1_000 * MIB)
    watch.end_phase()
    assert watch.memory().device_bytes == 1_000 * MIB + cuda.CONTEXT
    assert any(
        "the device's change since before the job" in note and "2.93 GiB of others" in note for note in watch.notes()
    )


@pytest.mark.parametrize("why", ["no NVML", "unknown device", "CUDA was in use before", "memory not supported"])
def test_unknown_device_bytes_stay_unknown(why: str, gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    cuda = make_cuda(gpu, listed_as=None, initialized=why == "CUDA was in use before")
    gpu.hides_memory, gpu.millijoules = why == "memory not supported", None
    nvml = None if why == "no NVML" else make_nvml(*([] if why == "unknown device" else [gpu]))
    watch = meter(cuda, nvml, budget=8 * GIB)
    watch.start()
    cuda.take(MIB)
    peaks = watch.end_phase()
    assert (peaks.allocated_bytes, peaks.device_bytes) == (MIB, None)
    memory = watch.memory()
    assert (memory.device_bytes, memory.context_bytes) == (None, None)
    assert watch.energy_joules() is None
    assert watch.source == "measured"
    assert cuda.fraction is None
    assert any("device bytes are unknown" in note for note in watch.notes())
    assert any("budget of 8.00 GiB is not enforced" in note for note in watch.notes())
    assert any("does not tell this device's memory" in note for note in watch.notes()) == gpu.hides_memory


def test_a_device_without_a_memory_query_is_measured_by_its_process(gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    """GB10: NVML lists this process and its bytes, and has no total."""
    gpu.hides_memory = True
    cuda = make_cuda(gpu, listed_as=os.getpid())
    watch = meter(cuda, make_nvml(gpu), budget=8 * GIB)
    watch.start()
    watch.begin_phase("learn", 0)
    cuda.take(GIB)
    watch.end_phase()
    assert watch.memory().device_bytes == GIB + cuda.CONTEXT
    assert watch.source == "verified"
    assert watch.allowed_bytes == 8 * GIB - cuda.CONTEXT
    assert not [note for note in watch.notes() if "unknown" in note or "before 510" in note]


def test_the_cap_is_the_budget_less_what_lies_outside(gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    cuda = make_cuda(gpu, listed_as=os.getpid())
    watch = meter(cuda, make_nvml(gpu), budget=8 * GIB)
    watch.start()
    assert cuda.fraction is not None
    assert cuda.fraction * gpu.total == pytest.approx(8 * GIB - cuda.CONTEXT)
    assert watch.allowed_bytes == 8 * GIB - cuda.CONTEXT
    assert watch.source == "verified"
    (note,) = [note for note in watch.notes() if note.startswith("verified")]
    assert "8.00 GiB" in note
    assert "500 MiB" in note
    assert "Not emulated" in note


def test_a_job_that_outgrew_its_budget_outside_the_allocator_says_so(gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    cuda = make_cuda(gpu, listed_as=os.getpid())
    watch = meter(cuda, make_nvml(gpu), budget=8 * GIB)
    watch.start()
    watch.begin_phase("learn", 0)
    cuda.take(8 * GIB - cuda.CONTEXT)
    cuda.grow_context(300 * MIB)
    watch.end_phase()
    assert watch.memory().device_bytes == 8 * GIB + 300 * MIB
    assert any("held 300 MiB more than the budget" in note for note in watch.notes())


def test_the_cap_follows_what_loads_outside_the_allocator(gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    cuda = make_cuda(gpu, listed_as=os.getpid())
    watch = meter(cuda, make_nvml(gpu), budget=8 * GIB)
    watch.start()
    watch.begin_phase("learn", 0)
    cuda.grow_context(300 * MIB)
    watch.end_phase()
    watch.memory()
    assert watch.allowed_bytes == 8 * GIB - cuda.CONTEXT - 300 * MIB
    assert cuda.fraction * gpu.total == pytest.approx(watch.allowed_bytes)
    (note,) = [note for note in watch.notes() if note.startswith("verified")]
    assert "300 MiB of them loaded while the job ran" in note


def test_a_gpu_that_is_lost_loses_no_numbers(gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    cuda, nvml = make_cuda(gpu, listed_as=os.getpid()), make_nvml(gpu)
    watch = meter(cuda, nvml)
    watch.start()
    watch.begin_phase("learn", 0)
    cuda.take(GIB)

    def lost(*args: Any) -> Any:
        raise RuntimeError("GPU is lost")

    watch._sampler.device.processes = lost
    watch.end_phase()
    memory = watch.memory()
    assert memory.allocated_bytes == GIB
    assert memory.device_bytes == GIB + cuda.CONTEXT
    assert any("GPU is lost" in note for note in watch.notes())


def test_a_budget_beyond_the_card_is_not_verified(gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    cuda = make_cuda(gpu, listed_as=os.getpid())
    watch = meter(cuda, make_nvml(gpu), budget=80 * GIB)
    watch.start()
    assert watch.source == "measured"
    assert cuda.fraction is None
    assert any("this device offers 23.61 GiB" in note for note in watch.notes())


def test_a_budget_of_all_but_the_drivers_bookkeeping_is_not_refused(gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    gpu.others = 20 * MIB
    usable = gpu.total - gpu.reserved
    watch = meter(make_cuda(gpu, listed_as=os.getpid()), make_nvml(gpu), budget=usable)
    watch.start()
    assert watch.source == "measured"
    assert any("is not enforced" in note for note in watch.notes())


@pytest.mark.parametrize("listed", [True, False])
def test_a_budget_that_others_hold_is_refused(listed: bool, gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    gpu.others = 10 * GIB
    watch = meter(make_cuda(gpu, listed_as=os.getpid() if listed else None), make_nvml(gpu), budget=20 * GIB)
    with pytest.raises(ConfigurationError, match=r"budget: 20.00 GiB cannot be had: other processes hold 10.00 GiB"):
        watch.start()


def test_a_budget_below_the_context_is_refused(gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    watch = meter(make_cuda(gpu, listed_as=os.getpid()), make_nvml(gpu), budget=400 * MIB)
    with pytest.raises(ConfigurationError, match="less than the 500 MiB that CUDA takes"):
        watch.start()


def test_energy_is_the_devices(gpu: Any, make_nvml: Any, make_cuda: Any) -> None:
    watch = meter(make_cuda(gpu, listed_as=os.getpid()), make_nvml(gpu))
    watch.start()
    assert watch.energy_joules() == 5.0


def test_managed_bytes_are_those_of_paged_states(monkeypatch: pytest.MonkeyPatch) -> None:
    paged = [SimpleNamespace(is_paged=True, nbytes=100), SimpleNamespace(is_paged=True, nbytes=20)]
    manager = SimpleNamespace(paged_tensors=[*paged, SimpleNamespace(nbytes=7)])
    module: Any = ModuleType("bitsandbytes.functional")
    module.GlobalPageManager = SimpleNamespace(get_instance=lambda: manager)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", module)
    assert managed_bytes() == 120
    monkeypatch.delitem(sys.modules, "bitsandbytes.functional")
    assert managed_bytes() is None


def test_bitsandbytes_still_keeps_paged_states_where_we_look() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    assert managed_bytes() == 0
    assert isinstance(functional.GlobalPageManager.get_instance().paged_tensors, list)
