"""DeepSpeed's ZeRO: the same training as without it, in fp32 master weights; and its compiled parts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import forked
from vrambench.methods.cell import Cell
from vrambench.methods.device import get_device
from vrambench.methods.job import Job
from vrambench.methods.offload import OFFLOADS, deepspeed, none
from vrambench.methods.offload.deepspeed import build_folder, engine_config, load_compiled
from vrambench.methods.optimizers.adamw import AdamWOptions

MakeJob = Callable[..., Job]
MakeCell = Callable[..., Cell]
Ran = dict[str, dict[str, Any]]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="CPUAdam is compiled with g++")

# A rate at which few steps matter. The bucket's usual size would be two gigabytes.
ZERO: dict[str, Any] = {"learning_rate": 1e-2, "zero": {"reduce_bucket_size": 100_000}}
STEPS = 3
NORMS = 5 * 64
"""Elements of the tiny model's norms: two in each of its two layers, and the last."""
# Of the tiny model's parameters only the norms stay.
GATHERED = {
    "reduce_bucket_size": 3_000,
    "stage3_param_persistence_threshold": 300,
    "stage3_prefetch_bucket_size": 9_000,
}
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
    "zero2": {"offload": "zero2", "max_grad_norm": 0.3},
    "zero3, accumulated": {"offload": "zero3_optimizer", "gradient_accumulation_steps": 2, "max_grad_norm": 0.3},
    "zero3 all, ppo": {"offload": "zero3_all", "algorithm": "ppo", "zero": GATHERED, "ppo": {"epochs": 2}},
    "zero3 all, remax, lora": {"offload": "zero3_all", "algorithm": "remax", "adapter": "lora", "zero": GATHERED},
    "zero3 all, dora, reentrant": {
        "offload": "zero3_all",
        "adapter": "dora",
        "gradient_checkpointing": True,
        "use_reentrant": True,
        "zero": GATHERED,
    },
    **{
        f"{offload}, bf16, accumulated and clipped": {
            "offload": offload,
            "precision": "bf16",
            "gradient_accumulation_steps": 2,
            "max_grad_norm": 0.3,
            "adamw": {"weight_decay": 1.0},
        }
        for offload in ("zero2", "zero2_optimizer", "zero3_optimizer", "zero3_all")
    },
}


ON_THE_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def environment(**changes: str) -> dict[str, str]:
    return os.environ | ON_THE_CPU | changes


@pytest.fixture(scope="module")
def ran(cell: MakeCell) -> Ran:
    """What the cells of CASES did under ZeRO, one after the other in a process of their own."""
    usual = {"offload": "zero2_optimizer"} | ZERO
    cells = {name: cell(**usual | settings).flat() for name, settings in CASES.items()}
    script = Path(__file__).with_name("zero_jobs.py")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ON_THE_CPU.items():
            patch.setenv(name, value)
        done = forked.run([str(script), json.dumps(list(cells.values()))], script.parent, seconds=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(cells, json.loads(done.stdout.splitlines()[-1]), strict=True))


def without(job: MakeJob, name: str) -> list[dict[str, float]]:
    """The same cell with nothing offloaded, in this process."""
    made = job(**(ZERO | CASES[name] | {"offload": "none"}))
    return [{key: float(value) for key, value in made.step(index).items()} for index in range(STEPS)]


@needs_compiler
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("plain", 1e-4),
        ("accumulated and clipped", 1e-4),
        ("ppo", 1e-4),
        ("remax, lora", 1e-4),
        ("zero2", 1e-4),
        ("zero3, accumulated", 1e-4),
        ("zero3 all, ppo", 2e-4),
        ("zero3 all, remax, lora", 1e-4),
        ("zero3 all, dora, reentrant", 1e-4),
        ("bf16", 1e-2),  # its master weights keep what bf16 weights lose
        ("lora on nf4", 1e-2),
    ],
)
def test_it_trains_as_without_it(job: MakeJob, ran: Ran, name: str, tolerance: float) -> None:
    expected = without(job, name)
    assert ran[name]["metrics"] == [pytest.approx(metrics, rel=0, abs=tolerance) for metrics in expected]
    assert len({metrics["loss"] for metrics in expected}) == STEPS


class Masters:
    """A learner of few lines: fp32 masters of what is trained, AdamW as its paper has it (arXiv 1711.05101), and a clipped norm."""

    def __init__(self, module: Any, setup: Any, device: Any, phase: Any) -> None:
        self.module, self.work = module, setup.workload
        self.options = setup.workload.of(AdamWOptions)
        self.masters = {p: p.detach().double() for p in module.parameters() if p.requires_grad}
        self.moments = {p: (torch.zeros_like(master), torch.zeros_like(master)) for p, master in self.masters.items()}
        self.passes = self.steps = 0

    def forward(self) -> Any:
        return nullcontext()

    def train(self, mode: bool = True) -> None:
        """The same weights for both."""

    @torch.no_grad()
    def backward(self, loss: torch.Tensor) -> None:
        with torch.enable_grad():
            (loss / self.work.gradient_accumulation_steps).backward()
        loss.detach_()
        self.passes += 1
        if self.passes % self.work.gradient_accumulation_steps:
            return
        self.steps += 1
        gradients = {p: p.grad.double() for p in self.masters if p.grad is not None}
        norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
        scale = 1 / torch.clamp((norm + 1e-6) / self.work.max_grad_norm, min=1)
        first, second = self.options.betas
        for p, gradient in gradients.items():
            mean, square = self.moments[p]
            mean.lerp_(gradient * scale, 1 - first)
            square.lerp_((gradient * scale).square(), 1 - second)
            step = (mean / (1 - first**self.steps)) / ((square / (1 - second**self.steps)).sqrt() + self.options.eps)
            decay = self.options.weight_decay * self.masters[p] if p.ndim > 1 else 0.0  # norms are vectors
            self.masters[p] -= self.work.learning_rate * (step + decay)
            p.copy_(self.masters[p])
            p.grad = None


@needs_compiler
@pytest.mark.parametrize("name", [name for name in CASES if "bf16, accumulated and clipped" in name])
def test_updates_are_those_of_fp32_masters(job: MakeJob, ran: Ran, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(none, "NONE", replace(none.NONE, learner=Masters))
    monkeypatch.setattr(OFFLOADS, "_found", {})
    expected = without(job, name)
    assert OFFLOADS.get("none").learner is Masters
    # One weight that bf16 rounds the other way moves the last loss by 1e-4; norms that are decayed as well, by 4e-4.
    assert ran[name]["metrics"] == [pytest.approx(metrics, rel=0, abs=2e-4) for metrics in expected]


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_master_weights_and_moments_are_fp32(ran: Ran, name: str) -> None:
    """Twelve bytes for each trained parameter, whatever the type of the weights; norms apart where the others are decayed."""
    apart = NORMS if CASES[name].get("adamw", {}).get("weight_decay") else 0
    parts = [size for size in (apart, ran[name]["trained"] - apart) if size]
    state = ran[name]["optimizer_state"]
    assert sorted(state) == sorted(["torch.float32", "cpu", size] for size in parts * 3)


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


@pytest.mark.slow
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


def test_where_only_one_of_them_is_compiled_none_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Jobs that need neither would wait while the other is compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    loads: list[str] = []
    for extension in ("cpu_adam", "deepspeed_shm_comm"):
        monkeypatch.setattr(deepspeed, "load_extensions", lambda last=extension: loads.append(last))
        library = build_folder() / extension / f"{extension}.so"
        library.parent.mkdir(parents=True)
        library.touch()
        load_compiled()
    assert loads == ["deepspeed_shm_comm"]


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
    assert config["zero_allow_untested_optimizer"]
    assert not config["zero_force_ds_cpu_optimizer"]


def test_what_is_offloaded_is_said_to_the_engine(cell: MakeCell) -> None:
    """offload_param would be ignored below stage 3."""
    host = {"device": "cpu", "pin_memory": False}
    said = {}
    for name in ("zero2", "zero2_optimizer", "zero3_optimizer", "zero3_all"):
        config = engine_config(cell(offload=name).setup, get_device("cpu"))["zero_optimization"]
        said[name] = config["stage"], config.get("offload_optimizer"), config.get("offload_param")
        assert ("sub_group_size" in config) == (config["stage"] == 3)
    assert said == {
        "zero2": (2, None, None),
        "zero2_optimizer": (2, host, None),
        "zero3_optimizer": (3, host, None),
        "zero3_all": (3, host, host),
    }


def test_offloads_say_whether_they_need_preparing() -> None:
    assert OFFLOADS.get("none").prepare is None
    assert OFFLOADS.get("zero2_optimizer").prepare is not None
    assert OFFLOADS.get("none").zero_stage == 0
