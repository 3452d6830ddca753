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
from collections.abc import Callable, Iterator
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
    found = driver.device(str(torch.cuda.get_device_properties(device).uuid))
    sampler = Sampler(found, before.get(found.uuid))
    torch.cuda.synchronize(device)
    stages = list(held_after_each(torch, device, sampler))
    memory = found.memory()
    about = {
        "gpu": torch.cuda.get_device_name(device),
        "driver": driver.driver_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "accounting": sampler.accounting,
        "total_bytes": memory.total if memory else None,
        "reserved_by_driver_bytes": memory.reserved if memory else None,
        "torch_total_bytes": torch.cuda.get_device_properties(device).total_memory,
        "free_bytes": torch.cuda.mem_get_info(device)[0],
        "import_seconds": imported,
    }
    print(json.dumps(about | {"stages": stages}, indent=1))
    return 0


def held_after_each(torch: Any, device: Any, sampler: Any) -> Iterator[dict[str, Any]]:
    """A row for each thing that loads something onto the device, in order."""

    def stage(name: str, work: Callable[[], object]) -> dict[str, Any]:
        told: dict[str, Any] = {"name": name}
        try:
            work()
        except Exception as error:  # what is not there is a row too
            told["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        torch.cuda.synchronize(device)
        held, reserved = sampler.read(), torch.cuda.memory_reserved(device)
        told |= {"held_bytes": held, "reserved_bytes": reserved}
        told["outside_bytes"] = None if held is None else held - reserved
        return told | {"seconds": time.perf_counter() - BEGAN}

    yield stage("context", lambda: None)
    sampler.identify(lambda: grown(torch, device))
    if sampler.accounting == "process":  # counted by the process from here on; the context once more
        yield stage("context, by process", lambda: None)
    yield stage("first kernel", lambda: torch.ones(1, device=device))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        square = torch.ones(256, 256, device=device, dtype=dtype)
        yield stage(f"product in {dtype}".replace("torch.", ""), lambda square=square: square @ square)
    yield stage("flash attention", lambda: attention(torch, device, torch.bfloat16))
    yield stage("efficient attention", lambda: attention(torch, device, torch.float32))
    yield stage("AdamW", lambda: adamw(torch, device))
    yield stage("bitsandbytes, nf4 and int8", lambda: bitsandbytes(torch, device))
    square = torch.ones(64, 64, device=device)
    yield stage("singular values", lambda: torch.linalg.svd(square, full_matrices=False))


def grown(torch: Any, device: Any) -> Callable[[], None]:
    """Takes 64 MiB, by which the meter knows its process; gives what gives them back."""
    kept = [torch.cuda.caching_allocator_alloc(64 * 2**20, device)]
    torch.cuda.synchronize(device)

    def release() -> None:
        torch.cuda.caching_allocator_delete(kept.pop())
        torch.cuda.empty_cache()

    return release


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
