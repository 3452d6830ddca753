"""The CUDA meter against allocations whose sizes are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.gpu

MIB, GIB = 2**20, 2**30
Measured = Callable[[str], dict[str, Any]]

START = """
import torch
from vrambench.bench.measure.meters.cuda import CudaMeter
MIB, GIB = 2**20, 2**30
device = torch.device("cuda", 0)
meter = CudaMeter(device, BUDGET)
meter.start()

def phase(name, work):
    meter.begin_phase(name, 0)
    kept = work()
    torch.cuda.synchronize()
    peaks = meter.end_phase()
    return [peaks.allocated_bytes, peaks.reserved_bytes, peaks.device_bytes], kept

def take(count):
    return torch.empty(count, dtype=torch.uint8, device=device)
"""
FREE = START.replace("BUDGET", "None")


def test_the_allocators_numbers_are_those_of_known_allocations(measured: Measured) -> None:
    told = measured(
        FREE
        + """
result["large"], large = phase("large", lambda: take(100 * MIB))
result["small"], small = phase("small", lambda: take(1000))
del large
result["after"], _ = phase("after", lambda: None)
memory = meter.memory()
result["memory"] = memory.model_dump()
meter.stop()
"""
    )
    assert told["large"][:2] == [100 * MIB, 100 * MIB]
    assert told["small"][:2] == [100 * MIB + 1024, 102 * MIB]
    assert told["after"][:2] == [1024, 102 * MIB]
    memory = told["memory"]
    assert memory["requested_bytes"] == 100 * MIB + 1000
    assert memory["allocated_bytes"] == memory["active_bytes"] == 100 * MIB + 1024
    assert memory["reserved_bytes"] == 102 * MIB
    assert memory["num_alloc_retries"] == 0


def test_peaks_belong_to_their_phase(measured: Measured) -> None:
    told = measured(
        FREE
        + """
def passing():
    take(300 * MIB)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()

result["first"], kept = phase("first", lambda: take(50 * MIB))
result["spike"], _ = phase("spike", passing)
result["last"], _ = phase("last", lambda: None)
result["job"] = meter.memory().allocated_bytes
meter.stop()
"""
    )
    assert [told[name][0] for name in ("first", "spike", "last")] == [50 * MIB, 350 * MIB, 50 * MIB]
    assert told["last"][1] == 50 * MIB
    assert told["job"] == 350 * MIB


def test_device_bytes_move_with_an_allocation(measured: Measured) -> None:
    told = measured(
        FREE
        + """
result["empty"], _ = phase("empty", lambda: None)
result["full"], kept = phase("full", lambda: take(GIB))
memory = meter.memory()
result["context"], result["device"] = memory.context_bytes, memory.device_bytes
result["reserved"], result["notes"] = memory.reserved_bytes, meter.notes()
meter.stop()
"""
    )
    grown = told["full"][2] - told["empty"][2]
    assert abs(grown - GIB) <= 4 * MIB, told["notes"]
    assert 100 * MIB < told["context"] < 2 * GIB
    assert told["device"] >= told["reserved"] + told["context"] - 4 * MIB
    assert any("device bytes are" in note for note in told["notes"])


def test_memory_that_comes_and_goes_within_a_phase_is_sampled(measured: Measured) -> None:
    """cuFFT's work areas and the like lie outside the allocator; here plain cudaMalloc stands for them."""
    told = measured(
        FREE
        + """
import ctypes, time
runtime = torch.cuda.cudart()
path = next(line.split()[-1] for line in open("/proc/self/maps") if "libcudart" in line)
library = ctypes.CDLL(path)

def outside():
    pointer = ctypes.c_void_p()
    assert library.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(512 * MIB)) == 0
    time.sleep(1.0)
    assert library.cudaFree(pointer) == 0

result["before"], _ = phase("before", lambda: None)
result["outside"], _ = phase("outside", outside)
result["after"], _ = phase("after", lambda: None)
meter.stop()
"""
    )
    assert abs(told["outside"][2] - told["before"][2] - 512 * MIB) <= 4 * MIB
    assert told["outside"][0] == 0
    assert abs(told["after"][2] - told["before"][2]) <= 4 * MIB


def test_the_cap_runs_out_where_it_should_and_its_message_is_read(measured: Measured) -> None:
    told = measured(
        START.replace("BUDGET", "4 * GIB")
        + """
from vrambench.bench.measure.oom import parse_oom
held = []
meter.begin_phase("learn", 0)
try:
    while True:
        held.append(take(256 * MIB))
except Exception as error:
    result["oom"] = parse_oom(error).model_dump()
    result["text"] = str(error)
peaks = meter.end_phase()
result["allocated"], result["allowed"], result["source"] = peaks.allocated_bytes, meter.allowed_bytes, meter.source
result["device"], result["count"] = meter.memory().device_bytes, len(held)
meter.stop()
"""
    )
    assert told["source"] == "verified"
    assert told["allocated"] == told["count"] * 256 * MIB
    assert told["allowed"] - 256 * MIB < told["allocated"] <= told["allowed"]
    oom = told["oom"]
    assert oom["where"] == "device", told["text"]
    assert oom["asked_bytes"] == 256 * MIB, told["text"]
    missing = told["allocated"] + 256 * MIB - told["allowed"]
    assert abs(oom["missing_bytes"] - missing) <= 16 * MIB, told["text"]
    assert told["device"] <= 4 * GIB + 256 * MIB  # kernels that were loaded after the cap was set


def test_paged_states_are_managed_memory(measured: Measured) -> None:
    pytest.importorskip("bitsandbytes")
    told = measured(
        FREE
        + """
import bitsandbytes

def seen():
    torch.cuda.synchronize()
    sampler = meter._sampler
    return {"own": sampler.read(), "device": sampler.device.memory().used, "reserved": torch.cuda.memory_reserved()}

weight = torch.nn.Parameter(torch.ones(8192, 4096, device=device))
weight.grad = torch.ones_like(weight)
result["before"], result["seen_before"] = meter.memory().managed_bytes, seen()
optimizer = bitsandbytes.optim.PagedAdamW8bit([weight])
meter.begin_phase("optimizer_step", 0)
optimizer.step()
torch.cuda.synchronize()
meter.end_phase()
result["after"], result["seen_after"] = meter.memory().managed_bytes, seen()
meter.stop()
"""
    )
    assert told["before"] == 0
    assert told["after"] == 2 * 8192 * 4096


def test_the_sampling_thread_takes_less_than_a_hundredth_of_the_time(measured: Measured) -> None:
    told = measured(
        FREE
        + """
import time
before = meter._sampler.query_seconds
began = time.perf_counter()
square = torch.ones(2048, 2048, device=device)
while time.perf_counter() - began < 3:
    square @ square
    torch.cuda.synchronize()
result["share"] = (meter._sampler.query_seconds - before) / (time.perf_counter() - began)
result["samples"] = meter._sampler.samples
meter.stop()
"""
    )
    assert told["samples"] > 0
    assert told["share"] < 0.015, told


def test_energy_is_counted_or_unknown(measured: Measured) -> None:
    told = measured(
        FREE
        + """
import time
before = meter.energy_joules()
began = time.perf_counter()
square = torch.ones(4096, 4096, device=device)
while time.perf_counter() - began < 1:
    square @ square
    torch.cuda.synchronize()
result["joules"] = None if before is None else meter.energy_joules() - before
meter.stop()
"""
    )
    if told["joules"] is None:
        pytest.skip("this GPU does not count energy")
    assert 5 < told["joules"] < 5_000


def test_the_environment_of_the_parent_leaves_cuda_alone(measured: Measured) -> None:
    told = measured(
        """
import torch
from vrambench.bench.machine.environment import describe_environment
result["environment"] = describe_environment("cuda")
result["touched"] = torch.cuda.is_initialized()
properties = torch.cuda.get_device_properties(0)
result["name"], result["total"] = properties.name, properties.total_memory
"""
    )
    assert told["touched"] is False
    gpu = told["environment"]["gpu"]
    assert gpu["name"] == told["name"]
    assert abs(gpu["total_bytes"] - told["total"]) < 2 * GIB
    assert told["total"] <= gpu["total_bytes"]
