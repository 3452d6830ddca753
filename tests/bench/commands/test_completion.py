"""What a shell offers behind an option, through the command line itself, and without torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

MAIN = """
import sys
from vrambench.bench.commands.app import main
try:
    main([])
finally:
    assert "torch" not in sys.modules
"""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("fit --precision n", ["nf4"]),
        ("fit --precision nf4,b", ["nf4,bf16", "nf4,bf16_amp"]),
        ("plan --adapter lora,lo", []),
        ("run --set max_l", ["max_length="]),
        ("plan --sweep lora_r", ["lora_r="]),
        ("fit --budget l4", ["l40s", "l4", "l40"]),
        ("plan --profile sm", ["smoke"]),
        ("li", ["list"]),
        ("list m", ["models"]),
        ("fit qwen3-8", ["qwen3-8b"]),
        ("plan --model smollm2-13", ["smollm2-135m"]),
    ],
)
def test_a_shell_is_offered_what_may_be_typed(typed: str, offered: list[str]) -> None:
    asked = {
        "_VRAMBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": f"vrambench {typed}",
        "COMP_CWORD": str(len(typed.split())),
    }
    told = subprocess.run([sys.executable, "-P", "-c", MAIN], capture_output=True, text=True, env=os.environ | asked)
    assert told.stderr == ""
    assert told.stdout.split() == offered
