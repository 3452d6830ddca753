"""Whose memory was in use at the peaks of a recorded job, against the tracer that predictions rest on: both follow one job here on
the CPU, whose storages are written down as CUDA's allocator writes down its blocks."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vrambench.bench.allocator.comparison import DeviceTrace
from vrambench.bench.allocator.recorded import Entry, Start
from vrambench.bench.allocator.snapshot import Asked, Span
from vrambench.bench.measure.meters.storages import Storage, Storages
from vrambench.bench.measure.recording import Recording
from vrambench.bench.measure.whose import LEAST_HELD, Mark, Told, whose
from vrambench.bench.predict.replay import whose as traced_whose
from vrambench.bench.predict.tracing.job import TracedJob
from vrambench.bench.predict.tracing.places import in_backward
from vrambench.bench.predict.tracing.trace import ALLOC, FREE, MARK, Event, Trace
from vrambench.bench.predict.tracing.tracer import Tracer
from vrambench.methods.device import get_device

MAIN = {"filename": "/me/job/train.py", "line": 1, "name": "<module>"}


class Played(TorchDispatchMode):
    """Writes down the storages of the CPU as CUDA's allocator would its blocks: when, at which address, called what, and by which
    stack, which is empty where autograd's engine asks, as it is in its thread on CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self.times: list[int] = []
        self.asked: list[Asked] = []
        self.spans: list[Span] = []
        self.called = ""
        self._begun: list[tuple[str, int]] = []
        self._addresses: dict[int, int] = {}
        self._storages = Storages("cpu", self._ended)

    def tell(self, text: str) -> None:
        self.called = text

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if str(func).startswith("profiler._record_function_enter_new"):
            self._begun.append((str(args[0]), now()))
        elif str(func).startswith("profiler._record_function_exit"):
            name, begin = self._begun.pop()
            self.spans.append(Span(name, begin, now()))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (storage := self._storages.appeared(leaf)) is not None:
                self._storages.add(storage)
                self._addresses[storage.key] = leaf.untyped_storage().data_ptr()
                self._write("alloc", storage)
                self.asked.append(Asked([] if in_backward() else [MAIN], self.called))
        return result

    def _ended(self, storage: Storage) -> None:
        self._write("free_completed", storage)

    def _write(self, action: str, storage: Storage) -> None:
        self.entries.append((action, self._addresses[storage.key], storage.nbytes, 0))
        self.times.append(now())

    def trace(self) -> DeviceTrace:
        return DeviceTrace(
            0, Start(), tuple(self.entries), (), None, tuple(self.times), tuple(self.asked), {}, tuple(self.spans)
        )


def now() -> int:
    return time.time_ns() // 1000


class Followed(TracedJob):
    """Told to a recording, too."""

    recording: Recording
    index: int | None = None

    def step(self, index: int) -> Any:
        self.index = index
        return super().step(index)

    def _enter(self, phase: str) -> None:
        self.recording.enter(phase, self.index)
        super()._enter(phase)


Peaks = dict[tuple[str, int | None], dict[tuple[str | None, str], int]]


def at_peaks(trace: Trace) -> Peaks:
    """What was in use at the peak of each phase of a traced job, by role and kind, without what is little."""
    live: dict[int, Event] = {}
    most: dict[tuple[str, int | None], int] = {}
    found: Peaks = {}
    key: tuple[str, int | None] | None = None
    for event, total in trace.live():
        if event.kind == ALLOC:
            live[event.ident] = event
        elif event.kind == FREE:
            del live[event.ident]
        elif event.kind == MARK:
            key = event.place.phase or "", event.place.step
        if key and event.kind in (ALLOC, MARK) and total > most.get(key, -1):
            sums: Counter[tuple[str | None, str]] = Counter()
            for one in live.values():
                sums[traced_whose(one, trace)] += one.nbytes
            most[key] = total
            found[key] = {whom: nbytes for whom, nbytes in sums.items() if nbytes >= LEAST_HELD * total}
    return found


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    player = Played()
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda.memory, "_set_memory_metadata", player.tell)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", dict)
    return player


@pytest.mark.parametrize(
    ("axes", "workload"),
    [
        ({"algorithm": "sft"}, {"gradient_checkpointing": True}),
        ({"algorithm": "ppo", "adapter": "lora"}, {"response_tokens": 2, "value": "separate", "ppo": {"epochs": 1}}),
        ({"algorithm": "dpo", "precision": "bf16"}, {}),
    ],
)
def test_a_recorded_job_tells_what_the_tracer_tells(
    axes: dict[str, str], workload: dict[str, Any], plan: Any, tmp_path: Path, played: Played
) -> None:
    tracer = Tracer("cpu")
    job = Followed(plan(axes, **workload).cell, get_device("cpu"), tracer)
    job.recording = Recording(tmp_path / "one.pickle.gz", job)
    with tracer, played, job.recording:
        job.load()
        for index in range(2):
            job.step(index)
        told = job.recording.told()
    found, expected = whose(played.trace(), told), at_peaks(tracer.trace)
    kinds = {key: {(one.role, one.kind): one.nbytes for one in of} for key, of in found.phases.items()}
    assert kinds == expected
    highest = max(expected.values(), key=lambda of: sum(of.values()))
    sums: Counter[tuple[str | None, str]] = Counter()
    for one in found.held:
        sums[one.role, one.kind] += one.nbytes
    assert sums["policy", "weights"] == pytest.approx(highest["policy", "weights"], rel=0.05), "but for little ones"
    assert {one.operator for one in found.held} <= {"job/train.py:1 <module>", ""}


def test_requests_without_names_tell_nothing(plan: Any) -> None:
    trace = DeviceTrace(0, Start(), (("alloc", 1, 64, 0),), (), None, (2,), (Asked([MAIN]),), {}, ())
    assert whose(trace, Told([Mark(1, "learn", 0)], {}, frozenset())) == ({}, ())


def test_an_address_that_was_given_again_is_another_block() -> None:
    """Of a gradient that is gone, whatever comes to lie there is no gradient; of what is held at the end, what lay there before is
    not."""
    entries = (
        ("alloc", 1, 640, 0),
        ("free_completed", 1, 640, 0),
        ("alloc", 1, 320, 0),
        ("free_completed", 1, 320, 0),
        ("alloc", 1, 64, 0),
    )
    asked = tuple(Asked([MAIN], name) for name in ("learn: policy/mlp", "learn: policy/norm", "load: policy"))
    trace = DeviceTrace(0, Start(), entries, (), None, (10, 30, 40, 50, 70), asked, {}, ())
    marks = [
        Mark(5, "learn", 0),
        Mark(20, "optimizer_step", 0, {1: "policy"}),
        Mark(35, "learn", 1),
        Mark(60, "load", 2),
    ]
    found = whose(trace, Told(marks, {1: ("value", "weights")}, frozenset()))
    whom = {key: [(one.role, one.kind, one.nbytes) for one in of] for key, of in found.phases.items()}
    assert whom == {
        ("learn", 0): [("policy", "gradients", 640)],
        ("optimizer_step", 0): [("policy", "gradients", 640)],
        ("learn", 1): [("policy", "activations", 320)],
        ("load", 2): [("value", "weights", 64)],
    }
    (held,) = found.held
    assert (held.role, held.kind, held.phase, held.module) == ("policy", "gradients", "learn", "mlp")
