"""The offload `activations`: torch's save_on_cpu, the simulated job beside the real one, and what it leaves on the device."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests.bench.predict.test_activation_offloading import CELLS, CHECKPOINTED, LARGE, REENTRANT, cell_of
from tests.bench.predict.test_equality import differences
from tests.bench.predict.traces import traced
from vrambench.bench.predict.simulate import Simulation, Simulator
from vrambench.bench.predict.tracing.trace import HOST
from vrambench.methods.cell import Cell
from vrambench.methods.device import get_device
from vrambench.methods.job import Job
from vrambench.methods.offload import activations


def saving(**said: Any) -> Cell:
    return cell_of(**said | {"activation_offloading": False, "offload": "activations"})


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU as on CUDA, but for the page-locking: what is saved is copied. Else it would be where it is to go."""
    usual = torch.empty

    def empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return usual(*args, **kwargs)

    def forward(self: Any) -> Any:
        if self._device.simulated:
            return activations.SimulatedSaveOnCpu(self._device)
        return torch.autograd.graph.save_on_cpu(pin_memory=True, device_type="cpu")

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(activations.SaveOnCpu, "forward", forward)


@pytest.mark.usefixtures("copying")
@pytest.mark.parametrize("name", ["full", "full, checkpointed", "full, reentrant", "autocast", "lora", "qlora", "ppo"])
def test_the_simulated_job_saves_what_the_real_one_does(name: str) -> None:
    cell = saving(**CELLS[name])
    real = traced(cell, get_device("cpu"))
    simulated = traced(cell, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    assert abs(simulated.peak_bytes() - real.peak_bytes()) <= 0.002 * real.peak_bytes()
    assert not differences(cell, real, simulated)


@pytest.mark.usefixtures("copying")
@pytest.mark.parametrize("said", [{}, CHECKPOINTED, REENTRANT, {"adapter": "lora", "lora_dropout": 0.1}], ids=str)
def test_it_trains_as_without_it(said: dict[str, Any]) -> None:
    losses = []
    for cell in (saving(**said), cell_of(**said | {"activation_offloading": False})):
        job = Job(cell, get_device("cpu"))
        job.load()
        losses.append([float(job.step(index)["loss"]) for index in range(3)])
    assert losses[0] == losses[1]


def simulation(cell: Cell) -> Simulation:
    return Simulator().run(cell)


@pytest.mark.parametrize("said", [{}, CHECKPOINTED], ids=str)
def test_less_is_on_the_device_and_weights_are_on_the_host_too(said: dict[str, Any]) -> None:
    """gpt2's linear layers save their weights. TRL's way leaves those, and the head's input, where they are."""
    settings = LARGE | said
    without = simulation(cell_of(**settings | {"activation_offloading": False}))
    trls, torchs = simulation(cell_of(**settings)), simulation(saving(**settings))
    assert (torchs.trace.peak_bytes() < without.trace.peak_bytes()) == (not said), (
        "a copy of the head's weight comes back"
    )
    weights = torchs.roles["policy"].weights_bytes
    assert torchs.host_pinned_bytes > trls.host_pinned_bytes + (0 if said else 0.5 * weights)
    assert torchs.host_bytes == torchs.host_pinned_bytes
    assert without.host_bytes == 0


def test_the_host_gets_everything_back() -> None:
    trace = simulation(saving(**LARGE)).trace
    moved = [event.nbytes for event in trace.events if event.kind == HOST]
    assert sum(moved) == 0
    assert any(moved)

    assert not trace.copies
