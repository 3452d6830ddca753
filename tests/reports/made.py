"""Results made by hand: one of each status, and whole matrices as a GPU would give them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any

from vrambench.bench.results.records import (
    Learning,
    Memory,
    OutOfMemory,
    Parameters,
    Phase,
    Result,
    RoleBytes,
    Sample,
    Throughput,
)
from vrambench.reports.rows import Run

GIB = 2**30
AXES = {
    "precision": ["bf16", "fp32", "nf4", "int8"],
    "adapter": ["lora", "none"],
    "optimizer": ["adamw_torch", "paged_adamw_8bit", "adafactor", "galore_adamw_8bit_layerwise"],
    "offload": ["none", "zero2_optimizer"],
    "algorithm": ["sft", "ppo", "remax"],
}
WORKLOAD = {
    **{
        "model": "llama-2-7b",
        "weights": "random",
        "data": "synthetic",
        "batch_size": 1,
        "prompt_tokens": 256,
        "response_tokens": 256,
    },
    **{"gradient_accumulation_steps": 1, "gradient_checkpointing": True, "compute_dtype": "bf16", "attention": "flash"},
    **{"lora_r": 16, "lora_alpha": 32.0, "lora_dropout": 0.0, "lora_target_modules": "auto", "adapter_dtype": "fp32"},
    **{"rollout_batch": 8, "value": "head", "reference": "adapter_off", "reward": "tokens", "reward_model": None},
    **{"learning_rate": 2e-05, "max_grad_norm": 1.0, "steps": 4, "warmup_steps": 2, "seed": 0, "budget": 24 * GIB},
    "adamw": {"betas": [0.9, 0.999], "eps": 1e-08, "weight_decay": 0.0},
}
ENVIRONMENT: dict[str, Any] = {
    "device": "cuda",
    "gpu": {
        "name": "NVIDIA GeForce RTX 4090",
        "total_bytes": 24 * GIB,
        "usable_bytes": int(23.64 * GIB),
        "driver": "580.65",
    },
    "cpu": {"model": "AMD EPYC 9354", "cores": 32},
    "packages": {"torch": "2.13.0", "deepspeed": None},
}


HOSTILE = [
    "<script>window.hacked=1</script>",
    "</script><script>window.hacked=1</script>",
    "</noscript></table><img src=x onerror=window.hacked=1>",
    "\"' onmouseover=window.hacked=1 x='",
    "<!--<script>",
    "]]></svg><script>window.hacked=1</script>",
    "{{ 7*7 }}{% raw %}${7*7}",
    "Ünïcödé 模型 \u202e\u2028\u2029 🦙",
    "a" * 3000,
    "\x00\x03\x1b[31m\ud800",
]


def cell(**changes: Any) -> dict[str, Any]:
    """A cell's axes and workload, flat."""
    first = {axis: values[0] for axis, values in AXES.items()}
    return {**first, **WORKLOAD, **changes}


def result(
    id: str = "0123456789ab", *, name: str | None = None, cell: dict[str, Any] | None = None, **more: Any
) -> Result:
    """A result of `cell`, ok where nothing else is said; whatever `more` leaves out is unknown."""
    content = cell if cell is not None else globals()["cell"]()
    shown = name or " ".join(str(content.get(axis)) for axis in AXES)
    return Result(**{"status": "ok", "source": "measured", "id": id, "name": shown, "cell": content, **more})


def full(id: str, *, device: int = 12 * GIB, rate: float = 1000.0, name: str | None = None, **changes: Any) -> Result:
    """An ok result in which everything is known."""
    allocated, reserved = max(0, device - 2 * GIB), max(0, device - GIB)
    held = Memory(
        requested_bytes=max(0, device - 3 * GIB),
        allocated_bytes=allocated,
        active_bytes=allocated,
        reserved_bytes=reserved,
        device_bytes=device,
        context_bytes=GIB // 2,
        host_rss_bytes=2 * GIB,
        num_alloc_retries=0,
    )
    phases = [Phase(name="load", step=None, seconds=3.0, allocated_bytes=device // 3, reserved_bytes=device // 2)]
    for step in range(4):
        for place, phase in enumerate(("rollout", "score", "learn", "optimizer_step"), 2):
            peak = allocated * place // 5
            phases.append(
                Phase(name=phase, step=step, seconds=place / 3, allocated_bytes=peak, reserved_bytes=reserved)
            )
    sample = Sample(
        status="ok",
        source="measured",
        memory=held,
        phases=tuple(phases),
        roles={
            "policy": RoleBytes(weights_bytes=allocated // 2, gradients_bytes=GIB // 4, optimizer_bytes=GIB // 2),
            "reference": RoleBytes(weights_bytes=0, gradients_bytes=0, optimizer_bytes=0, shares="policy"),
            "value": RoleBytes(weights_bytes=GIB // 64, gradients_bytes=GIB // 64, optimizer_bytes=GIB // 32),
        },
        throughput=Throughput(
            step_seconds=(1.25, 1.3, 1.2),
            train_tokens_per_second=rate,
            generated_tokens_per_second=rate * 1.5,
            samples_per_second=rate / 512,
            energy_joules=812.5,
        ),
        learning=Learning(loss=(2.5, 2.4, 2.2, 2.1), reward=(0.1, 0.2, 0.2, 0.4), kl=(0.0, 0.01, 0.02, 0.02)),
        parameters=Parameters(total=6_738_415_616, trainable=39_976_960),
        seconds={"load": 12.5, "warmup": 3.0, "steps": 5.0, "total": 24.0},
        notes=("device bytes are sampled by NVML every 20 ms: shorter peaks may be missing",),
    )
    predicted = Memory(allocated_bytes=held.allocated_bytes, reserved_bytes=reserved, device_bytes=device + GIB // 8)
    whole = {**dict(sample), "predicted": predicted, "environment": ENVIRONMENT, "samples": (sample,)}
    return result(id, name=name, cell=cell(**changes), **whole)


def one_of_each_status() -> list[Result]:
    """Results of every status that a result can have."""
    oom = OutOfMemory(where="device", asked_bytes=2 * GIB, missing_bytes=GIB)
    reason = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    return [
        full("aaaaaaaaaaa1"),
        full("aaaaaaaaaaa2", device=int(23.5 * GIB), rate=3000, precision="fp32"),
        result("aaaaaaaaaaa3", cell=cell(adapter="none"), status="oom", oom=oom, reason=reason, phase="learn"),
        result(
            "aaaaaaaaaaa4",
            cell=cell(precision="int8"),
            status="invalid",
            rule="int8-full",
            reason="8-bit weights cannot train",
        ),
        result(
            "aaaaaaaaaaa5",
            cell=cell(precision="fp32", adapter="none"),
            status="pruned",
            predicted=Memory(device_bytes=90 * GIB),
        ),
        result(
            "aaaaaaaaaaa6", cell=cell(algorithm="ppo"), status="timeout", reason="not done after 600 s", phase="rollout"
        ),
        result("aaaaaaaaaaa7", cell=cell(algorithm="remax"), status="crashed", signal="SIGSEGV", phase="load"),
        result(
            "aaaaaaaaaaa8",
            cell=cell(optimizer="adafactor"),
            status="error",
            reason="the loss of step 3 is not a finite number",
        ),
    ]


def run_of(
    results: list[Result],
    name: str = "made",
    more_cells: list[dict[str, Any]] | None = None,
    corrupted: tuple[str, ...] = (),
) -> Run:
    """A run whose run.json names the results' cells, and `more_cells` that have none."""
    cells = [{"id": one.id, "name": one.name, **one.cell} for one in results] + (more_cells or [])
    info = {
        "schema": 1,
        "started_at": "2026-05-04T10:11:12+00:00",
        "device": "cuda:0",
        "repeat": 1,
        "command": "vrambench run",
        "profile": "24gb",
    }
    return Run(name, {**info, "environment": ENVIRONMENT, "cells": cells}, tuple(results), corrupted)


def hostile_run() -> Run:
    """A run in which every text that users, libraries or systems write is hostile."""
    results = []
    for place, text in enumerate(HOSTILE):
        whole = full(f"c{place}", name=text, model=text, algorithm=text, precision=text)
        results.append(whole.model_copy(update={"notes": (text,), "roles": {text: next(iter(whole.roles.values()))}}))
        failed = result(f"d{place}", name=text, cell=cell(model=text), status="error", reason=text, phase=text)
        results.append(failed.model_copy(update={"rule": text, "signal": text}))
    run = run_of(results, name=HOSTILE[0], corrupted=tuple(HOSTILE))
    return Run(
        run.name,
        {**run.info, "command": HOSTILE[1], "device": HOSTILE[2], "environment": {"gpu": {"name": HOSTILE[1]}}},
        run.results,
        run.corrupted,
    )


def steps_of(sweep: int, axes: Mapping[str, str]) -> int:
    return 60 if sweep in (0, 1) and axes["optimizer"] == "adamw_torch" else 6


def _of_matrix(
    draw: random.Random, id_: str, name: str, changes: dict[str, Any], device: int, rate: float, steps: int
) -> Result:
    """How one of the cells ended."""
    one: dict[str, Any] = {"name": name, "cell": cell(**changes)}
    if changes["precision"] == "int8" and changes["adapter"] == "none":
        reason = "int8 weights have no gradient: full fine-tuning needs an adapter, or another precision"
        return result(id_, **one, status="invalid", rule="quantised-full", reason=reason)
    if device > 23.6 * GIB:
        oom = OutOfMemory(where="device", asked_bytes=GIB, missing_bytes=GIB // 2)
        reason = "OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has 23.64 GiB"
        memory = Memory(allocated_bytes=22 * GIB, reserved_bytes=23 * GIB, device_bytes=int(23.5 * GIB))
        return result(id_, **one, status="oom", oom=oom, reason=reason, phase="learn", memory=memory)
    if draw.random() < 0.03:
        return result(id_, **one, status="timeout", reason="not done after 600 s", phase="rollout")
    pace = 0.5 + draw.random()
    loss = tuple(2.2 * math.exp(-pace * k / steps) + draw.gauss(0, 0.03) for k in range(steps))
    reward = tuple(0.8 * (1 - math.exp(-pace * k / steps)) + draw.gauss(0, 0.03) for k in range(steps))
    learned = Learning(loss=loss, reward=() if changes["algorithm"] == "sft" else reward)
    return full(id_, device=device, rate=rate, name=name, **changes).model_copy(update={"learning": learned})


def matrix(count: int, *, seed: int = 0) -> Run:
    """A run of `count` cells that looks like a real one: a third fail in one way or another, some learn for long,
    with several seeds."""
    draw = random.Random(seed)
    made: list[Result] = []
    combinations = itertools.product(range(100), *AXES.values())
    for number, (sweep, *values) in zip(range(count), combinations, strict=False):
        axes = dict(zip(AXES, values, strict=True))
        weights = {"bf16": 13, "fp32": 26, "nf4": 4, "int8": 7}[axes["precision"]]
        extra = (
            1
            if axes["adapter"] == "lora"
            else {"adamw_torch": 52, "paged_adamw_8bit": 14, "adafactor": 2}.get(axes["optimizer"], 4)
        )
        device = int(
            (weights + extra + {"sft": 1, "ppo": 3, "remax": 2}[axes["algorithm"]] + draw.random() + sweep) * GIB
        )
        rate = 4000 / weights * {"sft": 3, "ppo": 0.8, "remax": 1.1}[axes["algorithm"]] * (0.9 + draw.random() / 5)
        changes: dict[str, Any] = {
            **axes,
            "response_tokens": 256 * (1 + sweep),
            "seed": number % 3 if sweep == 1 else 0,
        }
        id_ = f"{number:012x}"
        name = " ".join([*values, *([f"response_tokens={changes['response_tokens']}"] if sweep else [])])
        made.append(_of_matrix(draw, id_, name, changes, device, rate, steps_of(sweep, axes)))
    planned = [{"id": "f" * 12, "name": "fp16 lora adamw_torch none ppo", **cell(precision="fp16", algorithm="ppo")}]
    return run_of(made, "rtx-4090", planned, ("cells/abc.json",))
