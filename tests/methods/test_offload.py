"""ZeRO-2 with its optimizer on the host: the same training as without it, in fp32 master weights; and its compiled parts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vrambench.methods.cell import Cell
from vrambench.methods.device import get_device
from vrambench.methods.job import Job
from vrambench.methods.offload import OFFLOADS, deepspeed
from vrambench.methods.offload.deepspeed import build_folder, engine_config

MakeJob = Callable[..., Job]
MakeCell = Callable[..., Cell]
Ran = dict[str, dict[str, Any]]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="CPUAdam is compiled with g++")

# A rate at which few steps matter. The bucket's usual size would be two gigabytes.
ZERO: dict[str, Any] = {"learning_rate": 1e-2, "zero": {"reduce_bucket_size": 100_000}}
STEPS = 3
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated and clipped": {
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.3,
        "adamw": {"betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.1},
    },
    "bf16": {"precision": "bf16"},
    "lora on nf4": {"adapter": "lora", "precision": "nf4"},
    "ppo": {"algorithm": "ppo", "value": "separate", "ppo": {"epochs": 1}},
    "remax, lora": {"algorithm": "remax", "adapter": "lora"},
}


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""} | changes


@pytest.fixture(scope="module")
def ran(cell: MakeCell) -> Ran:
    """What the cells of CASES did under ZeRO-2, one after the other in a process of their own."""
    cells = {name: cell(offload="zero2_optimizer", **ZERO | settings).flat() for name, settings in CASES.items()}
    script = Path(__file__).with_name("zero_jobs.py")
    done = subprocess.run(
        [sys.executable, "-P", str(script), json.dumps(list(cells.values()))],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(cells, json.loads(done.stdout.splitlines()[-1]), strict=True))


def without(job: MakeJob, name: str) -> list[dict[str, float]]:
    """The same cell with nothing offloaded, in this process."""
    made = job(**(ZERO | CASES[name]))
    return [{key: float(value) for key, value in made.step(index).items()} for index in range(STEPS)]


@needs_compiler
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("plain", 1e-4),
        ("accumulated and clipped", 1e-4),
        ("ppo", 1e-4),
        ("remax, lora", 1e-4),
        ("bf16", 1e-2),  # its master weights keep what bf16 weights lose
        ("lora on nf4", 1e-2),
    ],
)
def test_it_trains_as_without_it(job: MakeJob, ran: Ran, name: str, tolerance: float) -> None:
    expected = without(job, name)
    assert ran[name]["metrics"] == [pytest.approx(metrics, rel=0, abs=tolerance) for metrics in expected]
    assert len({metrics["loss"] for metrics in expected}) == STEPS


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_master_weights_and_moments_are_fp32(ran: Ran, name: str) -> None:
    """Twelve bytes for each trained parameter, whatever the type of the weights."""
    state = ran[name]["optimizer_state"]
    assert state == [["torch.float32", "cpu", ran[name]["trained"]]] * 3


@needs_compiler
def test_weights_are_of_the_engines_type(ran: Ran) -> None:
    types = {name: {entry[0] for entry in ran[name]["weights"]} for name in CASES}
    assert types["plain"] == types["remax, lora"] == {"torch.float32"}
    assert types["bf16"] == {"torch.bfloat16"}
    # adapter_dtype is fp32 there, and ZeRO does not care: there is a rule that warns about it.
    assert types["lora on nf4"] == {"torch.bfloat16", "torch.uint8"}


@needs_compiler
def test_phases_are_the_plain_learners(job: MakeJob, ran: Ran) -> None:
    for name in ("plain", "accumulated and clipped", "ppo"):
        heard: list[str] = []
        made = job(**(ZERO | CASES[name]), phase=heard.append)
        for index in range(STEPS):
            made.step(index)
        assert ran[name]["phases"] == heard


@needs_compiler
def test_gradients_are_counted(ran: Ran) -> None:
    """In fp32, what the host steps on; and with accumulation a second copy, in which DeepSpeed sums them up."""
    size = 4 * ran["plain"]["trained"]
    assert ran["plain"]["gradient_bytes_at_the_step"] == [size] * STEPS
    assert ran["accumulated and clipped"]["gradient_bytes_at_the_step"] == [2 * size] * STEPS
    adapter = 4 * ran["remax, lora"]["trained"]
    assert ran["remax, lora"]["gradient_bytes_at_the_step"] == [adapter] * 2 * STEPS


PREPARE = """
from vrambench.methods.offload.deepspeed import compiled, load_extensions
assert compiled()
load_extensions()
load_extensions()
print("loaded")
"""


@needs_compiler
def test_a_stale_lock_does_not_hang_and_nothing_is_compiled_twice(ran: Ran, tmp_path: Path) -> None:
    """torch's lock outlives a killed compiler. `ran` has compiled; this works on a copy of what it made."""
    copy = tmp_path / build_folder().relative_to(build_folder().parents[2])
    shutil.copytree(build_folder(), copy)
    locks = [copy / "cpu_adam" / "lock", copy / "deepspeed_shm_comm" / "lock"]
    for lock in locks:
        lock.touch()
    built = {path: path.stat().st_mtime_ns for path in copy.glob("*/*.so")}
    assert len(built) == 2
    done = subprocess.run(
        [sys.executable, "-P", "-c", PREPARE],
        capture_output=True,
        text=True,
        env=environment(XDG_CACHE_HOME=str(tmp_path)),
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "loaded"
    assert not any(lock.exists() for lock in locks)
    assert {path: path.stat().st_mtime_ns for path in copy.glob("*/*.so")} == built


def test_the_build_folder_is_our_own_and_of_one_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = build_folder()
    assert folder.is_relative_to(tmp_path / "vrambench")
    assert torch.__version__ in folder.name
    assert f"py{sys.version_info.major}{sys.version_info.minor}" in folder.name
    assert f"deepspeed{version('deepspeed')}" in folder.name
    monkeypatch.setattr(deepspeed, "find_spec", lambda name: SimpleNamespace(origin=f"/another/place/{name}.py"))
    assert build_folder() != folder  # build files name the place: two environments would compile in turns
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert build_folder().is_relative_to(Path.home() / ".cache" / "vrambench")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"precision": "bf16"}, {"bf16": {"enabled": True}, "fp16": {"enabled": False}}),
        ({"precision": "fp32"}, {"bf16": {"enabled": False}, "fp16": {"enabled": False}}),
        (
            {"precision": "nf4", "adapter": "lora", "compute_dtype": "fp16"},
            {"bf16": {"enabled": False}, "fp16": {"enabled": True}},
        ),
        (
            {"gradient_accumulation_steps": 3, "max_grad_norm": 0.5, "batch_size": 7},
            {"gradient_accumulation_steps": 3, "gradient_clipping": 0.5, "train_micro_batch_size_per_gpu": 7},
        ),
    ],
)
def test_the_engine_is_told_what_the_workload_says(
    cell: MakeCell, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = engine_config(cell(offload="zero2_optimizer", **settings).setup, get_device("cpu"))
    assert {key: config[key] for key in expected} == expected
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": False}


def test_offloads_say_whether_they_need_preparing() -> None:
    assert OFFLOADS.get("none").prepare is None
    assert OFFLOADS.get("zero2_optimizer").prepare is not None
    assert OFFLOADS.get("none").zero_stage == 0
