"""Where a run ran: the hardware and software behind its numbers, as written into `run.json` and each result.

    describe_environment("cuda:0")      # a JSON-able mapping

Nothing here initialises CUDA in this process: NVML answers for the GPU, package versions come from their metadata.
Nothing names a person, a path, a host or a device's serial number: these files are published.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from vrambench.bench.measure.meters.host import container_limit_bytes
from vrambench.bench.measure.meters.nvml import Nvml, NvmlDevice
from vrambench.bench.results.comparable import ALLOCATION

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = (
    "vrambench",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "deepspeed",
    "galore-torch",
    "torchao",
    "apollo-torch",
    "schedulefree",
    "torch-optimi",
    "accelerate",
    "triton",
    "nvidia-ml-py",
)

# What changes how PyTorch allocates, or which device a job sees.
VARIABLES = (
    *ALLOCATION,
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_MODULE_LOADING",
    "CUDA_LAUNCH_BLOCKING",
    "OMP_NUM_THREADS",
)
# CUDA_VISIBLE_DEVICES may name a card by its serial number.
SERIAL = re.compile(r"\b(GPU|MIG)-[0-9A-Fa-f-]+")

CONTAINER_FILES = (Path("/.dockerenv"), Path("/run/.containerenv"))
CONTAINER_GROUPS = re.compile(r"docker|kubepods|containerd|libpod|lxc")

# torch numbers GPUs by speed, NVML by address: with several, a process that may initialise CUDA must say which one is
# meant.
ASK_UUID = "import sys, torch; print(torch.cuda.get_device_properties(int(sys.argv[1])).uuid)"
ASK_SECONDS = 60


def describe_environment(device: str, *, driver: Callable[[], Nvml | None] = Nvml.open) -> dict[str, Any]:
    """The environment of jobs on `device` (`cpu`, `cuda`, `cuda:N`, `auto`), None for what this machine does not say.

    `gpu` is None for a job on the CPU. Its `key` is a name fit for a folder, `usable_bytes` what the driver leaves to
    processes. `variables` holds only those that are set. `git` is the checkout that vrambench runs from, None where
    it was installed from a package.
    """
    library = driver() if device != "cpu" else None
    gpu = describe_gpu(library, device) if library is not None else None
    memory = psutil.virtual_memory()
    cpu = cpu_model()
    return {
        "device": "cpu" if device == "cpu" or (device == "auto" and gpu is None) else "cuda",
        "key": gpu["key"] if gpu else slug(cpu or platform.machine()),
        "gpu": gpu,
        "torch_cuda": torch_cuda(),
        "cpu": {
            "model": cpu,
            "machine": platform.machine(),
            "cores": psutil.cpu_count(logical=False),
            "threads": usable_threads(),
        },
        "ram_bytes": memory.total,
        "ram_limit_bytes": container_limit_bytes(),
        "python": platform.python_version(),
        "os": operating_system(),
        "container": in_container(),
        "packages": {name: version(name) for name in PACKAGES},
        "variables": {name: SERIAL.sub(r"\1-*", os.environ[name]) for name in VARIABLES if name in os.environ},
        "git": git_state(ROOT),
    }


def describe_gpu(library: Nvml, device: str) -> dict[str, Any] | None:
    """The GPU that torch calls `device`; None where there is none, or it cannot be told which one that is. Its bytes are None where
    the driver does not tell them."""
    uuid = find_uuid(library.uuids(), device)
    if uuid is None:
        return None
    try:
        found: NvmlDevice = library.device(uuid)
    except LookupError:
        return None
    memory, capability = found.memory(), found.compute_capability
    return {
        "name": found.name,
        "key": slug(found.name),
        "compute_capability": None if capability is None else f"{capability[0]}.{capability[1]}",
        "total_bytes": None if memory is None else memory.total,
        "usable_bytes": None if memory is None or memory.reserved is None else memory.total - memory.reserved,
        "driver": library.driver_version(),
        "driver_cuda": library.cuda_version(),
    }


def find_uuid(uuids: list[str], device: str) -> str | None:
    """Which of NVML's `uuids` torch means by `device`: told apart without CUDA where there is no choice, else by
    asking torch in a process of its own."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return None
    if len(uuids) == 1:
        return uuids[0]
    index = device.partition(":")[2] or "0"
    named = [part.strip() for part in (visible or "").split(",")]
    if int(index) < len(named) and named[int(index)].startswith(("GPU-", "MIG-")):
        prefix = named[int(index)]
        matching = [uuid for uuid in uuids if uuid.startswith(prefix)]
        return matching[0] if len(matching) == 1 else prefix
    if not uuids:
        return None
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_properties(int(index)).uuid)
    command = [sys.executable, "-P", "-c", ASK_UUID, index]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() or None


def torch_cuda() -> str | None:
    """The version of CUDA that torch was built with, read from its own file: importing torch takes seconds and 300 MB."""
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    told = runpy.run_path(str(Path(found.origin).parent / "version.py"))["cuda"]
    assert told is None or isinstance(told, str)
    return told


def version(package: str) -> str | None:
    """The installed version of a distribution, without importing it; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def slug(name: str) -> str:
    """A name fit for a folder or a key: `NVIDIA H100 80GB HBM3` -> `nvidia-h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The processor's own name; None where the system does not tell it."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return platform.processor() or None
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or None


def usable_threads() -> int:
    """Logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def operating_system() -> str:
    """Distribution and kernel: `Debian GNU/Linux 12, Linux 6.1.0`."""
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        name = ""
    # The rest of a kernel's release is whatever the one who built it wrote there.
    release = re.match(r"[\d.]*\d", platform.release())
    kernel = f"{platform.system()} {release[0] if release else ''}".strip()
    return f"{name}, {kernel}" if name else kernel


def in_container(marks: tuple[Path, ...] = CONTAINER_FILES, groups: Path = Path("/proc/1/cgroup")) -> bool:
    """Whether this process seems to run in a container, by the marks that container engines leave."""
    if any(mark.exists() for mark in marks) or "KUBERNETES_SERVICE_HOST" in os.environ:
        return True
    try:
        return CONTAINER_GROUPS.search(groups.read_text()) is not None
    except OSError:
        return False


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout at `root` and whether its tracked files were changed; None where `root` is no checkout's
    top."""
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changed)}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
