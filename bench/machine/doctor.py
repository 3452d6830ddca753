"""What this machine can run, what it cannot, and what to do about it.

    for finding in examine():
        print(finding.name, finding.state, finding.seen, finding.consequence, finding.remedy)

Each finding is about one thing that cells need, was seen rather than assumed (libraries are loaded, kernels are called, each
in a process of its own and for a limited time), and says what it means for the matrix.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from vrambench.bench.machine import compilers
from vrambench.bench.machine.environment import describe_environment, version
from vrambench.bench.machine.probes import DTYPES, KERNELS, PROBES, Reply, run
from vrambench.bench.measure.meters.host import container_limit_bytes
from vrambench.bench.measure.meters.nvml import Nvml

State = Literal["ok", "missing", "limited"]

PROBE_SECONDS = 120.0
PYTHON = (3, 11)
GIB = 2**30

# Below these, something is likely to fail.
FREE_DISK = 2 * GIB
FREE_SHM = 64 * 2**20
IDLE_GPU = GIB

# Master weights, two moments and a gradient, in fp32, for each parameter that ZeRO-2 steps on the host.
OFFLOAD_BYTES = 16

Runner = Callable[[str, float], Reply]


@dataclass(frozen=True)
class Diagnosis:
    """`seen`: what is there. `consequence`: what that means for cells. `remedy`: what to install or do, if that would help."""

    name: str
    state: State
    seen: str
    consequence: str
    remedy: str | None = None


@dataclass(frozen=True)
class Machine:
    """What the checks look at: every probe's answer, the environment, and the folder that runs are written to."""

    probes: Mapping[str, Reply]
    environment: Mapping[str, Any]
    out: Path

    @property
    def gpu(self) -> bool:
        """Whether torch really used a GPU."""
        return bool(self.probes["torch"].told.get("cuda"))


def examine(
    out: Path = Path("runs"), *, probe: Runner = run, driver: Callable[[], Nvml | None] = Nvml.open
) -> list[Diagnosis]:
    """Every finding, in order. Takes some ten seconds, at most `PROBE_SECONDS` and a little."""
    with ThreadPoolExecutor(max_workers=max(2, min(len(PROBES), os.cpu_count() or 1))) as pool:
        asked = {name: pool.submit(probe, name, PROBE_SECONDS) for name in PROBES}
        environment = _environment(driver)
        machine = Machine({name: answer.result() for name, answer in asked.items()}, environment, out)
    return [_guarded(name, check, machine) for name, check in CHECKS.items()]


def prepare_offloads(tell: Callable[[str], None] = lambda text: None) -> dict[str, str]:
    """Does once what offload values want done before anything is timed; gives, by name, what was said where it cannot be done.
    `tell` hears of each before it begins."""
    from vrambench.methods.device import get_device
    from vrambench.methods.offload import OFFLOADS

    if get_device("auto").kind == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    wanted: dict[Callable[[], None], list[str]] = {}
    for name, value in OFFLOADS.values().items():
        if value.prepare is not None:
            wanted.setdefault(value.prepare, []).append(name)
    failures: dict[str, str] = {}
    for prepare, names in wanted.items():
        tell(f"preparing offload {', '.join(names)}")
        try:
            prepare()
        except Exception as error:  # a compiler's, a library's: the report tells of it, and of all else
            failures |= dict.fromkeys(names, f"{type(error).__name__}: {error}".strip().splitlines()[0][:200])
    return failures


def with_failures(findings: list[Diagnosis], failures: Mapping[str, str]) -> list[Diagnosis]:
    """The findings, and one for each offload value that could not be prepared, by name, with what was said. Preparing compiles
    CPUAdam: what is known of it otherwise is then no longer true."""
    told = [finding for finding in findings if not failures or finding.name != "CPUAdam"]
    return told + [
        Diagnosis(f"offload {name}", "missing", f"cannot be prepared: {said}", f"{name} cells cannot run")
        for name, said in failures.items()
    ]


def as_document(findings: list[Diagnosis], environment: Mapping[str, Any]) -> dict[str, Any]:
    """The one JSON document of `vrambench doctor --json`."""
    return {"schema": 1, "environment": dict(environment), "findings": [asdict(finding) for finding in findings]}


def as_rows(findings: list[Diagnosis]) -> list[tuple[str, str, str, str]]:
    """Name, state, what was seen, and what follows (with what to do), for a table."""
    return [
        (finding.name, finding.state, finding.seen, "; ".join(filter(None, (finding.consequence, finding.remedy))))
        for finding in findings
    ]


def check_python(machine: Machine) -> Diagnosis:
    seen = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < PYTHON:
        return Diagnosis("Python", "missing", seen, "nothing runs", f"install Python {PYTHON[0]}.{PYTHON[1]} or newer")
    if platform.system() != "Linux":
        return Diagnosis("Python", "limited", seen, "host memory is not measured, and CPU budgets are not enforced")
    return Diagnosis("Python", "ok", seen, "everything runs")


def check_torch(machine: Machine) -> Diagnosis:
    asked = machine.probes["torch"]
    if asked.failure:
        remedy = "reinstall torch: https://pytorch.org/get-started/locally"
        return Diagnosis("torch", "missing", asked.failure, "no cell runs, nothing is predicted", remedy)
    build = asked.told["cuda_build"]
    seen = f"torch {asked.told['version']}, " + (f"CUDA {build} build" if build else "CPU build")
    if machine.gpu:
        return Diagnosis("torch", "ok", seen, "cells run on the GPU")
    if machine.environment.get("gpu") and not build:
        return Diagnosis(
            "torch", "limited", seen, "there is a GPU, but this build cannot use it: cells run on the CPU",
            "install a CUDA build of torch: https://pytorch.org/get-started/locally",
        )  # fmt: skip
    if machine.environment.get("gpu"):
        return Diagnosis(
            "torch", "limited", seen, "there is a GPU, but torch cannot start CUDA on it: cells run on the CPU",
            "install a driver that supports this CUDA, or a build of torch for the driver's CUDA",
        )  # fmt: skip
    capability = asked.told["cpu_capability"]
    return Diagnosis("torch", "ok", f"{seen}, {capability}", "cells run on the CPU")


def check_gpu(machine: Machine) -> Diagnosis:
    told, gpu = machine.probes["torch"].told, machine.environment.get("gpu")
    if not machine.gpu and not gpu:
        return Diagnosis(
            "GPU", "missing", "none", "GPU cells and verified budgets: not here; CPU cells: run",
            "use a machine with an NVIDIA GPU to measure",
        )  # fmt: skip
    name = told.get("name") or (gpu or {}).get("name")
    total = (gpu or {}).get("total_bytes")
    seen = f"{name}, {total / GIB:.1f} GiB" if total else str(name)
    if not machine.gpu:
        return Diagnosis("GPU", "limited", seen, "torch does not use it (see above)")
    major, minor = told["capability"]
    seen += f", compute capability {major}.{minor}, driver {(gpu or {}).get('driver', 'unknown')}"
    if not told["bf16"]:
        return Diagnosis(
            "GPU", "limited", seen, "bf16 and bf16_amp cells are invalid here: bf16 needs compute capability 8.0",
            "use fp16: --precision fp16_amp, or --set compute_dtype=fp16 for int8 and nf4",
        )  # fmt: skip
    return Diagnosis("GPU", "ok", seen, "cells of every precision run")


def check_nvml(machine: Machine) -> Diagnosis:
    if not machine.gpu:
        return Diagnosis("NVML", "missing", "no GPU to ask about", "nothing is lost on the CPU")
    if machine.environment.get("gpu") is None:
        return Diagnosis(
            "NVML", "missing", "the driver's library does not answer",
            "device totals are unknown and no budget is verified", "pip install nvidia-ml-py; check the driver",
        )  # fmt: skip
    accounting = machine.probes["torch"].told["accounting"]
    if accounting == "process":
        return Diagnosis("NVML", "ok", "shows this process and its bytes", "device totals are this process' own")
    return Diagnosis(
        "NVML", "limited", "does not show this process (as in many containers)",
        "device totals are the device's change since before the job: leave the GPU to one job at a time",
        "start the container with --pid=host",
    )  # fmt: skip


def check_gpu_idle(machine: Machine) -> Diagnosis:
    gpu = machine.environment.get("gpu")
    if not machine.gpu or not gpu:
        return Diagnosis("GPU memory", "missing", "no GPU", "nothing is lost on the CPU")
    used = machine.environment.get("gpu_used_bytes") or 0
    usable = gpu["usable_bytes"] or gpu["total_bytes"]
    if usable is None:
        return Diagnosis(
            "GPU memory", "limited", "the driver does not tell this GPU's memory",
            "whether others use the GPU is unknown, and so are budgets that can be verified",
        )  # fmt: skip
    seen = f"{used / GIB:.1f} of {usable / GIB:.1f} GiB in use"
    if used > IDLE_GPU:
        return Diagnosis(
            "GPU memory", "limited", seen, "budgets beyond the rest are refused, times are not to be trusted",
            "end the other processes on this GPU",
        )  # fmt: skip
    return Diagnosis("GPU memory", "ok", seen, f"budgets up to {usable / GIB:.1f} GiB can be verified")


def cells_with(package: str) -> str:
    """`int8, nf4 cells`: those whose axis values import `package`, as they declare themselves."""
    from vrambench.methods.axes import AXES

    values = [item for registry in AXES.values() for item in registry.values().items()]
    return f"{', '.join(name for name, value in values if package in value.requires)} cells"


def check_bitsandbytes(machine: Machine) -> Diagnosis:
    name, asked = "bitsandbytes", machine.probes["bitsandbytes"]
    cells = cells_with("bitsandbytes")
    if asked.failure:
        return Diagnosis(name, "missing", asked.failure, f"{cells} cannot run", _pip("bitsandbytes"))
    device = asked.told["device"]
    seen = f"bitsandbytes {version('bitsandbytes')}: its {device} library quantised a matrix"
    if device == "cpu":
        return Diagnosis(
            name, "limited" if machine.gpu else "ok", seen,
            f"{cells} run as far as a CPU can; paged_adamw_8bit keeps plain 8-bit state there",
        )  # fmt: skip
    if not asked.told["paged"]:
        return Diagnosis(name, "limited", seen, f"{cells} run, except paged_adamw_8bit: managed memory is refused here")
    return Diagnosis(name, "ok", seen, f"{cells} run")


def check_attention(machine: Machine) -> Diagnosis:
    name, asked = "attention", machine.probes["attention"]
    if asked.failure:
        return Diagnosis(name, "missing", asked.failure, "no cell runs", None)
    works: dict[str, list[str]] = asked.told["works"]
    seen = "; ".join(f"{kernel}: {', '.join(works[kernel]) or 'none'}" for kernel in KERNELS)
    auto = {dtype: "efficient" if dtype == "fp32" else "flash" for dtype in DTYPES}
    lost = [f"{dtype} ({kernel})" for dtype, kernel in auto.items() if dtype not in works[kernel]]
    if not lost:
        return Diagnosis(name, "ok", seen, "attention: auto runs in every type")
    return Diagnosis(
        name, "limited", seen, f"attention: auto cannot run in {', '.join(lost)}", "--set attention=efficient (or math)"
    )


def check_galore(machine: Machine) -> Diagnosis:
    asked = machine.probes["galore_torch"]
    if asked.failure:
        consequence = f"{cells_with('galore_torch')} cannot run"
        return Diagnosis("galore_torch", "missing", asked.failure, consequence, _pip("galore-torch"))
    seen = f"galore-torch {version('galore-torch')}"
    return Diagnosis("galore_torch", "ok", seen, f"{cells_with('galore_torch')} run")


def check_device_only(machine: Machine) -> Diagnosis:
    """Axis values that run on CUDA alone, as they declare themselves."""
    from vrambench.methods.axes import AXES

    only = {
        name: value.cuda_only
        for registry in AXES.values()
        for name, value in registry.values().items()
        if value.cuda_only is not None
    }
    if machine.gpu or not only:
        return Diagnosis(
            "axis values", "ok", f"{sum(len(list(axis)) for axis in AXES.values())} on five axes", "all can run"
        )
    reasons = "; ".join(sorted(set(only.values())))
    return Diagnosis("axis values", "limited", reasons, f"{', '.join(only)} cells are invalid on a CPU", "use a GPU")


def check_deepspeed(machine: Machine) -> Diagnosis:
    name, asked = "deepspeed", machine.probes["deepspeed"]
    if asked.failure:
        return Diagnosis(name, "missing", asked.failure, f"{cells_with(name)} cannot run", _pip("deepspeed"))
    seen = f"DeepSpeed {asked.told['version']} on {asked.told['accelerator']}"
    if machine.gpu and asked.told["accelerator"] != "cuda":
        return Diagnosis(
            name, "limited", seen, "zero2_optimizer cells cannot run on the GPU", "unset DS_ACCELERATOR, check torch"
        )
    return Diagnosis(name, "ok", seen, "zero2_optimizer cells run, given CPUAdam")


def check_cpu_adam(machine: Machine) -> Diagnosis:
    """Compiled already, or whether it can be."""
    from vrambench.methods.offload.deepspeed import compiled

    name = "CPUAdam"
    if compiled():
        return Diagnosis(name, "ok", "compiled for this Python and torch", "zero2_optimizer cells run")
    lacking = compilers.lacking(machine.probes["torch"].told.get("cuda_build") if machine.gpu else None)
    if lacking:
        remedy = f"install {', '.join(lacking)}; then vrambench doctor --prepare"
        return Diagnosis(
            name, "missing", f"not compiled, and no {', '.join(lacking)}", "zero2_optimizer cells cannot run", remedy
        )
    return Diagnosis(
        name, "ok", "not compiled yet; the compiler is there",
        "zero2_optimizer cells run, once it is compiled (25 to 100 s)", "vrambench doctor --prepare does it now",
    )  # fmt: skip


def check_disk(machine: Machine) -> Diagnosis:
    place = machine.out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    seen = f"{free / GIB:.1f} GiB free where runs go"
    if free < FREE_DISK:
        return Diagnosis(
            "disk", "limited", seen, "results are small, but logs and pretrained weights may not fit", "free some"
        )
    return Diagnosis(
        "disk", "ok", seen, "results and logs fit; pretrained weights take their own size in the hub's cache"
    )


def check_host_memory(machine: Machine) -> Diagnosis:
    memory, limit = psutil.virtual_memory(), container_limit_bytes()
    seen = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    available = memory.available
    if limit is not None and limit < memory.total:
        seen += f"; this container may use {limit / GIB:.1f} GiB"
        available = min(available, limit)
    billions = available / OFFLOAD_BYTES / 1e9
    consequence = f"zero2_optimizer steps up to {billions:.1f} billion trained parameters on the host (16 bytes each)"
    if available < 4 * GIB:
        return Diagnosis("host memory", "limited", seen, consequence, "run fewer jobs at once, or on a larger host")
    return Diagnosis("host memory", "ok", seen, consequence)


def check_shared_memory(machine: Machine) -> Diagnosis:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Diagnosis("/dev/shm", "limited", "none", "jobs report through temporary files instead")
    free = shutil.disk_usage(folder).free
    seen = f"{free / 2**20:.0f} MiB free"
    if free < FREE_SHM:
        return Diagnosis(
            "/dev/shm", "limited", seen, "several jobs at once, or DeepSpeed with NCCL, may fail to start",
            "start the container with a larger --shm-size",
        )  # fmt: skip
    return Diagnosis("/dev/shm", "ok", seen, "jobs report through it")


CHECKS: dict[str, Callable[[Machine], Diagnosis]] = {
    "Python": check_python,
    "torch": check_torch,
    "GPU": check_gpu,
    "NVML": check_nvml,
    "GPU memory": check_gpu_idle,
    "bitsandbytes": check_bitsandbytes,
    "attention": check_attention,
    "galore_torch": check_galore,
    "deepspeed": check_deepspeed,
    "CPUAdam": check_cpu_adam,
    "axis values": check_device_only,
    "host memory": check_host_memory,
    "/dev/shm": check_shared_memory,
    "disk": check_disk,
}


def _environment(driver: Callable[[], Nvml | None]) -> dict[str, Any]:
    """describe_environment, and what is in use on its GPU now; whatever fails leaves its part out."""
    try:
        found = describe_environment("auto", driver=driver)
        library = driver()
        memories = [library.device(uuid).memory() for uuid in library.uuids()] if library is not None else []
    except Exception:  # a broken driver is a finding, not the doctor's end
        return {}
    memory = memories[0] if len(memories) == 1 else None
    return found | {"gpu_used_bytes": None if memory is None else memory.used}


def _guarded(name: str, check: Callable[[Machine], Diagnosis], machine: Machine) -> Diagnosis:
    """A check that fails is itself a finding."""
    try:
        return check(machine)
    except Exception as error:
        return Diagnosis(name, "limited", f"could not be examined: {type(error).__name__}: {error}"[:300], "unknown")


def _pip(package: str) -> str:
    return f"pip install {package}"
