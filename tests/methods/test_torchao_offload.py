"""torchao's CPUOffloadOptimizer: its own class, on a CPU that is both host and device, beside the stand-in and beside training
without it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from tests.bench.predict.traces import traced
from vrambench.bench.predict.simulate import Simulator
from vrambench.bench.predict.tracing.trace import ALLOC, Trace
from vrambench.methods.cell import Cell
from vrambench.methods.device import get_device
from vrambench.methods.job import Job
from vrambench.methods.streams import NoStream, page_locked_bytes

MakeCell = Callable[..., Cell]

OFFLOADED: dict[str, Any] = {
    "offload": "torchao_optimizer",
    "max_grad_norm": 0.0,
    "learning_rate": 1e-2,
    "response_tokens": 2,
    "cpu_offload": {"minimal_size": 300},
}
FREED = {"cpu_offload": {"minimal_size": 300, "offload_gradients": True}}
CASES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "gradients freed": FREED,
    "bf16, accumulated": {"precision": "bf16", "gradient_accumulation_steps": 2},
    "adafactor": {"optimizer": "adafactor"},
    "ppo with a critic": {"algorithm": "ppo", "value": "separate", "ppo": {"epochs": 1}},
    "lora on nf4": {"precision": "nf4", "adapter": "lora"},
}


class Stream(NoStream):
    def record_event(self) -> Any:
        return self


class Torch:
    """torch as torchao's module sees it, with the CPU for CUDA and no page-locked memory."""

    class cuda:
        Stream = Stream

        @staticmethod
        def current_stream() -> Stream:
            return Stream()

        @staticmethod
        def stream(stream: Stream) -> Any:
            return nullcontext()

    @staticmethod
    def empty_like(tensor: torch.Tensor, *, device: str | None = None, pin_memory: bool = False) -> torch.Tensor:
        return torch.empty_like(tensor.detach(), device=device)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("torchao.optim.cpu_offload")
    monkeypatch.setattr(module, "torch", Torch())
    monkeypatch.setattr(module, "get_available_devices", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)


def losses(cell: Cell) -> list[float]:
    job = Job(cell, get_device("cpu"))
    job.load()
    return [float(job.step(index)["loss"]) for index in range(3)]


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", CASES)
def test_it_trains_as_without_it(cell: MakeCell, name: str) -> None:
    said = OFFLOADED | CASES[name]
    without = losses(cell(**{key: value for key, value in said.items() if key != "cpu_offload"} | {"offload": "none"}))
    assert losses(cell(**said)) == pytest.approx(without, rel=0, abs=2e-3 if "bf16" in name or "nf4" in name else 1e-5)
    assert len(set(without)) == 3


def allocations(trace: Trace) -> Counter[int]:
    """Of the second step's passes, without attention's, which is another operator on the simulated device."""
    return Counter(
        event.nbytes
        for event in trace.events
        if event.kind == ALLOC
        and event.place.step == 1
        and event.place.phase == "learn"
        and event.nbytes >= 64
        and "scaled_dot" not in event.operator
    )


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", ["fp32", "gradients freed", "bf16, accumulated", "adafactor"])
def test_the_stand_in_does_to_the_device_what_torchaos_does(cell: MakeCell, name: str) -> None:
    """What is more on the CPU is what the host holds."""
    made = cell(**OFFLOADED | CASES[name])
    real = traced(made, get_device("cpu"))
    simulated = traced(made, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    assert allocations(real) == allocations(simulated)
    job = Job(made, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    job.load()
    learner: Any = job.roles["policy"].learner
    held = sum(buffer.nbytes for buffer in learner.host_memory)
    (*_, (_, here)), (*_, (_, there)) = real.live(), simulated.live()
    assert here - there == pytest.approx(held, abs=64 * len(learner.parameter_groups[0]))  # steps' numbers


def test_what_the_host_holds_is_told(cell: MakeCell) -> None:
    made = cell(**OFFLOADED | {"precision": "bf16"})
    found, freed = (Simulator().run(each) for each in (made, cell(**OFFLOADED | {"precision": "bf16"} | FREED)))
    job = Job(made, get_device("meta"))
    job.load()
    large = [parameter for parameter in job.parameters() if parameter.numel() >= 300]
    assert found.host_pinned_bytes == 2 * sum(page_locked_bytes(parameter.nbytes) for parameter in large)
    assert found.host_bytes == found.host_pinned_bytes + 2 * sum(parameter.nbytes for parameter in large)
    assert freed.roles["policy"].gradients_bytes < 0.1 * found.roles["policy"].gradients_bytes
    assert found.roles["policy"].optimizer_bytes < 0.01 * found.roles["policy"].weights_bytes
