"""What comes through a job's pipe: messages as they were sent, and nothing that is none holds up or harms the parent."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator

import pytest

from vrambench.bench.measure.progress import Progress
from vrambench.bench.results.records import Learning, Memory, Parameters, Phase, Sample, Throughput
from vrambench.bench.run.messages import LONGEST, Inbox, send

PROGRESS = Progress(
    memory=Memory(allocated_bytes=2**40, host_rss_bytes=3),
    phases=(Phase(name="load", step=None, seconds=0.1 + 0.2),),
    notes=("a note",),
    parameters=Parameters(total=7, trainable=5),
)
SAMPLE = Sample(
    status="ok",
    reason="half a letter \ud800",
    learning=Learning(loss=(1 / 3, None)),
    throughput=Throughput(step_seconds=(1e-9,), energy_joules=float("inf")),
)


@pytest.fixture
def pipe() -> Iterator[tuple[Inbox, int]]:
    ours, theirs = os.pipe()
    yield Inbox(ours), theirs
    os.close(ours)
    os.close(theirs)


def test_what_is_sent_arrives_to_the_bit(pipe: tuple[Inbox, int]) -> None:
    inbox, handle = pipe
    send(handle, PROGRESS)
    send(handle, SAMPLE)
    inbox.read()
    assert (inbox.progress, inbox.final, inbox.garbled, inbox.closed) == ([PROGRESS], SAMPLE, 0, False)


def test_half_a_message_is_not_waited_for(pipe: tuple[Inbox, int]) -> None:
    inbox, handle = pipe
    os.write(handle, b'{"sample": {"status": "ok"')
    inbox.read()  # the writer is silent from here on
    assert inbox.final is None
    os.write(handle, b"}}\n")
    inbox.read()
    assert inbox.final == Sample(status="ok")


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize(
    "noise",
    [
        b"\xff\xff\xff\xff\x00garbage\n",
        b"\x7f\xff\xff\xff\n",
        pickle.dumps(Attack(), 0).replace(b"\n", b" ") + b"\n",
        b"[" * 5000 + b"\n",
        b'{"sample": {"status": "splendid"}}\n',
        b'{"progress": null}\n',
        b"9" * 5000 + b"\n",
    ],
)
def test_noise_is_counted_and_the_next_message_read(noise: bytes, pipe: tuple[Inbox, int]) -> None:
    inbox, handle = pipe
    os.write(handle, noise)
    send(handle, SAMPLE)
    inbox.read()
    assert inbox.final == SAMPLE
    assert inbox.garbled == 1
    assert not os.path.exists("attacked")  # noqa: PTH110


def test_an_end_in_the_middle_of_a_message_is_an_end() -> None:
    ours, theirs = os.pipe()
    inbox = Inbox(ours)
    os.write(theirs, b"{")
    os.close(theirs)
    inbox.read()
    assert (inbox.closed, inbox.garbled, inbox.final) == (True, 1, None)
    os.close(ours)


def test_a_line_without_an_end_is_not_kept(pipe: tuple[Inbox, int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert LONGEST >= 2**20
    monkeypatch.setattr("vrambench.bench.run.messages.LONGEST", 1000)
    inbox, handle = pipe
    os.write(handle, b"x" * 1001)
    inbox.read()
    assert (inbox.garbled, len(inbox._half)) == (1, 0)
