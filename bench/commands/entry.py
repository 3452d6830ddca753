"""Where the program begins: Ctrl-C while it imports itself is told as at any other time."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line of `app.py` and gives its exit code."""
    try:
        from vrambench.bench.commands.app import main as run
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return run()
