"""Processes: what a job started does not outlive it, nothing outlives the run, and no job can hold up the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from vrambench.bench.results.store import RunFolder
from vrambench.bench.run import server
from vrambench.bench.run.session import run

# What is written into every open pipe reaches the parent's: a job that does not know what it writes where.
JOBS = """
import os, stat, subprocess, time

calls = 0

def _note(*pids):
    with open("started.txt", "a") as file:
        print(*pids, file=file)

def leaves_processes(prompts, responses):
    global calls
    calls += 1
    if calls == 1:
        sleep = ["sleep", "600"]
        twice = "import subprocess, sys; print(subprocess.Popen(['sleep', '600'], stdout=2, start_new_session=True).pid)"
        detached = subprocess.run(["python3", "-c", twice], stdout=subprocess.PIPE, text=True).stdout
        forked = os.fork()
        if not forked:
            os.setsid()
            time.sleep(600)
        _note(subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid, forked, int(detached))
    return responses.float().mean(dim=1)

def _pipes():
    for handle in range(3, 64):
        try:
            if stat.S_ISFIFO(os.fstat(handle).st_mode):
                yield handle
        except OSError:
            pass

def talks_nonsense(prompts, responses):
    for handle in _pipes():
        try:
            os.write(handle, b"\\x7f\\xff\\xff\\xff garbage")
        except OSError:
            pass
    open("talked.txt", "w").close()
    time.sleep(600)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "jobs.py").write_text(JOBS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(what: Callable[[], bool], seconds: float = 120) -> None:
    ending = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ending
        time.sleep(0.02)


def test_what_a_job_started_is_gone_before_its_result_is_stored(here: Path, plan: Any, listening: Any) -> None:
    cell = plan({"algorithm": "ppo"}, reward="jobs:leaves_processes", ppo={"epochs": 1})
    still = []

    def look(result: Any) -> None:
        still.extend(pid for pid in map(int, (here / "started.txt").read_text().split()) if alive(pid))

    listening.finished = look
    summary = run([cell], here / "run", listener=listening)
    assert summary.counts == {"ok": 1}
    assert len((here / "started.txt").read_text().split()) == 4
    assert still == []


def test_half_a_message_and_silence_after_it_end_by_the_timeout_and_the_next_cell_runs(
    here: Path, plan: Any, listening: Any, late_after: Any
) -> None:
    cells = [plan({"algorithm": "ppo"}, reward="jobs:talks_nonsense", ppo={"epochs": 1}), plan()]
    executor = late_after((here / "talked.txt").exists)
    summary = run(cells, here / "run", timeout=500, listener=listening, executor=executor)
    assert summary.counts == {"timeout": 1, "ok": 1}
    result = RunFolder.open(here / "run").read_result(cells[0].cell.id)
    assert result is not None
    assert result.reason == "not done after 500 s"


@pytest.mark.slow
def test_a_cell_whose_server_was_killed_runs_again(here: Path, plan: Any, listening: Any) -> None:
    killed: list[int] = []

    def kill_once(*said: Any) -> None:
        pid = server._pid()
        if not killed and pid is not None:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    listening.phase = kill_once
    cell = plan()
    summary = run([cell], here / "run", listener=listening)
    assert len(killed) == 1
    assert summary.counts == {"ok": 1}
    assert f"{cell.name}: the server of its process has ended; it runs again" in listening.messages


SLOW = "import os, time; open('loading.txt', 'w').write(str(os.getpid())); time.sleep(600)"


def test_a_parent_that_is_killed_while_the_server_starts_leaves_nothing(tmp_path: Path) -> None:
    """The server is still importing, here for ten minutes."""
    (tmp_path / "torch.py").write_text(SLOW)
    script = "import time; from vrambench.bench.run import server; server.Server('cpu').start(); time.sleep(600)"
    places = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    )
    loading = tmp_path / "loading.txt"
    wait_until(lambda: loading.exists() and loading.read_text().isdigit())
    below = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(alive(process.pid) for process in below))
