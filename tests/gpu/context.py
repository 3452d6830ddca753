#!/usr/bin/env python3
"""What a process holds on a GPU outside PyTorch's allocator: the bare context, then what each library loads.

    tests/gpu/context.py --device cuda > context.json

Prints one JSON document: the `gpu`, its driver and torch; `accounting`, how bytes are counted (as vrambench's meter does); `stages`
in order, each with its `name`, `held_bytes` (by NVML), `reserved_bytes` (by the allocator), `outside_bytes` (the difference) and
`seconds` since the process began. A library that is not there has an `error`. `--device cpu` has no stages. Exit code: 0, or 2
without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

BEGAN = time.perf_counter()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a process holds on a GPU outside PyTorch's allocator.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    if parser.parse_args(arguments).device == "cpu":
        print(json.dumps({"gpu": None, "stages": []}))
        return 0
    import torch

    from vrambench.bench.measure.meters.nvml import Nvml, Sampler

    imported = time.perf_counter() - BEGAN
    driver = Nvml.open()
    if not torch.cuda.is_available() or driver is None:
        print("error: torch sees no CUDA device, or NVML is not there", file=sys.stderr)
        return 2
    before = driver.snapshot()
    device = torch.device("cuda", 0)
    torch.cuda.init()
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    found = driver.device(uuid)
    sampler = Sampler(found, before.get(found.uuid))
    torch.cuda.synchronize(device)
    stages: list[dict[str, Any]] = []

    def stage(name: str, work: Callable[[], object]) -> None:
        told: dict[str, Any] = {"name": name}
        try:
            work()
        except Exception as error:  # what is not there is a row too
            told["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        torch.cuda.synchronize(device)
        held, reserved = sampler.read(), torch.cuda.memory_reserved(device)
        told |= {
            "held_bytes": held,
            "reserved_bytes": reserved,
            "outside_bytes": None if held is None else held - reserved,
        }
        stages.append(told | {"seconds": time.perf_counter() - BEGAN})

    def grown() -> Callable[[], None]:
        kept = [torch.cuda.caching_allocator_alloc(64 * 2**20, device)]
        torch.cuda.synchronize(device)

        def release() -> None:
            torch.cuda.caching_allocator_delete(kept.pop())
            torch.cuda.empty_cache()

        return release

    stage("context", lambda: None)
    sampler.identify(grown)
    if sampler.accounting == "process":  # counted by the process from here on; the context once more
        stage("context, by process", lambda: None)
    stage("first kernel", lambda: torch.ones(1, device=device))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        square = torch.ones(256, 256, device=device, dtype=dtype)
        stage(f"product in {dtype}".replace("torch.", ""), lambda square=square: square @ square)
    stage("flash attention", lambda: attention(torch, device, torch.bfloat16))
    stage("efficient attention", lambda: attention(torch, device, torch.float32))
    stage("AdamW", lambda: adamw(torch, device))
    stage("bitsandbytes, nf4 and int8", lambda: bitsandbytes(torch, device))
    stage("singular values", lambda: torch.linalg.svd(torch.ones(64, 64, device=device), full_matrices=False))
    memory = found.memory()
    about = {
        "gpu": torch.cuda.get_device_name(device),
        "driver": driver.driver_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "accounting": sampler.accounting,
        "total_bytes": memory.total,
        "reserved_by_driver_bytes": memory.reserved,
        "torch_total_bytes": torch.cuda.get_device_properties(device).total_memory,
        "free_bytes": torch.cuda.mem_get_info(device)[0],
        "import_seconds": imported,
    }
    print(json.dumps(about | {"stages": stages}, indent=1))
    return 0


def attention(torch: Any, device: Any, dtype: Any) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    states = torch.ones(1, 2, 64, 64, device=device, dtype=dtype, requires_grad=True)
    kernel = SDPBackend.EFFICIENT_ATTENTION if dtype is torch.float32 else SDPBackend.FLASH_ATTENTION
    with sdpa_kernel(kernel):
        torch.nn.functional.scaled_dot_product_attention(states, states, states, is_causal=True).sum().backward()


def adamw(torch: Any, device: Any) -> None:
    weight = torch.nn.Parameter(torch.ones(64, 64, device=device))
    optimizer = torch.optim.AdamW([weight], foreach=True)
    weight.grad = torch.ones_like(weight)
    torch.nn.utils.clip_grad_norm_([weight], 1.0, foreach=True)
    optimizer.step()


def bitsandbytes(torch: Any, device: Any) -> None:
    import bitsandbytes as bnb

    inputs = torch.ones(8, 256, device=device, dtype=torch.bfloat16)
    four = bnb.nn.Linear4bit(256, 256, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to(device)
    eight = bnb.nn.Linear8bitLt(256, 256, bias=False, has_fp16_weights=False).to(device)
    four(inputs), eight(inputs.half())


if __name__ == "__main__":
    sys.exit(main())
