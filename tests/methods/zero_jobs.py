"""Runs the cells that it is given and says what each did: `python zero_jobs.py '[{cell}, ...]'`, JSON on the last line.

DeepSpeed's engines are run in a process of their own: a process group, once there, is there for every later test.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import torch

from vrambench.bench.measure.ledger import elements
from vrambench.methods.cell import from_flat
from vrambench.methods.device import get_device
from vrambench.methods.job import Job

STEPS = 3


def described(tensors: Any) -> list[tuple[str, str, int]]:
    return [(str(tensor.dtype), tensor.device.type, tensor.numel()) for tensor in tensors if tensor.numel() > 1]


def run(flat: dict[str, Any]) -> dict[str, Any]:
    heard: list[str] = []
    held: list[int] = []

    def phase(name: str) -> None:
        heard.append(name)
        if name == "optimizer_step":
            gradients = job.roles["policy"].learner.gradients()  # type: ignore[union-attr]
            storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in gradients}
            held.append(sum(storages.values()))

    job = Job(from_flat(flat), get_device("cpu"), phase)
    job.load()
    metrics = [{name: float(value) for name, value in job.step(index).items()} for index in range(STEPS)]
    policy = job.roles["policy"]
    assert policy.learner is not None
    return {
        "metrics": metrics,
        "phases": heard,
        "gradient_bytes_at_the_step": held,
        "optimizer_state": described(policy.learner.optimizer_state()),
        "weights": described(policy.module.parameters()),
        "trained": sum(elements(p) for p in policy.module.parameters() if p.requires_grad),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([run(flat) for flat in json.loads(sys.argv[1])]))
