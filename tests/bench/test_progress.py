"""What a run shows: a line for each cell without a terminal, a live display with one."""

from __future__ import annotations

import io
from typing import Any

from rich.progress import MofNCompleteColumn, Progress

from vrambench.bench.results.records import Memory, Result
from vrambench.bench.run.executor import Spot
from vrambench.reports.text.progress import LiveListener, PlainListener, TimeLeft, ending, listening
from vrambench.reports.text.terminal import Output


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
    with listening(Output(out), size, seconds) as listener:
        assert isinstance(listener, PlainListener)
        listener.message("preparing offload zero2_optimizer")
        listener.started("fp32 [none] sft", 0, 2)
        listener.phase("fp32 [none] sft", Spot("learn", 1, 5))
        listener.finished(OK)
        listener.finished(INVALID)
    assert out.getvalue().splitlines() == [
        "preparing offload zero2_optimizer",
        "0123456789ab  fp32 [none] sft: ok  peak 7 B  1.5 s",
        "0123456789ab  fp32 [none] sft: invalid  quantized-full: only norms are trained",
    ]


def test_on_a_terminal_what_runs_is_seen_live() -> None:
    out = io.StringIO()
    console = Output(out, force_terminal=True, color_system=None)
    console.width = 160
    with listening(console, size, seconds) as listener:
        assert isinstance(listener, LiveListener)
        listener.finished(INVALID)
        listener.started("fp32 [none] sft", 2, 4)
        listener.phase("fp32 [none] sft", Spot("learn", 1, 9))
        listener.phase("fp32 [none] sft", Spot("optimizer_step", 1, 5))
        listener._progress.refresh()
        shown = out.getvalue()
        listener.finished(OK)
    assert "fp32 [none] sft: invalid" in shown
    assert "2/4" in shown
    assert "fp32 [none] sft: optimizer_step, step 1, peak 9 B" in shown
    assert "fp32 [none] sft: ok  peak 7 B" in out.getvalue()


def test_time_left_goes_by_the_cells_that_ended_however_long_each_takes() -> None:
    out, now = io.StringIO(), 0.0
    console = Output(out, force_terminal=True, color_system=None)
    progress = Progress(MofNCompleteColumn(), TimeLeft(), console=console, auto_refresh=False, get_time=lambda: now)
    listener = LiveListener(progress, console, size, seconds)

    def shown() -> str:
        printed = io.StringIO()
        Output(printed, color_system=None).print(progress.get_renderable())
        return " ".join(printed.getvalue().split())

    listener.started("first", 2, 6)  # two were kept
    assert shown() == "2/6 -:--:--"
    now = 600.0
    listener.finished(OK.model_copy(update={"name": "first"}))
    listener.started("second", 3, 6)
    assert shown() == "3/6 0:30:00"
    now = 660.0
    assert shown() == "3/6 0:29:00"
    now = 1_000.0
    listener.finished(OK.model_copy(update={"name": "second"}))
    listener.started("second", 3, 6)  # its next sample
    assert shown().startswith("3/6 ")
    now = 9_000.0
    assert shown() == "3/6 0:00:00", "longer than the others, and no less than nothing"


HOSTILE = "[red]star:star[/]\x1b]0;title\x07\r\nfits"


def test_names_are_text_that_no_terminal_obeys() -> None:
    for terminal in (False, True):
        out = io.StringIO()
        console = Output(out, force_terminal=terminal, color_system=None)
        console.width = 160
        with listening(console, size, seconds) as listener:
            listener.message(HOSTILE)
            listener.started(HOSTILE, 0, 1)
            listener.phase(HOSTILE, Spot("learn", 1, 9))
            if isinstance(listener, LiveListener):
                listener._progress.refresh()
            listener.finished(OOM.model_copy(update={"name": HOSTILE, "reason": HOSTILE}))
        assert "[red]star:star[/]\ufffd]0;title\ufffd fits" in out.getvalue()
        assert "\x1b]0" not in out.getvalue()
        assert "\x07" not in out.getvalue()
