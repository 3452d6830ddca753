"""One thread for tiny tensors: more would only wait for each other, most where several runs share a machine. And small jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch

from vrambench.methods.axes import AXES
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.job import Job
from vrambench.methods.workload import PARTS

torch.set_num_threads(1)
hypothesis.settings.register_profile("methods", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("methods")

SMALL: dict[str, Any] = {
    "precision": "fp32",
    "adapter": "none",
    "optimizer": "adamw_torch",
    "offload": "none",
    "algorithm": "sft",
    "model": "tiny",
    "prompt_tokens": 4,
    "response_tokens": 4,
    "batch_size": 2,
    "rollout_batch": 4,
    "learning_rate": 1e-3,
}


def small_cell(**settings: Any) -> Cell:
    """fp32 SFT of the tiny model with AdamW, but for what is said; axes and the workload's fields side by side."""
    unsaid = PARTS if "lengths" in settings else PARTS[1:] if "max_length" in settings else ()
    asked = {name: value for name, value in SMALL.items() if name not in unsaid} | settings
    return resolve({axis: asked.pop(axis) for axis in AXES}, asked)


def small_job(*, device: str = "cpu", phase: Callable[[str], None] = lambda name: None, **settings: Any) -> Job:
    """The loaded job of such a cell."""
    job = Job(small_cell(**settings), get_device(device), phase)
    job.load()
    return job


@pytest.fixture(scope="session")
def cell() -> Callable[..., Cell]:
    """`small_cell`, as a fixture."""
    return small_cell


@pytest.fixture(scope="session")
def job() -> Callable[..., Job]:
    """`small_job`, as a fixture."""
    return small_job
