"""A row of a script's output, made in a process of its own.

row_from([__file__, "--one", name], seconds=150)        the row, or a sentence that says why there is none
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STDERR = 2
"""This process' own, whatever sys.stderr is."""


def row_from(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any] | str:
    """What the Python script and its arguments, `command`, write as JSON into the file that they get as `--row`; what they print
    goes to stderr. A sentence where they end badly or after more than `seconds`. `environment`: this process' own unless given."""
    with tempfile.TemporaryDirectory() as folder:
        row = Path(folder) / "row.json"
        whole = [sys.executable, *command, "--row", str(row)]
        try:
            done = subprocess.run(whole, env=environment, stdout=STDERR, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"not done after {seconds:g} s"
        if done.returncode or not row.exists():
            return f"its process ended with code {done.returncode}"
        found: dict[str, Any] = json.loads(row.read_text())
        return found
