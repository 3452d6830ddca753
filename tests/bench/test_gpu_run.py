"""What `make gpu` does, on a machine without a GPU: its parts, their limits, its resuming, and the cells that it would
run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gpu_summary
import pytest

from tests.bench.test_gpu_cells import GPU_TESTS, cells_of
from vrambench.bench.commands.app import main


@pytest.fixture(scope="module")
def gpu_run(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("tests/gpu/run")


def python_part(gpu_run: ModuleType, name: str, code: str, **more: Any) -> Any:
    settings = {"why": f"part {name}", "seconds": 60} | more
    return gpu_run.Part(name=name, command=(sys.executable, "-P", "-c", code), **settings)


def call(gpu_run: ModuleType, plan: list[Any], folder: Path, **options: Any) -> int:
    chosen = Namespace(**({"out": folder / "out", "seconds": 300.0, "again": []} | options))
    (folder / "work").mkdir(exist_ok=True)
    chosen.out.mkdir(exist_ok=True)
    state = gpu_run.read_state(folder / "work" / "state.json")
    return gpu_run.run_parts(plan, chosen, folder / "work", {"PATH": "/usr/bin:/bin"}, state, time.monotonic())


def test_a_rehearsal_has_the_same_parts_on_the_cpu(gpu_run: ModuleType, tmp_path: Path) -> None:
    real = gpu_run.parts("python3", tmp_path, rehearse=False)
    rehearsed = gpu_run.parts("python3", tmp_path, rehearse=True)
    assert [part.name for part in real] == [part.name for part in rehearsed]
    assert [part.name for part in real][:6] == ["context", "doctor", "tests", "replay", "workspaces", "measured"]
    for part in real:
        assert "cpu" not in part.command
    for part in rehearsed:
        assert "cuda" not in part.command
    assert all(part.results == part.name for part in real if "run" in part.command)
    assert {part.name for part in real if "--predict" in part.command} == {
        "smoke",
        "measured",
        "20b",
        "claims",
        "recipes",
        "values",
        "optimizers",
        "repeat",
        "galore",
    }
    assert not any("--predict" in part.command for part in rehearsed), "predictions are for CUDA"


def test_the_first_quarter_has_24_valid_cells(gpu_run: ModuleType, tmp_path: Path) -> None:
    assert [cell.verdict for cell in cells_of("quarter")] == ["valid"] * 24
    parts = gpu_run.parts("python3", tmp_path, rehearse=False, quarter=1)
    assert [part.name for part in parts if not part.alone] == ["doctor", "tests", "replay", "workspaces"]
    timed = [part.seconds for part in parts if part.alone]
    beside = max(part.seconds for part in parts if not part.alone)
    assert sum(timed[:-1]) + beside <= 15 * 60, "its parts, at their limits"


def test_the_second_quarter_spans_recipes_that_are_all_valid(gpu_run: ModuleType, tmp_path: Path) -> None:
    assert {cell.verdict for cell in cells_of("recipes")} == {"valid"}
    assert {cell.cell.workload.loss for cell in cells_of("recipes")} >= {
        "nll",
        "nll_4_46",
        "nll_4_45",
        "chunked_nll",
        "scored",
    }
    parts = gpu_run.parts("python3", tmp_path, rehearse=False, quarter=2)
    beside = max(part.seconds for part in parts if not part.alone)
    assert beside + sum(part.seconds for part in parts if part.alone) <= 16 * 60, "its parts, at their limits"


def test_the_third_quarter_has_each_new_role_and_the_largest_jobs(gpu_run: ModuleType, tmp_path: Path) -> None:
    workloads = [cell.cell.workload for cell in cells_of("values")]
    assert {work.value for work in workloads} >= {"adapter"}
    assert {work.reference for work in workloads} >= {"adapter_off", "copy", "precomputed", "none"}
    for role in ("ref_reward_offload", "empty_cache_between_phases", "reserved_elsewhere", "activation_offloading"):
        assert any(getattr(work, role) for work in workloads), role
    held = [(work.model, work.group_size) for work in workloads if work.budget == 24 * 2**30]
    assert ("qwen2.5-7b", 8) in held
    parts = gpu_run.parts("python3", tmp_path, rehearse=False, quarter=3)
    beside = [part for part in parts if not part.alone]
    assert [part.name for part in beside] == ["context", "values", "optimizers", "7b"]
    assert {"algorithm=ppo,remax", "precision=nf4"} <= set(beside[-1].command), "of the claims, those on Llama-2-7B"
    assert max(part.seconds for part in beside) + sum(part.seconds for part in parts if part.alone) <= 15 * 60
    assert all("--predict" in part.command for part in parts if part.results)


def test_parts_that_time_nothing_run_side_by_side(gpu_run: ModuleType, tmp_path: Path) -> None:
    """Each waits for the other's file: one after the other, the first would never end."""
    (tmp_path / "work").mkdir()
    meet = (
        "import pathlib, time; mine, other = (pathlib.Path(r'{folder}') / n for n in '{names}'.split()); mine.touch()\n"
    )
    meet += "while not other.exists(): time.sleep(0.01)"
    plan = [
        python_part(gpu_run, name, meet.format(folder=tmp_path, names=names), alone=False, seconds=50)
        for name, names in (("one", "a b"), ("two", "b a"))
    ]
    plan.append(python_part(gpu_run, "last", f"import pathlib; assert pathlib.Path(r'{tmp_path}/a').exists()"))
    assert call(gpu_run, plan, tmp_path) == 0
    state = json.loads((tmp_path / "work" / "state.json").read_text())
    assert {name: ended["state"] for name, ended in state.items()} == dict.fromkeys(("one", "two", "last"), "ok")


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
@pytest.mark.parametrize("rehearse", [False, True])
def test_the_selectors_of_every_run_are_understood(
    gpu_run: ModuleType,
    tmp_path: Path,
    rehearse: bool,
    quarter: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(GPU_TESTS.parents[1])
    for part in gpu_run.parts(sys.executable, tmp_path, rehearse=rehearse, quarter=quarter):
        if part.results is None:
            continue
        words = part.command[part.command.index("run") + 1 : part.command.index("--out")]
        assert main(["plan", *words, "--no-predict", "--json"]) == 0, part.name
        verdicts = {cell["verdict"] for cell in json.loads(capsys.readouterr().out)["cells"]}
        assert "valid" in verdicts, part.name


def test_arguments_are_checked(
    gpu_run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_run, "WORK", tmp_path / "work")
    assert gpu_run.main(["--only", "doctor,smokes"]) == 2
    said = capsys.readouterr().err
    assert "no part 'smokes'; there are context, doctor, tests, replay, workspaces, measured" in said
    assert said.endswith("did you mean 'smoke'?\n")
    assert gpu_run.main(["--plan", "--only", "20b"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("20b: ")
    assert "--profile 20b --set" in told
    for wrong in (["--faster"], ["--seconds", "nan"], ["--seconds", "-1"], ["--only", ""], ["--python", "/no/python"]):
        with pytest.raises(SystemExit) as ended:
            gpu_run.main(wrong)
        assert ended.value.code == 2
    (tmp_path / "file").touch()
    assert gpu_run.main(["--rehearse", "--out", str(tmp_path / "file"), "--only", "doctor"]) == 2
    assert capsys.readouterr().err.endswith(f"error: {tmp_path / 'file'}: File exists\n")


def test_without_a_gpu_it_says_so(
    gpu_run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_run, "WORK", tmp_path)
    monkeypatch.setattr(gpu_run, "HAS_CUDA", "raise SystemExit(3)")
    assert gpu_run.main(["--out", str(tmp_path / "out"), "--wheels", str(tmp_path), "--python", sys.executable]) == 2
    assert "--rehearse runs on the CPU" in capfd.readouterr().err


def test_vrambench_is_importable_without_being_installed(gpu_run: ModuleType, tmp_path: Path) -> None:
    settings = gpu_run.prepare(sys.executable, tmp_path / "work", tmp_path / "no-wheels")
    code = """
import importlib.metadata, pathlib, vrambench.bench
file = pathlib.Path(vrambench.bench.__file__)
print(file, importlib.metadata.version("vrambench"), (file.parents[1] / "matrix.yaml").exists())
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], env=settings, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [
        str(tmp_path / "work" / "source" / "vrambench" / "bench" / "__init__.py"), "0.1.0", "True",
    ], done.stderr  # fmt: skip


def test_wheels_are_installed_from_their_folder_alone(gpu_run: ModuleType, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    about = "tiny_thing-1.0.dist-info"
    files = {
        "tiny_thing.py": "ANSWER = 42\n",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\nRequires-Dist: not-there-at-all\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(wheels / "tiny_thing-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for name in (*files, f"{about}/RECORD")))
    settings = gpu_run.prepare(sys.executable, tmp_path / "work", wheels)
    code = "import tiny_thing, vrambench.bench; print(tiny_thing.ANSWER)"
    done = subprocess.run([sys.executable, "-P", "-c", code], env=settings, capture_output=True, text=True, timeout=60)
    assert done.stdout == "42\n", done.stderr


def test_parts_are_bounded_kept_and_resumed(gpu_run: ModuleType, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    plan = [
        python_part(gpu_run, "good", "print('{\"a\": 1}')", stdout="doctor.json"),
        python_part(gpu_run, "hangs", "import time; print('begun', flush=True); time.sleep(600)", seconds=2),
        python_part(gpu_run, "mends", f"import os, sys; sys.exit(0 if os.path.exists({str(marker)!r}) else 5)"),
    ]
    assert call(gpu_run, plan, tmp_path) == 1
    state = json.loads((tmp_path / "work" / "state.json").read_text())
    assert {name: one["state"] for name, one in state.items()} == {
        "good": "ok", "hangs": "out of time", "mends": "failed with code 5",
    }  # fmt: skip
    assert (tmp_path / "work" / "hangs.log").read_text().startswith("begun\n")
    assert json.loads((tmp_path / "out" / "doctor.json").read_text()) == {"a": 1}
    told = (tmp_path / "out" / "summary.txt").read_text()
    assert "mends      failed with code 5" in told
    with tarfile.open(tmp_path / "out" / "gpu-results.tar.gz") as packed:
        assert {"gpu-results/hangs.log", "gpu-results/doctor.json", "gpu-results/summary.txt"} <= set(packed.getnames())

    marker.touch()
    (tmp_path / "work" / "doctor.json").write_text("kept")
    assert call(gpu_run, [plan[0], plan[2]], tmp_path) == 0
    assert (tmp_path / "work" / "doctor.json").read_text() == "kept"
    assert call(gpu_run, plan[:1], tmp_path, again=["good"]) == 0
    assert json.loads((tmp_path / "work" / "doctor.json").read_text()) == {"a": 1}


def test_a_part_that_was_cut_off_goes_on_and_adds_to_its_rows(gpu_run: ModuleType, tmp_path: Path) -> None:
    """As replay.py and versus_trl.py do: what has a row is left out."""
    rows = tmp_path / "work" / "rows.jsonl"
    code = f"""
import json, time, gpu_summary
done = {{row["name"] for row in gpu_summary.read_rows(__import__("pathlib").Path({str(rows)!r}))}}
for name in ("one", "two", "three"):
    if name not in done:
        print(json.dumps({{"name": name}}), flush=True)
        if name == "two":
            print('{{"name": "cut', flush=True)
            time.sleep(600)
"""
    code = f"import sys; sys.path.append({str(GPU_TESTS)!r})\n{code}"
    part = python_part(gpu_run, "slow", code, stdout="rows.jsonl", adds=True, seconds=3)
    assert call(gpu_run, [part], tmp_path) == 1
    assert [row["name"] for row in gpu_summary.read_rows(rows)] == ["one", "two"]
    assert call(gpu_run, [part], tmp_path) == 0
    assert [row["name"] for row in gpu_summary.read_rows(rows)] == ["one", "two", "three"]
    assert call(gpu_run, [part], tmp_path, again=["slow"]) == 1, "one that ended well begins anew"
    assert [row["name"] for row in gpu_summary.read_rows(rows)] == ["one", "two"]


def test_another_machine_goes_on_from_the_archive(gpu_run: ModuleType, tmp_path: Path) -> None:
    plan = [python_part(gpu_run, "good", "print('{}')", stdout="doctor.json"), python_part(gpu_run, "bad", "1 / 0")]
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "about.json").write_text('{"rehearsal": false}')
    assert call(gpu_run, plan, tmp_path) == 1
    (tmp_path / "elsewhere" / "work").mkdir(parents=True)
    archive = tmp_path / "out" / "gpu-results.tar.gz"
    with pytest.raises(ValueError, match="holds no rehearsal"):
        gpu_run.unpack(archive, tmp_path / "elsewhere" / "work", True)
    assert list((tmp_path / "elsewhere" / "work").iterdir()) == []
    gpu_run.unpack(archive, tmp_path / "elsewhere" / "work", False)
    state = json.loads((tmp_path / "elsewhere" / "work" / "state.json").read_text())
    assert [state[name]["state"] for name in ("good", "bad")] == ["ok", "failed with code 1"]
    (tmp_path / "elsewhere" / "work" / "doctor.json").write_text("kept")
    assert call(gpu_run, plan[:1], tmp_path / "elsewhere") == 0
    assert (tmp_path / "elsewhere" / "work" / "doctor.json").read_text() == "kept"


def test_an_archive_that_holds_something_else_is_told(gpu_run: ModuleType, tmp_path: Path) -> None:
    other, cut, none = tmp_path / "other.tar.gz", tmp_path / "cut.tar.gz", tmp_path / "none.tar.gz"
    with tarfile.open(other, "w:gz") as packed:
        packed.add(__file__, arcname="gpu-results/file.py")
    cut.write_bytes(other.read_bytes()[:-200])
    none.write_bytes(b"")
    for archive in (other, cut, none, tmp_path / "missing.tar.gz"):
        with pytest.raises(gpu_run.RESUME_ERRORS):
            gpu_run.unpack(archive, tmp_path, False)


def test_a_state_that_is_none_is_told(gpu_run: ModuleType, tmp_path: Path) -> None:
    for content in ("[]", '{"doctor": 3}', "{"):
        (tmp_path / "state.json").write_text(content)
        with pytest.raises(ValueError, match=r"."):
            gpu_run.read_state(tmp_path / "state.json")


def test_what_ends_the_call_ends_its_part(gpu_run: ModuleType, tmp_path: Path) -> None:
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    plan = [python_part(gpu_run, "sleeps", code), python_part(gpu_run, "next", "")]
    before = signal.signal(signal.SIGTERM, gpu_run.interrupt)
    over = threading.Event()

    def end_while_it_sleeps() -> None:
        while not over.wait(0.02):
            if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    ending = threading.Thread(target=end_while_it_sleeps)
    ending.start()
    try:
        assert call(gpu_run, plan, tmp_path) == 130
    finally:
        over.set()
        ending.join()
        signal.signal(signal.SIGTERM, before)
    state = json.loads((tmp_path / "work" / "state.json").read_text())
    assert state == {"sleeps": {"state": "interrupted"}}
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_parts_hear_interrupts_where_the_call_ignores_them(gpu_run: ModuleType) -> None:
    """As a script's background job does."""
    asks = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        gpu_run.let_parts_hear_interrupts()
        os.kill(os.getpid(), signal.SIGINT)
        told = subprocess.check_output([sys.executable, "-P", "-c", asks], text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == "True\n"


def test_a_part_that_fails_is_told_with_its_last_words(
    gpu_run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(gpu_run, [python_part(gpu_run, "fails", "raise SystemExit('no such thing')")], tmp_path) == 1
    log = tmp_path / "work" / "fails.log"
    assert f"fails: failed with code 1 ({log}: no such thing)\n" in capsys.readouterr().out


def test_what_reads_results_runs_again_after_new_ones(gpu_run: ModuleType, tmp_path: Path) -> None:
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    plan = [python_part(gpu_run, "measures", ""), python_part(gpu_run, "reads", count, reads=("measures",))]
    for again, expected in (([], 1), ([], 1), (["measures"], 2)):
        assert call(gpu_run, plan, tmp_path, again=again) == 0
        assert len((tmp_path / "count").read_text()) == expected


def test_what_no_time_is_left_for_is_not_begun(gpu_run: ModuleType, tmp_path: Path) -> None:
    plan = [python_part(gpu_run, "late", "raise SystemExit(9)")]
    assert call(gpu_run, plan, tmp_path, seconds=5.0) == 1
    assert "late       not begun" in (tmp_path / "out" / "summary.txt").read_text()


def test_the_summary_tells_of_tests_cells_and_cost(gpu_run: ModuleType, tmp_path: Path) -> None:
    cells = tmp_path / "smoke" / "cells"
    cells.mkdir(parents=True)
    memory = {"allocated_bytes": 2**30, "reserved_bytes": 2**31, "device_bytes": None, "context_bytes": 2**29}
    result = {
        "name": "bf16 none sft", "status": "ok", "source": "verified", "reason": None, "cell": {"model": "gpt2"},
        "memory": memory, "throughput": {"step_seconds": [0.5, 0.25, 0.75]},
    }  # fmt: skip
    (cells / "a.json").write_text(json.dumps(result))
    (cells / "b.json").write_text(json.dumps(result | {"status": "error", "reason": "ValueError: x", "name": "other"}))
    (cells / "cut-short.json").write_text("{")
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="2" failures="1" errors="0" skipped="0"><testcase name="test_a"/>'
        '<testcase name="test_b"><failure message="assert 1 == 2&#10;more"/></testcase></testsuite></testsuites>'
    )
    (tmp_path / "meters_cost.json").write_text(
        json.dumps({"slow_down": 0.004, "interval_95": [0.002, 0.006], "verdict": "under 1%"})
    )
    stages = [("context", 500), ("first kernel", 600), ("AdamW", 600), ("decompositions", 700)]
    stages_told = [{"name": name, "outside_bytes": count * 2**20} for name, count in stages]
    stages_told.append({"name": "none", "outside_bytes": None, "error": "ImportError: none"})
    (tmp_path / "context.json").write_text(json.dumps({"accounting": "device", "stages": stages_told}))
    gpu = {"name": "Some GPU", "driver": "580"}
    (cells.parent / "run.json").write_text(json.dumps({"environment": {"gpu": gpu, "packages": {}}}))
    part = python_part(gpu_run, "smoke", "", results="smoke")
    told = gpu_summary.summary([part], {"smoke": {"state": "ok", "seconds": 3.5}}, tmp_path)
    assert told.startswith("Some GPU, driver 580; torch None, CUDA None\n"), "no doctor ran: the run says it"
    assert "outside the allocator, counted by device:\n  context: 500 MiB\n  first kernel: 600 MiB\n" in told
    assert "  first kernel: 600 MiB\n  decompositions: 700 MiB\n  none: ImportError: none\n" in told
    assert "tests: 2 tests, 1 failures, 0 errors, 0 skipped" in told
    assert "test_b: assert 1 == 2\n" in told
    assert "meters slow a step by 0.40% (95 %: 0.20% to 0.60%): under 1%" in told
    assert "1 ok, 1 error" in told
    assert "ok       verified     1.000    2.000        -    0.500   0.500  gpt2 / bf16 none sft\n" in told
    assert "gpt2 / other  [ValueError: x]" in told


def test_samples_of_a_cell_are_told_by_how_far_they_lie_apart() -> None:
    def sample(allocated: int, device: int | None, *steps: float) -> dict[str, Any]:
        memory = {"allocated_bytes": allocated, "reserved_bytes": 2**21, "device_bytes": device}
        return {"memory": memory, "throughput": {"step_seconds": steps}}

    samples = [sample(2**20, None, 1.0, 9.0, 1.0), sample(2**21, 7, 1.1), sample(2**20, 7, 1.2, 1.2)]
    assert (
        gpu_summary.spread(samples)
        == "         3 samples apart: allocated 1.000 MiB, reserved 0.000 MiB, device -, step 18.2%"
    )
