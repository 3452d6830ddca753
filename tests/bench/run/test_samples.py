"""From how a job ended to its sample, and a session on an executor that has no processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.machine.environment import describe_environment
from vrambench.bench.measure.progress import Progress
from vrambench.bench.results.records import Memory, Sample, Throughput
from vrambench.bench.results.store import RunFolder
from vrambench.bench.run.executor import Ended, Order, Spot
from vrambench.bench.run.local import AwakeClock
from vrambench.bench.run.samples import sample_of
from vrambench.bench.run.session import run
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError

OK = Sample(status="ok", throughput=Throughput(step_seconds=(1.0,)))


@pytest.mark.parametrize(
    ("ended", "status", "reason"),
    [
        (Ended(final=OK), "ok", None),
        (Ended(exit_code=3, last_words="bye"), "error", "ended with exit code 3: bye"),
        (Ended(exit_code=0, garbled=2, last_words="no output"), "error", "(2 messages of it could not be read)"),
        (Ended(exit_code=-11), "crashed", "ended by SIGSEGV"),
        (Ended(exit_code=-40), "crashed", "ended by signal 40"),
        (Ended(exit_code=-9, out_of_host_memory=True), "oom", "out-of-memory killer"),
        (Ended(exit_code=-9, timed_out_seconds=8), "timeout", "not done after 8 s"),
        (Ended(exit_code=None, timed_out_seconds=8), "timeout", "could not be ended"),
        (Ended(exit_code=255, lost="the server of its process"), "error", "what the job ran under ended"),
        (Ended(exit_code=1, last_words="Error out of memory at line 5 in file x"), "oom", "exit code 1"),
    ],
)
def test_how_a_job_ended_is_its_status(ended: Ended, status: str, reason: str | None) -> None:
    sample = sample_of(ended)
    assert sample.status == status
    assert (sample.reason is None) if reason is None else (reason in (sample.reason or ""))


def test_a_result_keeps_what_is_odd_about_its_end_as_notes() -> None:
    notes = sample_of(Ended(final=OK, exit_code=-15, garbled=1)).notes
    assert notes == (
        "the process ended with SIGTERM after its result was complete",
        "1 message of the job could not be read",
    )


def test_what_was_measured_before_the_end_stays() -> None:
    steps = [Progress(memory=Memory(allocated_bytes=n), phases=(), step_seconds=float(n)) for n in (1, 2)]
    sample = sample_of(Ended(progress=tuple(steps), spot=Spot("learn", 3), exit_code=-9))
    assert (sample.memory.allocated_bytes, sample.throughput.step_seconds, sample.phase) == (2, (1.0, 2.0), "learn")


class Told:
    """A job that ends as it is told."""

    spot = Spot("learn", 1)

    def __init__(self) -> None:
        self.ended: Ended | None = None


class Elsewhere:
    """An executor without a process: one ending for each job, in turn."""

    most_lost = 2

    def __init__(self, endings: Sequence[Ended]) -> None:
        self.endings = list(endings)
        self.expected: list[Cell] = []
        self.jobs: list[Told] = []
        self.killed = False

    def environment(self, on: str | None = None) -> dict[str, Any]:
        return describe_environment("cpu")

    def expect(self, cells: Sequence[Cell]) -> None:
        self.expected = list(cells)

    def prepare(self, axis: str, name: str, log: Path) -> str | None:
        return None

    def has_room(self, on: str | None) -> bool:
        return all(job.ended is not None for job in self.jobs)

    def start(self, order: Order) -> Told:
        self.jobs.append(Told())
        return self.jobs[-1]

    def wait(self, seconds: float) -> None:
        for job in self.jobs:
            job.ended = job.ended or self.endings.pop(0)

    def kill(self) -> None:
        self.killed = True


def go(endings: Sequence[Ended], planned: Any, listening: Any, folder: Path) -> tuple[Any, Elsewhere]:
    executor = Elsewhere(endings)
    run([planned], folder, executor=executor, jobs=2, listener=listening)
    return RunFolder.open(folder).read_result(planned.cell.id), executor


def test_a_session_knows_no_process(plan: Any, listening: Any, tmp_path: Path) -> None:
    result, executor = go([Ended(final=OK)], plan(), listening, tmp_path / "run")
    assert (result.status, len(executor.jobs), executor.killed) == ("ok", 1, True)
    assert executor.expected == [plan().cell], "before any job"


def test_a_lost_job_runs_again_but_not_for_ever(plan: Any, listening: Any, tmp_path: Path) -> None:
    lost = Ended(exit_code=255, lost="the server of its process")
    result, executor = go([lost, Ended(final=OK)], plan(), listening, tmp_path / "once")
    assert (result.status, len(result.samples), len(executor.jobs)) == ("ok", 1, 2)
    assert result.notes == ("lost on the way, and run again: the server of its process had ended",)
    result, executor = go([lost, lost], plan(), listening, tmp_path / "twice")
    assert (result.status, result.reason) == ("error", "what the job ran under ended, and took it along")


def test_a_parent_that_was_stopped_did_not_wait() -> None:
    moments = iter([0.0, 1.0, 2.0, 3602.0, 3603.0])
    clock = AwakeClock(lambda: next(moments))
    assert [clock() for _ in range(4)] == [1.0, 2.0, 2.0, 3.0]


@pytest.mark.parametrize("timeout", [float("inf"), float("nan")])
def test_a_timeout_is_a_number_of_seconds(timeout: float, plan: Any, listening: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^timeout: (inf|nan) is no number of seconds"):
        run([plan()], tmp_path / "run", timeout=timeout, listener=listening)
