"""What is kept on disk is found again as it was, or not at all."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from vrambench.bench.predict import cache as module
from vrambench.bench.predict.cache import FILE, MOST, Cache

QUESTION = {"cell": {"model": "tiny"}, "budget_bytes": 2**30}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "below" / FILE


def test_a_text_is_found_by_its_question_alone(path: Path) -> None:
    kept = Cache(path)
    assert kept.get(QUESTION) is None
    kept.put(QUESTION, "é\n")
    assert Cache(path).get(dict(reversed(QUESTION.items()))) == "é\n"
    assert kept.get(QUESTION | {"budget_bytes": 2**31}) is None
    kept.put(QUESTION, "another")
    assert kept.get(QUESTION) == "another"
    assert path.parent.stat().st_mode & 0o77 == 0


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VRAMBENCH_CACHE", str(tmp_path / "named"))
    Cache.usual().put(QUESTION, "here")
    assert (tmp_path / "named" / FILE).is_file()
    monkeypatch.delenv("VRAMBENCH_CACHE")
    assert Cache.usual().get(QUESTION) is None
    Cache.usual().put(QUESTION, "there")
    assert (tmp_path / "home" / "vrambench" / FILE).is_file()


@pytest.mark.parametrize("changed", ["code", "package"])
def test_other_code_and_other_packages_answer_anew(
    changed: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, installed = tmp_path / "package", tmp_path / "installed"
    (package / "bench").mkdir(parents=True)
    (package / "bench" / "code.py").write_text("1")
    (installed / "torch-2.0.dist-info").mkdir(parents=True)
    monkeypatch.setattr(module, "PACKAGE", package)
    monkeypatch.setenv("PYTHONPATH", str(installed))
    module._basis.cache_clear()
    Cache(path).put(QUESTION, "text")
    assert Cache(path).get(QUESTION) == "text"
    if changed == "code":
        (package / "bench" / "code.py").write_text("22")
    else:
        (installed / "torch-2.0.dist-info").rename(installed / "torch-2.1.dist-info")
    module._basis.cache_clear()
    assert Cache(path).get(QUESTION) is None
    monkeypatch.undo()
    module._basis.cache_clear()


def test_a_damaged_file_is_made_anew(path: Path) -> None:
    Cache(path).put(QUESTION, "text")
    path.write_bytes(path.read_bytes()[:700] + bytes(5000))
    assert Cache(path).get(QUESTION) is None
    path.write_text("no database" * 100)
    assert Cache(path).get(QUESTION) is None
    Cache(path).put(QUESTION, "text")
    assert Cache(path).get(QUESTION) == "text"


def test_a_text_that_has_changed_is_none(path: Path) -> None:
    Cache(path).put(QUESTION, "24 GiB")
    with sqlite3.connect(path) as database:
        database.execute("UPDATE kept SET text = '25 GiB'")
    assert Cache(path).get(QUESTION) is None


def test_where_nothing_can_be_kept_nothing_fails(tmp_path: Path, path: Path) -> None:
    (tmp_path / "file").write_text("")
    for impossible in (tmp_path / "file" / FILE, tmp_path, Path("/proc/none") / FILE, None):
        Cache(impossible).put(QUESTION, "text")
        assert Cache(impossible).get(QUESTION) is None


def test_a_file_that_another_process_holds_is_waited_for_and_then_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
    Cache(path).put(QUESTION, "text")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert Cache(path).get(QUESTION) is None
    Cache(path).put(QUESTION, "new")
    other.close()
    assert Cache(path).get(QUESTION) == "text"


def test_processes_that_write_at_once_keep_all(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from vrambench.bench.predict import cache\n"
        "cache.PATIENCE_SECONDS = 60\n"
        "[cache.Cache(Path(sys.argv[1])).put({'n': sys.argv[2] + str(n)}, str(n)) for n in range(20)]"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path), who]) for who in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert [Cache(path).get({"n": f"{who}{n}"}) for who in "abc" for n in range(20)] == [str(n) for n in range(20)] * 3


def test_a_folder_that_another_user_owns_answers_nothing(path: Path) -> None:
    Cache(path).put(QUESTION, "text")
    root = os.geteuid() == 0
    path.parent.chmod(0o700 if root else 0)
    try:
        os.seteuid(65534 if root else os.geteuid())  # root looks into every folder
        assert Cache(path).get(QUESTION) is None
        Cache(path).put(QUESTION, "another")
    finally:
        os.seteuid(0 if root else os.geteuid())
        path.parent.chmod(0o700)
    assert Cache(path).get(QUESTION) == "text"


def test_a_folder_whose_name_is_too_long_answers_nothing(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 300) / FILE
    Cache(path).put(QUESTION, "text")
    assert Cache(path).get(QUESTION) is None


def test_the_oldest_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST >= 1000
    monkeypatch.setattr(module, "MOST", 2)
    for number in range(4):
        Cache(path).put({"n": number}, str(number))
    assert [Cache(path).get({"n": number}) for number in range(4)] == [None, None, "2", "3"]
