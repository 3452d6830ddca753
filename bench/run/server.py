"""The process that jobs are forked from: multiprocessing's forkserver, with an environment of its own.

    server = Server("cpu")
    process = server.fork(target, *arguments)
    kill(process)

The server has imported what its jobs share and computed nothing (`preload.py`), so a job starts in a tenth of a second and
is fresh all the same. What jobs leave running when they end becomes the server's child, and `end_all_but` ends it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Collection, Iterable
from multiprocessing import forkserver
from typing import Any

import psutil

from vrambench.bench.processes import deaf_to_interrupts, descendants, end, fresh_start

CONTEXT = multiprocessing.get_context("forkserver")
LOST = 255
"""The exit code that multiprocessing gives a process whose server has ended."""
STRAYS_SECONDS = 5.0
"""How long killed strays are waited for."""


class Server:
    """Forks jobs for `device` (a name). One kind of device at a time in one process: the server is multiprocessing's own."""

    def __init__(self, device: str) -> None:
        self._kind = device.split(":")[0]
        self._settings = {
            "VRAMBENCH_SERVER_DEVICE": self._kind,
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        if self._kind == "cuda":
            # A library that asks at import whether CUDA is there must not begin it where jobs are forked from.
            self._settings |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        if self._kind == "cpu":
            self._settings |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}

    def hold(self, modules: Iterable[str]) -> None:
        """A server that is started from now on imports these too, on the CPU; what another lacks, its jobs import."""
        self._settings["VRAMBENCH_SERVER_MODULES"] = " ".join(modules)

    def start(self) -> None:
        """Starts the process that jobs are forked from, unless it runs; one of another kind is ended first."""
        server: Any = getattr(forkserver, "_forkserver", None)
        if getattr(server, "vrambench_kind", self._kind) != self._kind:
            server._stop()
        with fresh_start({**self._settings, "VRAMBENCH_SERVER_PARENT": str(os.getpid())}):
            CONTEXT.set_forkserver_preload(["vrambench.bench.run.preload"])
            with deaf_to_interrupts():
                forkserver.ensure_running()
        if server is not None:
            server.vrambench_kind = self._kind

    def fork(self, target: Callable[..., None], *arguments: Any) -> Any:
        """A started process that runs `target(*arguments)`. Raises OSError where there is no server to fork it, twice."""
        for last in (False, True):
            self.start()  # whoever ended the server meanwhile: the next one gets the same environment
            process = CONTEXT.Process(target=target, args=arguments, daemon=True)
            try:
                with fresh_start():
                    process.start()
                return process
            except (EOFError, ConnectionError) as error:
                if last:
                    raise OSError(
                        "the process that jobs are forked from has ended; its last words are above"
                    ) from error
        return None

    @property
    def running(self) -> bool:
        """Whether the server is alive; one that was never started is not."""
        pid = _pid()
        if pid is None:
            return False
        try:  # it is multiprocessing that takes its exit code
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def end_all_but(self, jobs: Collection[int]) -> None:
        """Ends every child of the server that is none of `jobs` (process numbers), and what those started: orphans of jobs
        that have ended. An orphan of a job that runs is that job's child."""
        if not self.running:
            return
        while strays := [one for one in _children(_pid()) if one.pid not in jobs]:
            everyone = [*strays, *(below for one in strays for below in descendants(one.pid))]
            end(everyone)
            _, alive = psutil.wait_procs(everyone, STRAYS_SECONDS)
            if alive:
                return


def _pid() -> int | None:
    return getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)


def _children(pid: int | None) -> list[psutil.Process]:
    try:
        return [one for one in psutil.Process(pid).children() if one.status() != psutil.STATUS_ZOMBIE]
    except psutil.Error:
        return []
