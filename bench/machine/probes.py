"""What this machine can do, tried for real: each probe runs in a process of its own, started by the doctor.

A probe imports heavy packages, initialises devices and may crash or hang; its process prints one line of JSON, which
is all that the doctor reads. `run("attention", 60)` gives that line's content, or why there is none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vrambench.bench.machine.imports import less_at_import

MARK = "vrambench probe: "
CODE = "import sys; from vrambench.bench.machine.probes import answer; answer(sys.argv[1])"
KERNELS = ("flash", "efficient", "math")
DTYPES = ("bf16", "fp16", "fp32")


@dataclass(frozen=True)
class Reply:
    """What a probe told, or, where it did not come to telling, why (`failure`, one line)."""

    told: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None


def run(name: str, timeout_seconds: float) -> Reply:
    """Runs the probe called `name` in a fresh process, for at most `timeout_seconds`. Never raises."""
    command = [sys.executable, "-P", "-c", CODE, name]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_seconds, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Reply(failure=f"gave no answer within {timeout_seconds:.0f} s")
    except OSError as error:
        return Reply(failure=str(error))
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(MARK):
            return Reply(told=json.loads(line.removeprefix(MARK)))
    if done.returncode < 0:
        return Reply(failure=f"ended by signal {-done.returncode}")
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return Reply(failure=said[-1].strip()[:300] if said else f"ended with code {done.returncode}")


def answer(name: str) -> None:
    """A probe process' whole work."""
    told = PROBES[name]()
    print(f"\n{MARK}{json.dumps(told)}", flush=True)


def probe_torch() -> dict[str, Any]:
    """The build of torch, the GPU it uses, and whether NVML shows this process there."""
    import torch

    from vrambench.bench.measure.meters.nvml import Nvml, Sampler

    told: dict[str, Any] = {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "cuda": False,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    driver = Nvml.open()
    before = driver.snapshot() if driver is not None else {}
    if not torch.cuda.is_available():
        return told
    device = torch.device("cuda", 0)
    torch.ones(1, device=device).sum().item()
    properties = torch.cuda.get_device_properties(device)
    told |= {
        "cuda": True,
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        "accounting": None,
    }
    if driver is not None:
        found = driver.device(str(properties.uuid))
        sampler = Sampler(found, before.get(found.uuid))

        def grow() -> Callable[[], None]:
            held = [torch.empty(64 * 2**20, dtype=torch.uint8, device=device)]
            torch.cuda.synchronize(device)
            return held.clear

        sampler.identify(grow)
        told["accounting"] = sampler.accounting
    return told


def probe_bitsandbytes() -> dict[str, Any]:
    """Loads the native library for this machine's device, and quantises one matrix with it."""
    import_as_jobs_do()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    import bitsandbytes.functional as functional
    from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib

    if isinstance(lib, ErrorHandlerMockBNBNativeLibrary):
        raise RuntimeError(f"its native library for {device} does not load: {first_line(lib.formatted_error)}")
    matrix = torch.linspace(-1, 1, 64 * 64, device=device).reshape(64, 64)
    packed, state = functional.quantize_4bit(matrix, quant_type="nf4")
    error = (functional.dequantize_4bit(packed, state) - matrix).abs().max().item()
    if not error < 0.25:
        raise RuntimeError(f"nf4 on {device} comes back wrong: off by {error:.2f} on values up to 1")
    paged = device == "cuda"
    if paged:
        try:
            functional.fill(functional.get_paged(1024, dtype=torch.uint8, device=torch.device("cuda", 0)), 0)
            torch.cuda.synchronize()
        except (RuntimeError, AttributeError, ValueError):
            paged = False
    return {"device": device, "paged": paged}


def probe_attention() -> dict[str, Any]:
    """Forward and backward of each attention kernel in each type, on small tensors; a kernel's types as far as they
    worked."""
    import_as_jobs_do()
    import torch
    import torch.nn.functional as F

    from vrambench.methods.device import get_device
    from vrambench.methods.dtypes import DTYPES as TORCH_DTYPES

    device = get_device("auto")
    works: dict[str, list[str]] = {kernel: [] for kernel in KERNELS}
    for kernel in KERNELS:
        for dtype in DTYPES:
            shape = (1, 2, 64, 64)
            query = torch.ones(shape, device=device.torch, dtype=TORCH_DTYPES[dtype], requires_grad=True)
            try:
                with device.attention(kernel):
                    F.scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()
                device.synchronize()
            except RuntimeError:
                continue
            works[kernel].append(dtype)
    return {"device": device.kind, "works": works}


def probe_galore() -> dict[str, Any]:
    """Imports galore_torch, which needs bitsandbytes and transformers."""
    import_as_jobs_do()
    from galore_torch import GaLoreAdamW

    return {"optimizer": GaLoreAdamW.__name__}


def probe_deepspeed() -> dict[str, Any]:
    """Imports DeepSpeed; gives the accelerator that it would use."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    return {"version": deepspeed.__version__, "accelerator": get_accelerator()._name}


def import_as_jobs_do() -> None:
    """On a GPU, whole libraries; else without what no job on the CPU imports, such as torch's compiler (`run/preload.py`)."""
    import torch

    if not torch.cuda.is_available():
        less_at_import()


def first_line(text: str) -> str:
    """The first line of `text` that says anything."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": probe_torch,
    "bitsandbytes": probe_bitsandbytes,
    "attention": probe_attention,
    "galore_torch": probe_galore,
    "deepspeed": probe_deepspeed,
}
