"""The process that jobs are forked from: multiprocessing's forkserver, with an environment of its own.

    server = Server("cpu")
    process = server.fork(target, *arguments)
    kill(process)

The server has imported everything and computed nothing (`preload.py`), so a job starts in a tenth of a second and
is fresh all the same.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any

from vrambench.bench.processes import deaf_to_interrupts, without_main

CONTEXT = multiprocessing.get_context("forkserver")


class Server:
    """Forks jobs for `device` (a name). One kind of device at a time in one process: the server is multiprocessing's own."""

    def __init__(self, device: str) -> None:
        self._kind = device.split(":")[0]
        self._settings = {
            "PYTHONSAFEPATH": "1",  # nothing in the current directory hides a module
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

    def start(self) -> None:
        """Starts the process that jobs are forked from, unless it runs; one of another kind is ended first."""
        server: Any = getattr(forkserver, "_forkserver", None)
        if getattr(server, "vrambench_kind", self._kind) != self._kind:
            server._stop()
        before = {name: os.environ.get(name) for name in self._settings}
        os.environ.update(self._settings)
        try:
            CONTEXT.set_forkserver_preload(["vrambench.bench.run.preload"])
            with deaf_to_interrupts():
                forkserver.ensure_running()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        if server is not None:
            server.vrambench_kind = self._kind

    def fork(self, target: Callable[..., None], *arguments: Any) -> Any:
        """A started process that runs `target(*arguments)`."""
        self.start()  # whoever ended the server meanwhile: the next one gets the same environment
        process = CONTEXT.Process(target=target, args=arguments, daemon=True)
        try:
            with without_main():
                process.start()
        except (EOFError, ConnectionError) as error:
            raise OSError("the process that jobs are forked from has ended; its last words are above") from error
        return process
