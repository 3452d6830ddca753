"""Out of memory: what ran out, what was asked for and what was missing, read from the error that says so.

    try:
        job.step(0)
    except BaseException as error:
        oom = parse_oom(error)          # None: it was some other error

Sizes are in bytes and None where the message does not say. CUDA's allocator writes its numbers with two decimals
(from 1 GiB on that is 5 MiB exact), and what it asks for is a whole segment, rounded up to 2 or 20 MiB.
"""

from __future__ import annotations

import contextlib
import errno
import re
import traceback
from pathlib import Path

from vrambench.bench.results.records import OutOfMemory

UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
SIZE = r"(\d+(?:\.\d+)?) (bytes|B|KiB|MiB|GiB|TiB|PiB)"

# torch's c10/cuda/CUDACachingAllocator.cpp, 2.1 and later; "HIP" on AMD, without a prefix where the allocator is
# shared.
TRIED = re.compile(rf"out of memory\. Tried to allocate {SIZE}", re.IGNORECASE)
FREE = re.compile(rf"of which {SIZE} is free")
ALLOWED = re.compile(rf"{SIZE} allowed")
ALLOCATED = re.compile(rf"Of the allocated memory {SIZE} is allocated by PyTorch")
UNALLOCATED = re.compile(rf"{SIZE} is reserved by PyTorch but unallocated")

# Libraries that take device memory beside the allocator say no sizes.
DEVICE = re.compile(
    r"CUDA error: out of memory|CUDA driver error: out of memory|cudaErrorMemoryAllocation"
    r"|CU(?:BLAS|SOLVER|SPARSE)_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    # A thread's first product on a full card, and NCCL's buffers.
    r"|CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate|Cuda failure 2 'out of memory'"
)

# torch's c10/core/impl/alloc_cpu.cpp, numpy's _ArrayMemoryError, and the C++ library.
CPU_ALLOCATOR = re.compile(r"DefaultCPUAllocator: [^:]*: you tried to allocate (\d+) bytes")
NUMPY = re.compile(rf"Unable to allocate {SIZE} for an array")
BAD_ALLOC = re.compile(r"std::bad_alloc")

# bitsandbytes' native code prints this and ends the process.
NATIVE_EXIT = re.compile(r"^Error out of memory at line \d+ in file ")


def parse_oom(error: BaseException) -> OutOfMemory | None:
    """What ran out, from `error` or from the error that it was raised from; None where neither is about memory."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        found = _parse(current)
        if found is not None:
            return found
        current = current.__cause__
    return None


def _parse(error: BaseException) -> OutOfMemory | None:
    import torch  # a job has it; whoever waits for one does without

    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or TRIED.search(text):
        return _device(text)
    host = CPU_ALLOCATOR.search(text)
    if host:
        return OutOfMemory(where="host", asked_bytes=int(host[1]))
    if isinstance(error, MemoryError):
        return OutOfMemory(where="host", asked_bytes=_size(NUMPY, text))
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return OutOfMemory(where="host")
    if not isinstance(error, RuntimeError):
        return None
    if DEVICE.search(text):
        return OutOfMemory(where="host" if _pinning(error) else "device")
    return OutOfMemory(where="host") if BAD_ALLOC.search(text) else None


def _pinning(error: BaseException) -> bool:
    """Whether it was host memory that was to be pinned: the driver calls both the same."""
    frames = traceback.extract_tb(error.__traceback__)
    return any("pin_memory" in frame.name or ".pin_memory(" in (frame.line or "") for frame in frames)


def _device(text: str) -> OutOfMemory:
    """Under a cap, what is missing is what the cap would have to be larger by; else what the card would have to have
    more free."""
    asked = _size(TRIED, text)
    free, allowed = _size(FREE, text), _size(ALLOWED, text)
    allocated, unallocated = _size(ALLOCATED, text), _size(UNALLOCATED, text)
    lacking = []
    if asked is not None and allowed is not None and allocated is not None and unallocated is not None:
        lacking.append(asked + allocated + unallocated - allowed)
    if asked is not None and free is not None:
        lacking.append(asked - free)
    missing = max(lacking, default=0)
    return OutOfMemory(where="device", asked_bytes=asked, missing_bytes=missing if missing > 0 else None)


def _size(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    return round(float(match[1]) * UNITS[match[2]]) if match else None


def oom_kills() -> int:
    """How many processes the kernel's out-of-memory killer has ended in this container or on this machine."""
    for file in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        with contextlib.suppress(OSError, ValueError):
            for line in Path(file).read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0
