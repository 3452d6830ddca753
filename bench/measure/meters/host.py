"""Host memory of this process: what is resident, its high-water mark, what is pinned, and a limit that makes it run
out.

Resident memory is read from the kernel's own high-water mark (`VmHWM`), never sampled: a peak between two samples
would be missed. A job that was forked begins with its server's pages resident (the interpreter and the imported
libraries, which a process of its own would hold as well); they count. What must not count is an earlier peak:
`reset_peak_rss` puts the mark back to what is resident now. All of it is Linux's; elsewhere the numbers are None.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

PROC = Path("/proc/self")
CGROUP = Path("/sys/fs/cgroup")

# A version 1 control group without a limit says the largest page-aligned signed integer.
NO_LIMIT = 2**62


def status_bytes(field: str, proc: Path = PROC) -> int | None:
    """One of the memory lines of /proc/self/status (`VmRSS`, `VmHWM`, `VmData`) in bytes; None where the system has
    none."""
    try:
        lines = (proc / "status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None


def peak_rss_bytes() -> int | None:
    """The most bytes of this process that were resident at once since it began, or since `reset_peak_rss`."""
    return status_bytes("VmHWM")


def reset_peak_rss(proc: Path = PROC) -> bool:
    """Sets the high-water mark to what is resident now; False where the system does not permit it."""
    try:
        (proc / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def pinned_peak_bytes(cuda: Any) -> int | None:
    """The most page-locked host bytes that torch's host allocator held, cached blocks included; `cuda` is `torch.cuda`.

    None before CUDA is initialised and in versions of torch without these statistics. Blocks are powers of two.
    """
    if not cuda.is_initialized() or not hasattr(cuda, "host_memory_stats"):
        return None
    return cuda.host_memory_stats().get("allocated_bytes.peak")


def limit_host_memory(budget_bytes: int) -> int:
    """Lets this process take `budget_bytes` more than it holds now, and no more: gives the limit that was set, in
    bytes.

    Sets RLIMIT_DATA to `VmData` (private writable mappings: heap, large allocations, thread stacks) plus the budget,
    so a job over its budget meets a real allocation failure. Threads that are started later pay their stacks (8 MiB
    of address space each) out of the budget: start thread pools before. Shared memory and mapped files are outside
    it. Raises OSError where the system cannot say what the process holds, or forbids the limit.
    """
    held = status_bytes("VmData")
    if held is None:
        raise OSError("this system does not say how much memory a process holds (no VmData in /proc/self/status)")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = held + budget_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    return limit


def room_bytes() -> int | None:
    """What this process may still take under its limit (`limit_host_memory`); None where there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    held = status_bytes("VmData")
    return None if soft == resource.RLIM_INFINITY or held is None else max(0, soft - held)


def container_limit_bytes(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """The tightest memory limit of this process' control group and of those above it; None where there is none.

    Reads version 2 (`memory.max`) and version 1 (`memory/.../memory.limit_in_bytes`).
    """
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    limits = []
    for line in lines or ["0::/"]:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = cgroup, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroup / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / path.strip("/")
        for place in (folder, *folder.parents):
            limits.append(_limit(place / name))
            if place == root:
                break
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _limit(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < NO_LIMIT else None
