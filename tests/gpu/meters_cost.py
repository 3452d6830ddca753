"""What measuring costs a job: the time of a training step with the meter at work, and without it.

    python -P tests/gpu/meters_cost.py --device cuda --steps 200 --rounds 3

Each side runs in processes of its own, in turns, so that neither has the warmer machine; a side's time is the median of
its steps, the smallest over its processes. Prints one JSON document: seconds of both, and the share that the meter
adds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

from vrambench.bench.meters import Meter
from vrambench.bench.meters.cpu import CpuMeter
from vrambench.bench.meters.cuda import CudaMeter

PHASES = ("rollout", "score", "learn", "optimizer_step")


def step_seconds(device: torch.device, steps: int, meter: Meter | None) -> float:
    """The median time of a step in `PHASES` phases: a small model, so that the meter's share is rather too large than
    too small."""
    if meter is not None:
        meter.start()
    torch.manual_seed(0)
    width = 1024 if device.type == "cuda" else 128
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(16))).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    batch = torch.randn(512, width, device=device)
    times = []
    for index in range(steps + 10):
        began = time.perf_counter()
        for phase in PHASES:
            if meter is not None:
                meter.begin_phase(phase, index)
            if phase == "optimizer_step":
                optimizer.step()
                optimizer.zero_grad()
            else:
                model(batch).square().mean().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if meter is not None:
                meter.end_phase()
        times.append(time.perf_counter() - began)
    if meter is not None:
        meter.stop()
    return statistics.median(times[10:])


def measure(device: str, steps: int, rounds: int) -> dict[str, object]:
    """Both sides in turns, each time in a fresh process."""
    seconds: dict[str, list[float]] = {"off": [], "on": []}
    for _ in range(rounds):
        for side, found in seconds.items():
            command = [sys.executable, "-P", __file__, "--device", device, "--steps", str(steps), "--side", side]
            found.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    best = {side: min(found) for side, found in seconds.items()}
    return {
        "device": device,
        "steps": steps,
        "phases_per_step": len(PHASES),
        "step_seconds": seconds,
        "added_share": best["on"] / best["off"] - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=("on", "off"))
    arguments = parser.parse_args()
    if arguments.side is None:
        print(json.dumps(measure(arguments.device, arguments.steps, arguments.rounds), indent=1))
        return
    device = torch.device(arguments.device)
    meter: Meter | None = None
    if arguments.side == "on":
        meter = CudaMeter(device, None) if device.type == "cuda" else CpuMeter()
    print(step_seconds(device, arguments.steps, meter))


if __name__ == "__main__":
    main()
