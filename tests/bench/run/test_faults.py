"""Every way in which a job, a run or a disk can fail, with real processes: the status is right and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.commands.app import main
from vrambench.bench.plan.plan import PlannedCell
from vrambench.bench.results.records import Result
from vrambench.bench.results.store import RunFolder
from vrambench.bench.run.samples import StorageError
from vrambench.bench.run.session import run
from vrambench.methods.errors import ConfigurationError

# A reward is called in every step: step 0 is the warm-up, and a fault at call 3 comes in a timed step.
FAULTS = """
import ctypes, os, signal, sys, time
import torch

calls = 0

def _third(fault):
    def reward(prompts, responses):
        global calls
        calls += 1
        if calls == 3:
            fault()
        return responses.float().mean(dim=1)
    return reward

def _raise():
    raise ValueError("the reward service is gone")

def _print_and_leave():
    print("the last words of a job", flush=True)
    os._exit(3)

raises = _third(_raise)
wants_to_exit = _third(lambda: sys.exit(3))
segfaults = _third(lambda: ctypes.string_at(0))
hangs = _third(lambda: (print('hanging in', os.getpid(), flush=True), time.sleep(3600)))
is_killed = _third(lambda: os.kill(os.getpid(), signal.SIGKILL))
leaves = _third(_print_and_leave)
needs_too_much = _third(lambda: torch.zeros(3 * 2**30, dtype=torch.uint8))
needs_too_much_python = _third(lambda: bytearray(3 * 2**30))

def is_not_finite(prompts, responses):
    return torch.full((len(prompts),), float("nan"))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory of the user's, with a module of the user's."""
    (tmp_path / "faults.py").write_text(FAULTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def faulty(plan: Callable[..., PlannedCell], fault: str, **workload: Any) -> PlannedCell:
    return plan({"algorithm": "ppo"}, reward=f"faults:{fault}", **{"ppo": {"epochs": 1}} | workload)


def test_every_fault_has_its_status_and_the_next_cell_runs(here: Path, plan: Any, listening: Any) -> None:
    cells = {
        fault: faulty(plan, fault)
        for fault in (
            "raises",
            "wants_to_exit",
            "segfaults",
            "is_killed",
            "leaves",
            "needs_too_much",
            "needs_too_much_python",
            "is_not_finite",
        )
    }
    cells["good"] = plan()
    summary = run(list(cells.values()), here / "run", jobs=2, listener=listening)

    found = {name: stored(here / "run", cell) for name, cell in cells.items()}
    assert {name: result.status for name, result in found.items()} == {
        "raises": "error",
        "wants_to_exit": "error",
        "segfaults": "crashed",
        "is_killed": "crashed",
        "leaves": "error",
        "needs_too_much": "oom",
        "needs_too_much_python": "oom",
        "is_not_finite": "error",
        "good": "ok",
    }
    assert summary.counts == {"error": 4, "crashed": 2, "oom": 2, "ok": 1}
    assert summary.exit_code == 4
    assert found["raises"].reason == ("reward 'faults:raises' raised ValueError: the reward service is gone")
    assert found["wants_to_exit"].reason == "reward 'faults:wants_to_exit' raised SystemExit: 3"
    assert "ValueError" in log(here / "run", cells["raises"])
    assert found["segfaults"].signal == "SIGSEGV"
    assert "Segmentation fault" in log(here / "run", cells["segfaults"])
    assert found["is_killed"].signal == "SIGKILL"
    assert found["leaves"].reason == "ended with exit code 3: the last words of a job"
    assert found["is_not_finite"].reason == (
        "reward 'faults:is_not_finite' gave a score that is not a finite number in fp32"
    )
    for name in ("raises", "wants_to_exit", "segfaults", "is_killed", "leaves", "needs_too_much"):
        assert found[name].phase == "score", name
        # What had been measured before the fault is there: load, the warm-up step and the first timed step.
        assert [phase.step for phase in found[name].phases if phase.name == "rollout"][:2] == [0, 1], name
        assert found[name].throughput.step_seconds, name


def test_out_of_memory_says_what_was_asked_for_and_what_was_missing(here: Path, plan: Any, listening: Any) -> None:
    cell = faulty(plan, "needs_too_much")
    summary = run([cell], here / "run", listener=listening)
    result = stored(here / "run", cell)
    assert summary.exit_code == 0, "an out-of-memory cell is a result, not a failure"
    assert result.oom is not None
    assert result.oom.where == "host"
    assert result.oom.asked_bytes == 3 * 2**30
    assert result.oom.missing_bytes is not None
    # 3 GiB were asked for under a budget of 2 GiB, of which the job holds a little.
    assert 2**30 <= result.oom.missing_bytes < 2**30 + 256 * 2**20


def test_a_job_that_hangs_is_ended_and_keeps_what_it_measured(
    here: Path, plan: Any, listening: Any, late_after: Any
) -> None:
    cell = faulty(plan, "hangs")
    executor = late_after(lambda: hanging_logs(here))
    summary = run([cell], here / "run", timeout=500, listener=listening, executor=executor)
    result = stored(here / "run", cell)
    assert (result.status, result.phase, result.reason) == ("timeout", "score", "not done after 500 s")
    assert len(result.throughput.step_seconds) == 1
    assert summary.exit_code == 4


def test_a_job_is_ended_when_its_seconds_are_over(here: Path, plan: Any, listening: Any) -> None:
    """Wherever it is by then: it would never end."""
    cell = faulty(plan, "hangs")
    assert run([cell], here / "run", timeout=0.5, listener=listening).exit_code == 4
    result = stored(here / "run", cell)
    assert (result.status, result.reason) == ("timeout", "not done after 0.5 s")


def test_finished_cells_are_kept_and_failed_ones_retried_when_asked(here: Path, plan: Any, listening: Any) -> None:
    cells = [plan(), faulty(plan, "raises"), faulty(plan, "needs_too_much")]
    run(cells, here / "run", listener=listening)
    before = {file.name: file.stat().st_mtime_ns for file in (here / "run" / "cells").iterdir()}

    again = run(cells, here / "run", listener=listening)
    assert (again.kept, again.exit_code) == (3, 4)
    assert {file.name: file.stat().st_mtime_ns for file in (here / "run" / "cells").iterdir()} == before

    (here / "faults.py").write_text(FAULTS.replace("raise ValueError", "return ValueError"))
    retried = run(cells, here / "run", retry=frozenset({"error"}), listener=listening)
    assert (retried.kept, retried.exit_code) == (2, 0)
    assert stored(here / "run", cells[1]).status == "ok"


def test_a_corrupted_result_is_set_aside_and_its_cell_runs_again(here: Path, plan: Any, listening: Any) -> None:
    cells = [plan(), plan(seed=1)]
    run(cells, here / "run", listener=listening)
    file = here / "run" / "cells" / f"{cells[0].cell.id}.json"
    half = file.read_text()[: file.stat().st_size // 2]
    file.write_text(half)

    summary = run(cells, here / "run", listener=listening)
    assert (summary.kept, summary.counts) == (1, {"ok": 2})
    assert any(file.name in message for message in listening.messages)
    assert [one.file.read_text() for one in RunFolder.open(here / "run").unreadable] == [half]


def test_a_second_run_on_the_same_folder_is_refused(here: Path, plan: Any, listening: Any) -> None:
    folder = RunFolder(here / "run")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-c",
            "import sys, time; from pathlib import Path; from vrambench.bench.results.store import RunFolder\n"
            "folder = RunFolder(Path(sys.argv[1])); folder.acquire(); print('held', flush=True); time.sleep(60)",
            str(folder.path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigurationError, match="another run is at work"):
            run([plan()], folder.path, listener=listening)
    finally:
        holder.kill()
        holder.wait()
    assert run([plan()], folder.path, listener=listening).exit_code == 0, "a dead holder's lock holds nobody up"


def test_a_disk_that_is_full_loses_nothing(here: Path, plan: Any, listening: Any, small_disk: Path) -> None:
    first, second = plan(), plan(seed=1)
    folder = small_disk / "run"
    run([first], folder, listener=listening)
    filler = small_disk / "filler"
    fill_up(filler)

    with pytest.raises((StorageError, OSError), match="No space left"):
        run([first, second], folder, listener=listening)
    assert stored(folder, first).status == "ok"
    assert not [path for path in (folder / "cells").iterdir() if path.suffix == ".tmp"]

    filler.unlink()
    summary = run([first, second], folder, listener=listening)
    assert (summary.kept, summary.exit_code) == (1, 0)


def test_a_result_that_the_folder_cannot_take_is_kept_elsewhere(
    here: Path, plan: Any, listening: Any, monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    """The disk fills up while the job runs: run.json was written, the result finds no room."""
    folder = small_disk / "run"
    monkeypatch.setenv("TMPDIR", str(here))
    monkeypatch.setattr("tempfile.tempdir", None)
    filler = small_disk / "filler"

    def fill(name: str) -> None:
        (folder / "logs" / f"{cell.cell.id}.log").touch()
        fill_up(filler)

    cell = plan()
    listening.on_started = fill
    with pytest.raises(StorageError, match="is kept in") as caught:
        run([cell], folder, listener=listening)
    kept = Path(str(caught.value).split("is kept in ")[1].split(";")[0])
    assert Result.model_validate_json(kept.read_text()).status == "ok"

    filler.unlink()
    listening.on_started = lambda name: None
    assert run([cell], folder, listener=listening).exit_code == 0


def fill_up(filler: Path) -> None:
    """Writes until the disk is full."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"0" * 1024):
            pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("packed")
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_in_the_middle_goes_on_where_it_was(here: Path, ending: signal.Signals) -> None:
    """The parent dies by a signal while its third cell hangs; the finished cells stay, the job dies, the rest runs."""
    command = [
        str(Path(sys.executable).with_name("vrambench")),
        *("run", "matrix.yaml", "--out", "run", "--device", "cpu", "--timeout", "300", "--jobs", "1"),
    ]
    (here / "matrix.yaml").write_text(MATRIX)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=here)
    log = wait_for(lambda: next((path for path in hanging_logs(here)), None), process)
    worker = int(log.read_text().split("hanging in ")[1].split()[0])
    process.send_signal(ending)
    output, _ = process.communicate(timeout=180)
    finished = {path.name for path in (here / "run" / "cells").glob("*.json")}
    assert len(finished) == 2
    if ending is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert "vrambench run" in output, "it says how to go on"
        assert "--out run" in output
    wait_for(lambda: not Path(f"/proc/{worker}").exists() or zombie(worker), None)

    (here / "faults.py").write_text("def hangs(prompts, responses):\n    return responses.float().mean(dim=1)\n")
    assert main(command[1:]) == 0, "here, without a process that imports all anew"
    statuses = [json.loads(path.read_text())["status"] for path in (here / "run" / "cells").glob("*.json")]
    assert statuses == ["ok"] * 4


MATRIX = """
workload: {model: tiny, prompt_tokens: 4, response_tokens: 4, batch_size: 2, rollout_batch: 2, steps: 2, warmup_steps: 1,
           budget: 2GiB, ppo: {epochs: 1}}
axes: {precision: [fp32], adapter: [none], optimizer: [adamw_torch], offload: [none], algorithm: [sft]}
include:
  - {precision: fp32, adapter: none, optimizer: adamw_torch_fused, offload: none, algorithm: sft}
  - {precision: fp32, adapter: none, optimizer: adamw_torch, offload: none, algorithm: ppo, reward: "faults:hangs"}
  - {precision: fp32, adapter: none, optimizer: adafactor, offload: none, algorithm: sft}
"""


def hanging_logs(here: Path) -> list[Path]:
    return [path for path in (here / "run" / "logs").glob("*.log") if "hanging in " in path.read_text()]


def zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def wait_for(found: Callable[[], Any], process: subprocess.Popen[str] | None, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = found()
        if value:
            return value
        if process is not None and process.poll() is not None:
            pytest.fail(f"the run ended too early: {process.communicate()[0]}")
        time.sleep(0.1)
    pytest.fail("waited in vain")


def stored(folder: Path, cell: PlannedCell) -> Result:
    result = RunFolder.open(folder).read_result(cell.cell.id)
    assert result is not None
    return result


def log(folder: Path, cell: PlannedCell) -> str:
    return RunFolder(folder).log(cell.cell.id).read_text()
