"""What measuring costs a job: the time of a training step with the meters at work, against the same step without.

    python -P tests/benchmarks/meters_cost.py --device cpu --pairs 100

One real job takes its steps in pairs, one with recorder, meter and progress at work and one without, in random order: a machine
whose speed drifts slows both. What comes out is the median of the pairs' ratios with a 95 % confidence interval (bootstrap),
and a verdict, `inconclusive` where the interval holds the limit. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import time
from collections.abc import Sequence

import torch

from vrambench.bench.measure.recorder import Recorder
from vrambench.bench.run.worker import BOARD_BYTES, make_meter, write_board
from vrambench.methods.cell import resolve
from vrambench.methods.device import Device, get_device
from vrambench.methods.job import Job

LIMIT = 0.01
AXES = {"precision": "fp32", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "ppo"}
WORKLOADS = {
    "cpu": {"model": "tiny", "batch_size": 4, "rollout_batch": 8, "prompt_tokens": 8, "response_tokens": 8},
    "cuda": {"model": "gpt2", "batch_size": 4, "rollout_batch": 8, "prompt_tokens": 128, "response_tokens": 32},
}


class Pairs:
    """A job whose steps can be taken with the meters and without them."""

    def __init__(self, device: Device) -> None:
        self.device = device
        budget = 2**40 if device.kind == "cpu" else 2**36
        self.job = Job(resolve(AXES, WORKLOADS[device.kind] | {"budget": budget}), device, self._enter)
        self._board = (ctypes.c_char * BOARD_BYTES)()
        self._meter = make_meter(self.job.cell.workload.budget, device)
        self._recorder: Recorder | None = None
        self._index = 0
        self._meter.start()
        self._meter.pause()
        self.job.load()
        for _ in range(5):
            self.step()

    def _enter(self, phase: str) -> None:
        if self._recorder is not None:
            self._recorder.enter(phase)

    def step(self) -> float:
        """Seconds of one step, the device idle at both ends."""
        self._index += 1
        self.device.synchronize()
        began = time.perf_counter()
        self.job.step(self._index)
        if self._recorder is not None:
            self._recorder.close()
        self.device.synchronize()
        return time.perf_counter() - began

    def metered_step(self) -> float:
        """The same with recorder, meter and progress at work."""
        meter = self._meter
        meter.resume()
        self._recorder = Recorder(
            self.device, meter, lambda phase, step: write_board(self._board, phase, step, meter.peak_bytes())
        )
        self._recorder.step = self._index
        try:
            return self.step()
        finally:
            self._recorder = None
            meter.pause()


def measure(device: Device, pairs: int, seed: int = 0) -> dict[str, object]:
    """`pairs` ratios of a metered step's time to a plain one's, and what they say."""
    choose = random.Random(seed)
    both = Pairs(device)
    ratios = []
    for _ in range(pairs):
        if choose.random() < 0.5:
            plain, metered = both.step(), both.metered_step()
        else:
            metered, plain = both.metered_step(), both.step()
        ratios.append(metered / plain)
    low, high = interval(ratios, choose)
    return {
        "device": str(device.torch),
        "pairs": pairs,
        "slow_down": statistics.median(ratios) - 1,
        "interval_95": [low - 1, high - 1],
        "verdict": verdict(low - 1, high - 1),
    }


def interval(ratios: Sequence[float], choose: random.Random, draws: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median."""
    medians = sorted(statistics.median(choose.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def verdict(low: float, high: float) -> str:
    if high < LIMIT:
        return f"under {LIMIT:.0%}"
    return f"over {LIMIT:.0%}" if low > LIMIT else "inconclusive"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pairs", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(get_device(arguments.device), arguments.pairs), indent=1))


if __name__ == "__main__":
    main()
