"""The environment: what it says, what it keeps to itself, and which two cannot be compared."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.machine import environment as env
from vrambench.bench.results import comparable

GIB = 2**30


class FakeDevice:
    name = "NVIDIA H100 80GB HBM3"
    compute_capability = (9, 0)
    tells_memory = True

    def memory(self) -> Any:
        from vrambench.bench.measure.meters.nvml import DeviceMemory

        if not self.tells_memory:
            return None
        return DeviceMemory(total=80 * GIB, used=0, free=79 * GIB, reserved=1 * GIB)


class FakeDriver:
    """What describe_gpu asks of the driver; knows one card by its UUID."""

    def __init__(self, *uuids: str) -> None:
        self._uuids = list(uuids)

    def uuids(self) -> list[str]:
        return self._uuids

    def device(self, uuid: str) -> FakeDevice:
        if uuid not in self._uuids:
            raise LookupError(uuid)
        return FakeDevice()

    def driver_version(self) -> str:
        return "580.159.04"

    def cuda_version(self) -> str:
        return "13.0"


def described(monkeypatch: pytest.MonkeyPatch, device: str = "cuda", **variables: str) -> dict[str, Any]:
    for name in env.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    driver: Any = FakeDriver("GPU-11111111-2222-3333-4444-555555555555")
    return env.describe_environment(device, driver=lambda: driver)


def test_a_gpu_run_names_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = described(monkeypatch)
    assert found["device"] == "cuda"
    assert found["key"] == "nvidia-h100-80gb-hbm3"
    assert found["gpu"] == {
        "name": "NVIDIA H100 80GB HBM3",
        "key": "nvidia-h100-80gb-hbm3",
        "compute_capability": "9.0",
        "total_bytes": 80 * GIB,
        "usable_bytes": 79 * GIB,
        "driver": "580.159.04",
        "driver_cuda": "13.0",
    }


def test_a_gpu_whose_memory_the_driver_does_not_tell_is_described_without(monkeypatch: pytest.MonkeyPatch) -> None:
    known = described(monkeypatch)
    monkeypatch.setattr(FakeDevice, "tells_memory", False)
    found = described(monkeypatch)
    assert found["gpu"] == known["gpu"] | {"total_bytes": None, "usable_bytes": None}
    assert comparable.same_hardware(found, found) == []


def test_a_cpu_run_asks_no_driver() -> None:
    def unused() -> None:
        raise AssertionError("the driver was asked")

    found = env.describe_environment("cpu", driver=unused)
    assert (found["device"], found["gpu"]) == ("cpu", None)
    assert found["cpu"]["threads"] >= 1
    assert found["ram_bytes"] > GIB // 4
    assert found["packages"]["torch"].split(".")[0].isdigit()


def test_nothing_personal_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    serial = "GPU-11111111-2222-3333-4444-555555555555"
    found = described(monkeypatch, CUDA_VISIBLE_DEVICES=serial)
    text = json.dumps(found)
    assert serial not in text
    assert found["variables"] == {"CUDA_VISIBLE_DEVICES": "GPU-*"}
    for private in (str(Path.home()) + "/", str(env.ROOT), platform.node(), f'"{getpass.getuser()}"'):
        assert private not in text


@pytest.mark.slow
def test_packages_are_not_imported_and_cuda_is_not_touched() -> None:
    code = """
import sys, torch
from vrambench.bench.machine.environment import describe_environment
describe_environment("auto")
heavy = ("peft", "bitsandbytes", "deepspeed", "transformers")
print(torch.cuda.is_initialized(), [name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False []", done.stderr


@pytest.mark.parametrize(
    ("uuids", "visible", "device", "expected"),
    [
        (["GPU-a"], None, "cuda", "GPU-a"),
        (["GPU-a"], "", "cuda", None),
        (["GPU-a"], "-1", "cuda:0", None),
        (["GPU-a1", "GPU-b2"], "GPU-b2,GPU-a1", "cuda:1", "GPU-a1"),
        (["GPU-a1", "GPU-b2"], "GPU-b", "auto", "GPU-b2"),
        ([], None, "cuda", None),
    ],
)
def test_torchs_device_among_the_drivers(
    monkeypatch: pytest.MonkeyPatch, uuids: list[str], visible: str | None, device: str, expected: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert env.find_uuid(uuids, device) == expected


def test_with_several_gpus_torch_is_asked_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(env, "ASK_UUID", "import sys; print('GPU-b' if sys.argv[1] == '1' else 'GPU-a')")
    assert env.find_uuid(["GPU-a", "GPU-b"], "cuda:1") == "GPU-b"
    monkeypatch.setattr(env, "ASK_UUID", "raise SystemExit(1)")
    assert env.find_uuid(["GPU-a", "GPU-b"], "cuda:1") is None


def test_what_cannot_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    here = described(monkeypatch)
    assert comparable.same_hardware(here, json.loads(json.dumps(here))) == []
    other = deepcopy(here)
    other["gpu"] |= {"name": "NVIDIA A100", "driver": "1.0"}
    other["cpu"]["model"] = "another"
    assert comparable.same_hardware(here, other) == ["gpu name: NVIDIA H100 80GB HBM3 before, NVIDIA A100 now"]
    on_cpu = env.describe_environment("cpu")
    assert comparable.same_hardware(here, on_cpu) == ["device: cuda before, cpu now"]
    assert comparable.same_hardware(on_cpu, on_cpu | {"cpu": on_cpu["cpu"] | {"model": "x"}})[0].startswith(
        "cpu model: "
    )
    assert comparable.same_hardware({}, here) == ["device: none before, cuda now"]
    unnamed, ours, theirs = (on_cpu | {"device": "predicted", "gpu": gpu} for gpu in (None, here["gpu"], other["gpu"]))
    assert comparable.same_hardware(unnamed, ours) == comparable.same_hardware(ours, unnamed) == []
    assert comparable.same_hardware(ours, theirs) == ["gpu name: NVIDIA H100 80GB HBM3 before, NVIDIA A100 now"]


def test_allocator_settings_are_compared_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = described(monkeypatch)
    tuned = described(monkeypatch, PYTORCH_ALLOC_CONF="expandable_segments:True", OMP_NUM_THREADS="4")
    assert comparable.same_hardware(plain, tuned) == []
    assert comparable.same_allocation(plain, tuned) == ["PYTORCH_ALLOC_CONF: none before, expandable_segments:True now"]


def test_versions_may_differ_and_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = described(monkeypatch)
    now = deepcopy(before)
    now["packages"]["torch"] = "9.9"
    now["gpu"]["driver"] = "600.1"
    assert comparable.same_hardware(before, now) == []
    assert [line.split(":")[0] for line in comparable.changed_versions(before, now)] == ["torch", "driver"]


@pytest.mark.parametrize(
    ("name", "key"),
    [("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"), (" AMD EPYC (TM) ", "amd-epyc-tm")],
)
def test_keys_are_fit_for_folders(name: str, key: str) -> None:
    assert env.slug(name) == key


def test_git_state_is_the_checkouts_own(tmp_path: Path) -> None:
    assert env.git_state(tmp_path) is None

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "first")
    assert env.git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "new").write_text("untracked")
    assert env.git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("two")
    assert env.git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    (tmp_path / "inside").mkdir()
    assert env.git_state(tmp_path / "inside") is None


def test_a_container_is_known_by_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    group = tmp_path / "cgroup"
    group.write_text("0::/init.scope\n")
    assert not env.in_container((), group)
    group.write_text("0::/kubepods/besteffort/pod1\n")
    assert env.in_container((), group)
    assert env.in_container((group,), tmp_path / "missing")
    assert not env.in_container((), tmp_path / "missing")
