"""Out-of-memory errors as PyTorch, NumPy and the C++ library word them, read back into numbers."""

from __future__ import annotations

import errno

import pytest
import torch

from vrambench.bench.measure.oom import parse_oom
from vrambench.bench.results.records import OutOfMemory

MIB, GIB = 2**20, 2**30

ADVICE = (
    " If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid"
    " fragmentation.  See documentation for Memory Management "
    " (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
)

# As the allocator wrote them on real cards (torch 2.5 to 2.13), one for each form that a message can take.
CARD_FULL = (
    "CUDA out of memory. Tried to allocate 22.78 GiB. GPU 0 has a total capacity of 31.47 GiB of which 12.73 GiB is"
    " free. Including non-PyTorch memory, this process has 18.73 GiB memory in use. Of the allocated memory 9.08 GiB is"
    " allocated by PyTorch, and 9.35 GiB is reserved by PyTorch but unallocated." + ADVICE
)
CAPPED = (
    "CUDA out of memory. Tried to allocate 250.00 MiB. GPU 0 has a total capacity of 79.19 GiB of which 2.07 GiB is"
    " free. Including non-PyTorch memory, this process has 77.11 GiB memory in use. 75.23 GiB allowed; Of the allocated"
    " memory 74.23 GiB is allocated by PyTorch, and 943.54 MiB is reserved by PyTorch but unallocated." + ADVICE
)
CAPPED_WITH_OTHERS = (
    "CUDA out of memory. Tried to allocate 996.00 MiB. GPU 0 has a total capacity of 44.43 GiB of which 9.06 GiB is"
    " free. Process 2102129 has 17.54 GiB memory in use. Including non-PyTorch memory, this process has 17.81 GiB"
    " memory in use. 17.69 GiB allowed; Of the allocated memory 17.44 GiB is allocated by PyTorch, and 59.88 MiB is"
    " reserved by PyTorch but unallocated." + ADVICE
)
CAP_OUT_OF_REACH = (
    "CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of 191.69 GiB of which 0 bytes is"
    " free. 50.00 GiB allowed; Of the allocated memory 9.58 GiB is allocated by PyTorch, and 12.00 MiB is reserved by"
    " PyTorch but unallocated." + ADVICE
)
PRIVATE_POOLS = (
    "HIP out of memory. Tried to allocate 76.00 MiB. GPU 0 has a total capacity of 255.69 GiB of which 252.82 GiB is"
    " free. 1.20 GiB allowed; Of the allocated memory 1.14 GiB is allocated by PyTorch, with 17.00 MiB allocated in"
    " private pools (e.g., HIP Graphs), and 18.63 MiB is reserved by PyTorch but unallocated." + ADVICE
)
SHARED_ALLOCATOR = (
    "Out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 8.00 GiB of which 12.00 MiB is free. Of"
    " the allocated memory 7.10 GiB is allocated by PyTorch, and 1.00 MiB is reserved by PyTorch but unallocated."
)
FRAGMENTED = (
    "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 23.64 GiB of which 64.00 MiB is"
    " free. Of the allocated memory 6.22 GiB is allocated by PyTorch, and 31.80 MiB is reserved by PyTorch but"
    " unallocated."
)


def gib(count: float) -> int:
    return round(count * GIB)


def mib(count: float) -> int:
    return round(count * MIB)


@pytest.mark.parametrize(
    ("message", "asked", "missing"),
    [
        (CARD_FULL, gib(22.78), gib(22.78) - gib(12.73)),
        (CAPPED, 250 * MIB, 250 * MIB + gib(74.23) + mib(943.54) - gib(75.23)),
        (CAPPED_WITH_OTHERS, 996 * MIB, 996 * MIB + gib(17.44) + mib(59.88) - gib(17.69)),
        (CAP_OUT_OF_REACH, 512 * MIB, 512 * MIB),
        (PRIVATE_POOLS, 76 * MIB, 76 * MIB + gib(1.14) + mib(18.63) - gib(1.20)),
        (SHARED_ALLOCATOR, 20 * MIB, 8 * MIB),
        (FRAGMENTED, 2 * MIB, None),
    ],
    ids=[
        "card-full",
        "capped",
        "capped-with-others",
        "cap-out-of-reach",
        "private-pools",
        "shared-allocator",
        "fragmented",
    ],
)
def test_the_caching_allocators_messages(message: str, asked: int, missing: int | None) -> None:
    expected = OutOfMemory(where="device", asked_bytes=asked, missing_bytes=missing)
    assert parse_oom(torch.OutOfMemoryError(message)) == expected
    assert parse_oom(RuntimeError(message)) == expected


def test_what_is_missing_under_a_cap_is_small_when_the_cap_was_nearly_kept() -> None:
    oom = parse_oom(torch.OutOfMemoryError(CAPPED))
    assert oom is not None
    assert oom.missing_bytes is not None
    assert 0 < oom.missing_bytes < 250 * MIB


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    ],
)
def test_libraries_beside_the_allocator_say_no_sizes(message: str) -> None:
    assert parse_oom(RuntimeError(message)) == OutOfMemory(where="device")


def test_the_cpu_allocators_real_message() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert parse_oom(caught.value) == OutOfMemory(where="host", asked_bytes=2**50)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (MemoryError(), None),
        (MemoryError("std::bad_alloc"), None),
        (RuntimeError("std::bad_alloc"), None),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), None),
        (MemoryError("Unable to allocate 37.3 GiB for an array with shape (5,) and data type float64"), gib(37.3)),
    ],
)
def test_the_hosts_other_ways_to_run_out(error: BaseException, asked: int | None) -> None:
    assert parse_oom(error) == OutOfMemory(where="host", asked_bytes=asked)


def test_the_error_that_an_error_was_raised_from_counts() -> None:
    outer = RuntimeError("the engine stopped")
    outer.__cause__ = torch.OutOfMemoryError(CARD_FULL)
    oom = parse_oom(outer)
    assert oom is not None
    assert oom.where == "device"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("out of memory is what this book is about"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_other_errors_are_not_about_memory(error: BaseException) -> None:
    assert parse_oom(error) is None


def test_host_memory_that_could_not_be_pinned_is_the_host_s() -> None:
    class Buffer:
        def pin_memory(self) -> None:
            raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(RuntimeError) as pinning:
        Buffer().pin_memory()
    assert parse_oom(pinning.value) == OutOfMemory(where="host")
    with pytest.raises(RuntimeError) as launching:
        raise RuntimeError("CUDA error: out of memory")
    assert parse_oom(launching.value) == OutOfMemory(where="device")
