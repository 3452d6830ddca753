"""The process that jobs are forked from: what it has imported, and that every job gets its environment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from vrambench.bench.run import server

INITIALISE_CUDA = ("peft", "bitsandbytes", "deepspeed", "galore_torch")


PRELOADED = f"""
import json, sys
import vrambench.methods.offload.deepspeed as d
d.load_compiled = lambda: 1 / 0
import vrambench.bench.run.preload
import torch
print(json.dumps([[name in sys.modules for name in {INITIALISE_CUDA!r}], torch.cuda.is_initialized()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("device", "held"), [("cuda", False), ("cpu", True)])
def test_for_cuda_nothing_is_imported_that_initialises_it(device: str, held: bool) -> None:
    """And an extension that cannot be loaded stops no job that does without it."""
    asked = {"VRAMBENCH_SERVER_DEVICE": device, "VRAMBENCH_SERVER_MODULES": " ".join(INITIALISE_CUDA)}
    environment = os.environ | asked | {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PRELOADED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[held] * len(INITIALISE_CUDA), False]


TOLD = """
import json, os, sys

def tell(path):
    with open(path, "w") as file:
        json.dump({"parent": os.getppid(), "kind": os.environ.get("VRAMBENCH_SERVER_DEVICE"),
                   "safe": sys.flags.safe_path}, file)
"""


def test_a_server_that_was_killed_or_is_of_another_kind_is_replaced_by_one_with_its_own_settings(
    tmp_path: Path,
) -> None:
    (tmp_path / "told.py").write_text(TOLD)
    script = tmp_path / "forks.py"
    script.write_text(
        "import json, os, signal, sys, time\n"
        "import told\n"
        "from vrambench.bench.run import server\n"
        "server.CONTEXT.set_forkserver_preload = lambda names: None\n"  # it starts at once
        "def ask(at):\n"
        "    process = at.fork(told.tell, 'said.json'); process.join()\n"
        "    return json.load(open('said.json'))\n"
        "first = server.Server('cuda:0')\n"
        "said = [ask(first)]\n"
        "os.kill(said[0]['parent'], signal.SIGKILL); time.sleep(0.2)\n"
        "said.append(ask(first))\n"
        "said.append(ask(server.Server('cpu')))\n"
        "print(json.dumps(said))\n"
    )
    places = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(
        [sys.executable, "-P", str(script)], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, again, other = json.loads(done.stdout.splitlines()[-1])
    assert (first["kind"], again["kind"], other["kind"]) == ("cuda", "cuda", "cpu")
    assert len({first["parent"], again["parent"], other["parent"]}) == 3
    ending = time.monotonic() + 20  # the last one ends by itself once nobody is left
    while any(psutil.pid_exists(said["parent"]) for said in (first, again, other)):
        assert time.monotonic() < ending
        time.sleep(0.05)


def test_killing_takes_the_processes_with_it_that_a_job_started(tmp_path: Path) -> None:
    from vrambench.bench.processes import kill

    job = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, start_new_session=True)
    assert job.stdout is not None
    child = int(job.stdout.readline())

    class Process:
        pid = job.pid

        def join(self, timeout: float) -> None:
            job.wait(timeout)

    kill(Process())
    assert job.returncode == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        ending = time.monotonic() + 20
        while psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < ending
            time.sleep(0.05)


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError()])
def test_a_server_that_has_ended_is_no_interruption(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> None:
        raise error

    monkeypatch.setattr(server.CONTEXT, "Process", lambda **_: SimpleNamespace(start=start))
    monkeypatch.setattr(server.Server, "start", lambda self: None)
    with pytest.raises(OSError, match="the process that jobs are forked from has ended"):
        server.Server("cpu").fork(print)
