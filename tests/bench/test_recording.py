"""What a recorded job's requests for memory are called, and what becomes of its recording; CUDA's part is played by hand."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bench.allocator.made import whole_recording
from vrambench.bench.allocator.snapshot import read_snapshot
from vrambench.bench.measure.measurement import Measurement
from vrambench.bench.measure.meters.cpu import CpuMeter
from vrambench.bench.measure.recording import Names, Recording, owners
from vrambench.methods.device import get_device


def test_memory_is_called_by_the_phase_the_role_and_the_module_at_work(plan: Any) -> None:
    told: list[str] = []
    names: Names | None = None

    def listen(phase: str, _: int | None) -> None:
        assert names
        names.enter(phase)

    planned = plan({"algorithm": "ppo"}, value="separate", steps=1, warmup_steps=1, rollout_batch=4)
    measurement = Measurement(planned.cell, get_device("cpu"), CpuMeter(), listen=listen)
    names = Names(measurement.job, told.append)
    names.begin()
    assert measurement.run().status == "ok"
    names.end()
    assert told[0] == "load: "
    assert told[-1] == ""
    assert any(one.startswith("rollout: policy/") and ".mlp" in one for one in told)
    assert any(one.startswith("learn: value/") for one in told)
    assert told.count("optimizer_step: ") >= 2
    assert not any(one.startswith("optimizer_step: policy") for one in told), "no module is at work there"
    before = len(told)
    torch.nn.Linear(2, 2)(torch.ones(1, 2))
    assert len(told) == before, "nothing listens any more"


def test_weights_and_optimizer_state_are_known_by_their_addresses(plan: Any) -> None:
    measurement = Measurement(plan(steps=1, warmup_steps=1).cell, get_device("cpu"), CpuMeter())
    measurement.run()
    found = owners(measurement.job)
    module, learner = measurement.job.roles["policy"].module, measurement.job.roles["policy"].learner
    assert learner
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    assert {found[address] for address in weights} == {("policy", "weights")}
    state = {tensor.untyped_storage().data_ptr() for tensor in learner.optimizer_state()}
    assert {found[address] for address in state} == {("policy", "optimizer")}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The recording that CUDA gives, which a test may change."""
    recording = whole_recording()
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda.memory, "_set_memory_metadata", lambda text: None)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: recording)
    return recording


def test_a_recording_is_a_file_and_a_map(plan: Any, tmp_path: Path, cuda: dict[str, Any]) -> None:
    measurement = Measurement(plan(steps=1).cell, get_device("cpu"), CpuMeter())
    recording = Recording(tmp_path / "recordings" / "one.pickle.gz", measurement.job)
    with recording:
        recording.enter("load", None)
    sample = recording.added_to(measurement.sample("ok"))
    blocks = sample.blocks
    assert blocks
    assert sum(nbytes for segment in blocks.segments for _, nbytes in segment) == 22 * 2**20
    assert not any(note.startswith("no map") for note in sample.notes)
    assert read_snapshot(tmp_path / "recordings" / "one.pickle.gz").segments
    assert type(blocks).model_validate_json(blocks.model_dump_json()) == blocks
    assert pickle.loads(pickle.dumps(blocks)) == blocks


def test_a_recording_that_does_not_tell_is_a_note(plan: Any, tmp_path: Path, cuda: dict[str, Any]) -> None:
    cuda["segments"][0]["blocks"][0]["state"] = "lost"
    measurement = Measurement(plan(steps=1).cell, get_device("cpu"), CpuMeter())
    recording = Recording(tmp_path / "one.pickle.gz", measurement.job)
    with recording:
        pass
    sample = recording.added_to(measurement.sample("ok"))
    assert sample.blocks is None
    note = sample.notes[-1]
    assert note.startswith("no map of the allocator's blocks: ")
    assert "lost" in note


def test_what_nobody_foresaw_is_a_note_too(
    plan: Any, tmp_path: Path, cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured is not lost with it."""
    measurement = Measurement(plan(steps=1).cell, get_device("cpu"), CpuMeter())
    recording = Recording(tmp_path / "one.pickle.gz", measurement.job)
    with recording:
        pass
    monkeypatch.setattr("vrambench.bench.measure.recording.owners", lambda job: job.no_such_thing)
    sample = recording.added_to(measurement.sample("ok"))
    assert sample.blocks is None
    note = sample.notes[-1]
    assert note.startswith("no map of the allocator's blocks: AttributeError: ")
