"""`vrambench report`: where it writes, and what it says where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reports import made
from vrambench.bench.commands import report as command
from vrambench.bench.commands.app import main
from vrambench.bench.results.store import RunFolder
from vrambench.reports.page import drawing


def test_report_overwrites_a_report_and_with_force_anything(
    matrix: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[list[Path], Path]] = []
    monkeypatch.setattr(command, "write_report", lambda folders, out, baseline: asked.append((folders, out)) or ())
    ours = matrix.parent / "report.html"
    ours.write_text('<!doctype html><html><head><meta name="generator" content="vrambench 0.1.0"></head></html>')
    assert main(["report", "one", "two"]) == 0
    assert main(["report", "one", "-o", "matrix.yaml", "--format", "html", "--force"]) == 0
    assert asked == [([Path("one"), Path("two")], Path("report.html")), ([Path("one")], Path("matrix.yaml"))]
    assert capsys.readouterr().out == "wrote report.html\nwrote matrix.yaml\n"


def test_an_ending_that_tells_no_format_and_a_run_that_is_named_twice_are_refused(
    matrix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "one", "-o", "out.xlsx", "--force"]) == 2
    assert capsys.readouterr().err == (
        "error: -o out.xlsx: .xlsx tells no format, as .html, .htm, .csv, .md, .parquet do; --format says which\n"
    )
    for second in ("one", "./one/", str(matrix.parent / "one")):
        assert main(["report", "one", "two", second]) == 2
        assert capsys.readouterr().err == f"error: {Path(second)}: is named twice; name each run once\n"


def test_what_was_predicted_beside_a_run_comes_with_it_and_first(tmp_path: Path) -> None:
    one, beside, two = tmp_path / "one", tmp_path / "one" / "predicted", tmp_path / "two"
    beside.mkdir(parents=True)
    (beside / "run.json").touch()
    assert command.with_beside([two, one]) == [two, beside, one]
    assert command.with_beside([one, beside]) == [beside, one], "once each"


@pytest.mark.slow
@pytest.mark.usefixtures("packed")
def test_a_report_of_a_gpus_run_needs_no_torch(tmp_path: Path) -> None:
    """Algorithms side by side and shipped claims of the same model among them: importing torch would be most of its time."""
    results = [made.full("a" * 12), made.full("b" * 12, algorithm="ppo")]
    folder = RunFolder(tmp_path / "run")
    folder.acquire()
    cells = [{"id": one.id, "name": one.name} for one in results]
    folder.write_info({"device": "cuda", "repeat": 1, "environment": made.ENVIRONMENT, "cells": cells})
    for one in results:
        folder.write_result(one)
    folder.release()
    code = "import sys; from vrambench.bench.commands.app import main; main(); sys.exit('torch' in sys.modules)"
    words = [sys.executable, "-P", "-c", code, "report", "run", "-o", "run.html"]
    done = subprocess.run(words, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "wrote run.html\n"), done.stderr
    assert "Algorithms at equal work" in (tmp_path / "run.html").read_text()


def test_what_is_no_file_is_refused_with_force_too(matrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(matrix.parent / "pipe")
    for force in ([], ["--force"]):
        assert main(["report", "one", "-o", "pipe", *force]) == 2
        assert capsys.readouterr().err == "error: -o pipe: is a pipe or a device, not a file; name a file\n"
        assert main(["report", "one", "-o", os.devnull, *force]) == 2
        capsys.readouterr()
    assert Path(os.devnull).is_char_device()


def test_what_is_no_run_is_said(matrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "nowhere"]) == 2
    assert capsys.readouterr().err == "error: nowhere is not a run's folder: it is not there\n"
    (matrix.parent / "nothing").mkdir()
    assert main(["report", "nothing"]) == 2
    assert capsys.readouterr().err == "error: nothing is not a run's folder: it has no run.json\n"
    for name in "fabecgd":
        (matrix.parent / "nothing" / name).mkdir()
        (matrix.parent / "nothing" / name / "run.json").touch()
    assert main(["report", "nothing"]) == 2
    said = "it has no run.json; runs inside are nothing/c, nothing/d, nothing/e, nothing/f, nothing/g and 2 more"
    assert capsys.readouterr().err == f"error: nothing is not a run's folder: {said}\n"


@pytest.mark.parametrize("written", ["report.html", "cells.csv", "cells.txt"])
def test_results_that_cannot_be_read_are_told(written: str, matrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = matrix.parent / "one" / "cells"
    cells.mkdir(parents=True)
    (cells.parent / "run.json").write_text('{"schema": 1, "device": "cpu", "repeat": 1, "cells": []}')
    (cells / "0123456789ab.json").write_text("{")
    form = ["--format", "table"] if written.endswith(".txt") else []
    assert main(["report", "one", "-o", written, *form]) == 0
    said = capsys.readouterr()
    assert said.out == f"wrote {written}\n"
    assert said.err.startswith("one/cells/0123456789ab.json: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("os.abort()", "drawing ended with SIGABRT: no output"),
        ("raise MemoryError('no room')", "drawing ended with exit code 1: MemoryError: no room"),
    ],
)
def test_a_drawing_that_crashes_is_a_sentence(
    ending: str, said: str, matrix: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process that draws ends as the drawing library does."""
    folder = RunFolder(matrix.parent / "one")
    folder.acquire()
    folder.write_info({"device": "cpu", "repeat": 1, "cells": []})
    folder.write_result(made.full("a1"))
    folder.release()
    monkeypatch.setattr(drawing, "CODE", f"import os\n{ending}")
    (matrix.parent / "report.html").write_text('<!doctype html><meta name="generator" content="vrambench 0.1.0">')
    assert main(["report", "one"]) == 4
    assert capsys.readouterr().err == f"error: report.html: the report could not be drawn; {said}\n"
    assert len((matrix.parent / "report.html").read_text()) < 100, "the one of before"
