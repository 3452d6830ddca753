"""What a run prints at its end."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.reports import made
from vrambench.bench.results.records import Learning, Memory, Result
from vrambench.bench.results.store import RunFolder
from vrambench.reports.text.terminal import Output, print_table, results_table, summary_lines


def printed(results: list[Result], width: int = 240) -> str:
    console = Console(file=io.StringIO(), record=True, width=width)
    console.print(results_table(results))
    return console.export_text()


def test_failed_cells_stand_in_the_table_with_their_reason() -> None:
    text = printed(made.one_of_each_status())
    lines = text.splitlines()
    assert lines[0].split() == ["status", "cell", "peak", "device", "tokens/s", "step", "learning"]
    statuses = [line.split()[0] for line in lines[2:] if not line.startswith(" ")]
    assert statuses == ["ok", "ok", "oom", "invalid", "pruned", "timeout", "crashed", "error"]
    assert "12 GiB" in lines[2]
    assert "1,000" in lines[2]
    assert "8-bit weights cannot train" not in text
    assert "ended by SIGSEGV (in load)" in text


def test_a_rules_reason_is_told_once_below_the_table() -> None:
    results = made.one_of_each_status()
    twice = [*results, *(one for one in results if one.status == "invalid")]
    assert [line for line in summary_lines(twice) if "cannot train" in line] == [
        "invalid, int8-full: 8-bit weights cannot train"
    ]


def test_what_is_not_known_is_a_dash() -> None:
    known = next(one for one in made.one_of_each_status() if one.status == "ok")
    lines = printed([made.result(status="timeout", reason="late"), known]).splitlines()
    assert lines[2].split()[-4:] == ["–"] * 4
    assert lines[3].split() == ["late"]


def test_what_no_cell_has_is_no_column() -> None:
    lines = printed([made.result(status="timeout", reason="late")]).splitlines()
    assert lines[0].split() == ["status", "cell", "peak"]
    assert lines[2].split()[-1] == "–"


def test_without_a_device_the_heading_says_what_is_compared() -> None:
    text = printed([made.result(memory=Memory(allocated_bytes=2**20))])
    assert "peak allocated" in text
    assert "1 MiB" in text


def test_learning_is_the_reward_where_there_is_one() -> None:
    rewarded = made.full("a1")
    unrewarded = rewarded.model_copy(update={"learning": Learning(loss=(2.0, 1.0))})
    assert "reward 0.100 → 0.400" in printed([rewarded])
    assert "loss 2.00 → 1.00" in printed([unrewarded])


def test_names_are_text_not_markup() -> None:
    text = printed([made.result(name="[red]x[/] [/nothing] :smile:", status="error", reason="[bold]\x1b[31m")])
    assert "\x1b" not in text
    assert "[red]x[/] [/nothing] :smile:" in text
    assert "[bold]" in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_it_keeps_to_the_width(width: int) -> None:
    text = printed(made.one_of_each_status(), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "oom" in text
    if width >= 80:
        assert "reward 0.100 → 0.400" in text
        assert "CUDA out of" in text


def test_colour_is_left_out_when_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def colours() -> str:
        console = Console(file=io.StringIO(), force_terminal=True, width=200)
        console.print(results_table(made.one_of_each_status()))
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in colours()


def test_the_summary_counts_and_says_what_to_do() -> None:
    lines = summary_lines(made.one_of_each_status(), not_run=2, corrupted=["cells/x.json"])
    assert lines[0] == "10 cells: 2 ok, 1 oom, 1 timeout, 1 crashed, 1 error, 1 invalid, 1 pruned, 2 not run"
    assert lines[1].startswith("2 of the 4 whose device memory is known fit the budget of 24 GiB")
    assert "sft: fastest fp32 lora adamw_torch none sft (3,000 tokens/s, 23.5 GiB)" in lines
    assert "3 measurements failed; run again with --retry timeout,crashed,error" in lines
    assert lines[-1] == "cannot be read: cells/x.json"


def test_nothing_is_said_of_nothing() -> None:
    assert summary_lines([]) == ["no cells"]
    assert summary_lines([], not_run=1) == ["1 cell: 1 not run"]


def test_a_run_folder_is_printed(tmp_path: Path) -> None:
    run = made.run_of([made.full("a1")], more_cells=[{"id": "a2", "name": "later", **made.cell()}])
    folder = RunFolder(tmp_path / "run")
    folder.acquire()
    folder.write_info(dict(run.info))
    folder.write_result(run.results[0])
    folder.release()
    out = io.StringIO()
    print_table([folder.path], out)
    assert "12 GiB" in out.getvalue()
    assert "2 cells: 1 ok, 1 not run" in out.getvalue()


def test_a_line_is_one_line_of_text() -> None:
    out = io.StringIO()
    Output(out).tell("[b]:smile:[/b]\x1b[31m\r\nnext " + "x" * 300)
    assert out.getvalue() == "[b]:smile:[/b]\ufffd[31m next " + "x" * 300 + "\n"
