"""What an answer costs from the shell: CPU seconds of the process and its children, since the machine may be shared.

    make benchmark
    BEFORE=/tmp/before make benchmark ARGS="-k answer -s"         beside another checkout, in turns

`import torch` is what no prediction can do without. These are measurements, not tests of a limit: they print and store medians
(`extra_info` of pytest-benchmark).
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROUNDS = 3
CELL = "--precision bf16 --adapter lora --optimizer adamw_torch --offload none --algorithm grpo --budget 24GiB"
FIT = f"fit --model qwen2.5-7b --set group_size=8 {CELL}"
COMMAND = "import sys; from vrambench.bench.commands.app import main; sys.exit(main())"
ASKED = {
    "import torch": ("import torch", ""),
    "fit": (COMMAND, FIT),
    "fit --max": (COMMAND, f"{FIT} --max response_tokens"),
    "fit, asked again": (COMMAND, FIT),
    "fit MODEL": (COMMAND, "fit qwen3-8b --budget rtx-4090"),
    "a mistake": (COMMAND, FIT.replace("qwen2.5-7b", "qwen2.5-7")),
    "plan 24gb": (COMMAND, "plan --profile 24gb --device cuda --no-predict"),
    "predict 24gb's PPO": (COMMAND, "plan --profile 24gb --device cuda --only algorithm=ppo --only precision=nf4"),
}
AGAIN = ("fit, asked again",)
"""What may be answered from the cache, which a first one fills."""


def cpu_seconds(checkout: Path, folder: Path, program: str, words: str, *, cached: bool) -> float:
    """Of one process where `vrambench` is the checkout."""
    link = folder / "vrambench"
    link.unlink(missing_ok=True)
    link.symlink_to(checkout)
    cache = folder / f"cache-{checkout.name}" if cached else folder / f"cache-{os.urandom(4).hex()}"
    environment = os.environ | {"PYTHONPATH": str(folder), "VRAMBENCH_CACHE": str(cache)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-P", "-c", program, *words.split()], env=environment, cwd=checkout, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("asked", ASKED)
def test_cpu_seconds_of_an_answer(asked: str, benchmark: Any, tmp_path: Path) -> None:
    program, words = ASKED[asked]
    checkouts = {"now": ROOT}
    if before := os.environ.get("BEFORE"):
        checkouts["before"] = Path(before).resolve()
    seconds: dict[str, list[float]] = {name: [] for name in checkouts}
    cached = asked in AGAIN
    if cached:
        for checkout in checkouts.values():
            cpu_seconds(checkout, tmp_path, program, words, cached=True)

    def one_round() -> None:
        for name, checkout in checkouts.items():
            seconds[name].append(cpu_seconds(checkout, tmp_path, program, words, cached=cached))

    benchmark.pedantic(one_round, rounds=ROUNDS if "predict" not in asked else 1, iterations=1)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    benchmark.extra_info |= {f"cpu_seconds_{name}": median for name, median in medians.items()}
    ratio = f", {medians['now'] / medians['before']:.2f} of before" if "before" in medians else ""
    print(f"\n{asked}: {', '.join(f'{name} {median:.2f} s' for name, median in medians.items())}{ratio}")
