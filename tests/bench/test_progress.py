"""What a run shows: a line for each cell without a terminal, a live display with one."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from vrambench.bench.results.records import Memory, Result
from vrambench.reports.text.progress import LiveListener, PlainListener, ending, listening


def result(status: str, **more: Any) -> Result:
    return Result(id="0123456789ab", name="fp32 [none] sft", cell={}, status=status, **more)  # type: ignore[arg-type]


def size(value: int) -> str:
    return f"{value} B"


def seconds(value: float) -> str:
    return f"{value} s"


OK = result("ok", memory=Memory(allocated_bytes=7), seconds={"total": 1.5})
OOM = result("oom", phase="learn", reason="asked for 9 bytes", memory=Memory(allocated_bytes=7, device_bytes=11))
INVALID = result("invalid", rule="quantized-full", reason="only norms are trained")


def test_endings() -> None:
    assert ending(OK, size, seconds) == "ok  peak 7 B  1.5 s"
    assert ending(OOM, size, seconds) == "oom  peak 11 B  in learn  asked for 9 bytes"
    assert ending(INVALID, size, seconds) == "invalid  quantized-full: only norms are trained"


def test_without_a_terminal_a_line_per_cell() -> None:
    out = io.StringIO()
    with listening(Console(file=out, width=20), size, seconds) as listener:
        assert isinstance(listener, PlainListener)
        listener.message("preparing offload zero2_optimizer")
        listener.started("fp32 [none] sft", 1, 2)
        listener.phase("fp32 [none] sft", "learn", 1, 5)
        listener.finished(OK)
        listener.finished(INVALID)
    assert out.getvalue().splitlines() == [
        "preparing offload zero2_optimizer",
        "0123456789ab  fp32 [none] sft: ok  peak 7 B  1.5 s",
        "0123456789ab  fp32 [none] sft: invalid  quantized-full: only norms are trained",
    ]


def test_on_a_terminal_what_runs_is_seen_live() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160, color_system=None)
    with listening(console, size, seconds) as listener:
        assert isinstance(listener, LiveListener)
        listener.finished(INVALID)
        listener.started("fp32 [none] sft", 3, 4)
        listener.phase("fp32 [none] sft", "learn", 1, 9)
        listener.phase("fp32 [none] sft", "optimizer_step", 1, 5)
        listener._progress.refresh()
        shown = out.getvalue()
        listener.finished(OK)
    assert "fp32 [none] sft: invalid" in shown
    assert "2/4" in shown
    assert "fp32 [none] sft: optimizer_step, step 1, peak 9 B" in shown
    assert "fp32 [none] sft: ok  peak 7 B" in out.getvalue()
