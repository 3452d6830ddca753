"""Logs: bounded, and their last line found without reading all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vrambench.bench.run import logs
from vrambench.bench.run.logs import last_line, trim


def test_a_log_keeps_its_beginning_and_its_end_and_is_still_appended_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST", 1000)
    monkeypatch.setattr(logs, "KEPT", 100)
    log = tmp_path / "log"
    with log.open("ab", buffering=0) as job:
        job.write(b"first\n" + b"m" * 5000 + b"\nlast\n")
        trim(log)
        job.write(b"more\n")
    text = log.read_text()
    assert len(text) < 300
    assert text.startswith("first\n")
    assert "bytes left out" in text
    assert text.endswith("m\nlast\nmore\n")
    trim(log)
    assert log.read_text() == text, "a small one is left alone"
    trim(tmp_path / "none")


def test_the_last_line_of_a_huge_log_is_found_in_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.seek(2**40)  # a hole: nobody could read all of it
        file.write(b"\nthe \x1b[31mlast\x07 words\n\n  \n")
    assert last_line(log) == "the \N{REPLACEMENT CHARACTER}[31mlast\N{REPLACEMENT CHARACTER} words"


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_nothing_said_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log").write_bytes(content)
    assert last_line(tmp_path / "log") == last_line(tmp_path / "none") == "no output"
