"""Host memory: the kernel's marks move with real allocations, and a limited process runs out for real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vrambench.bench.measure.meters import host

MIB = 2**20


def test_resident_memory_and_its_mark_follow_a_real_allocation() -> None:
    assert host.reset_peak_rss()
    before = host.peak_rss_bytes()
    block = bytearray(b"x" * (96 * MIB))
    held = host.status_bytes("VmRSS")
    del block
    after, mark = host.status_bytes("VmRSS"), host.peak_rss_bytes()
    assert before is not None
    assert held is not None
    assert after is not None
    assert mark is not None
    assert held - before > 80 * MIB
    assert held - after > 80 * MIB
    assert mark >= held


def test_resetting_forgets_an_earlier_peak() -> None:
    block = bytearray(b"x" * (96 * MIB))
    high = host.peak_rss_bytes()
    del block
    assert host.reset_peak_rss()
    low = host.peak_rss_bytes()
    assert high is not None
    assert low is not None
    assert high - low > 80 * MIB


def test_a_system_that_says_nothing_is_unknown(tmp_path: Path) -> None:
    assert host.status_bytes("VmHWM", tmp_path) is None
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    2048 kB\n")
    assert host.status_bytes("VmHWM", tmp_path) == 2 * MIB
    assert host.status_bytes("VmRSS", tmp_path) is None
    assert not host.reset_peak_rss(tmp_path / "nowhere")


RUNS_OUT = """
import torch
from vrambench.bench.measure.meters.host import limit_host_memory
from vrambench.bench.measure.oom import parse_oom

torch.ones(8, 8) @ torch.ones(8, 8)
limit_host_memory(256 * 2**20)
torch.empty(128 * 2**20, dtype=torch.uint8)         # within the budget
for taken in (lambda: torch.empty(512 * 2**20, dtype=torch.uint8), lambda: bytearray(512 * 2**20)):
    try:
        taken()
    except Exception as error:
        oom = parse_oom(error)
        print(type(error).__name__, oom and oom.where, oom and oom.asked_bytes)
"""


@pytest.mark.slow
def test_a_process_over_its_limit_runs_out_for_real() -> None:
    command = [sys.executable, "-P", "-c", RUNS_OUT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"RuntimeError host {512 * MIB}", "MemoryError host None"]


@pytest.mark.parametrize(
    ("group", "files", "limit"),
    [
        ("0::/box/job", {"box/job/memory.max": "max", "box/memory.max": "1000"}, 1000),
        ("0::/box/job", {"box/job/memory.max": "500", "box/memory.max": "1000"}, 500),
        ("0::/", {"memory.max": "700"}, 700),
        ("0::/box", {}, None),
        ("4:memory:/box\n3:cpu:/box", {"memory/box/memory.limit_in_bytes": "900"}, 900),
        ("4:memory:/box", {"memory/box/memory.limit_in_bytes": "9223372036854771712"}, None),
    ],
    ids=["parent's", "tighter", "namespace", "none", "version-1", "version-1-none"],
)
def test_the_tightest_limit_of_a_container(
    tmp_path: Path, group: str, files: dict[str, str], limit: int | None
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cgroup").write_text(group + "\n")
    for name, text in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert host.container_limit_bytes(tmp_path / "proc", tmp_path / "groups") == limit


def test_pinned_bytes_are_the_host_allocators_peak_or_unknown() -> None:
    stats = {"allocated_bytes.current": 1, "allocated_bytes.peak": 4096}
    ready = SimpleNamespace(is_initialized=lambda: True, host_memory_stats=lambda: stats)
    assert host.pinned_peak_bytes(ready) == 4096
    assert host.pinned_peak_bytes(SimpleNamespace(is_initialized=lambda: True)) is None
    assert host.pinned_peak_bytes(SimpleNamespace(is_initialized=lambda: False)) is None
