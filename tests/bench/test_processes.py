"""Processes that are started, and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys

from vrambench.bench.processes import deaf_to_interrupts


def test_what_is_started_deaf_ignores_ctrl_c_from_its_first_moment() -> None:
    code = "import signal; print(signal.getsignal(signal.SIGINT).name)"
    before = signal.getsignal(signal.SIGINT)
    with deaf_to_interrupts():
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.stdout == "SIG_IGN\n"
    assert signal.getsignal(signal.SIGINT) is before
