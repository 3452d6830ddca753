"""Activation offloading beside TRL's own class, and without it: the same bytes, and the same training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from tests.bench.predict.traces import traced
from tests.trainers import offloading
from vrambench.bench.predict.tracing.trace import ALLOC, FREE, Trace
from vrambench.methods.activation_offloading import OffloadActivations, output_heads
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import Device, get_device
from vrambench.methods.job import Job
from vrambench.methods.offload import learner
from vrambench.methods.streams import NoStream, Streams

SIZES: dict[str, Any] = {"model": "tiny", "batch_size": 2, "prompt_tokens": 24, "response_tokens": 8}


def cell_of(**said: Any) -> Cell:
    axes = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    settings = (
        SIZES | {"activation_offloading": True} | {name: value for name, value in said.items() if name not in axes}
    )
    return resolve(axes | {name: value for name, value in said.items() if name in axes}, settings)


CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}
CELLS: dict[str, dict[str, Any]] = {
    "full": {},
    "checkpointed": CHECKPOINTED,
    "reentrant": CHECKPOINTED | {"use_reentrant": True},
    "fp32": {"precision": "fp32"},
    "fp32, checkpointed": {"precision": "fp32"} | CHECKPOINTED,
    "autocast": {"precision": "bf16_amp", "attention": "math"},
    "autocast, reentrant": {"precision": "bf16_amp", "use_reentrant": True} | CHECKPOINTED,
    "lora, its logits in chunks": {"adapter": "lora", "lora_dropout": 0.1, "loss": "chunked_nll", "prompt_tokens": 700},
    "qlora": {"adapter": "lora", "precision": "nf4", "autocast": "bf16", "fp32_modules": "all"} | CHECKPOINTED,
    "layer norms": {"model": "tiny-gpt2"} | CHECKPOINTED,
    "a value model": {
        "adapter": "lora",
        "algorithm": "ppo",
        "value": "separate",
        "rollout_batch": 2,
        "ppo": {"epochs": 1},
    },
    "ppo": {"adapter": "lora", "algorithm": "ppo", "rollout_batch": 2, "ppo": {"epochs": 1}},
}


class Theirs:
    """TRL's class, entered and left as SFTTrainer.training_step does."""

    def __init__(self, module: Any, device: Device) -> None:
        self._context = offloading.made(module.model)

    @contextmanager
    def forward(self) -> Iterator[None]:
        self._context.__enter__()
        yield

    @contextmanager
    def backward(self) -> Iterator[None]:
        yield
        self._context.__exit__(None, None, None)


def events(trace: Trace) -> list[tuple[int, int, int]]:
    """In steps: (kind, ident from the first step on, bytes). Frees in a row are sorted: autocast drops copies of weights in any
    order."""
    steps = [event for event in trace.events if event.kind in (ALLOC, FREE) and event.place.step is not None]
    first = min(event.ident for event in steps if event.kind == ALLOC)
    events = [(event.kind, event.ident - first, event.nbytes) for event in steps]
    runs = itertools.groupby(events, lambda event: event[0])
    return [event for kind, run in runs for event in (sorted(run) if kind == FREE else run)]


@pytest.mark.parametrize("name", CELLS)
def test_it_allocates_and_frees_what_trls_own_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same order, whole jobs long, on a CPU that passes for a GPU."""
    cell = cell_of(**CELLS[name])
    lent: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(Streams, "used_by_work", lambda self, tensor: lent.append(tensor.nbytes))
        ours = traced(cell, get_device("cpu"))
    theirs_lent = offloading.prepare(monkeypatch)
    monkeypatch.setattr(learner, "OffloadActivations", Theirs)
    assert events(ours) == events(traced(cell, get_device("cpu")))
    assert lent == theirs_lent


def trained(**said: Any) -> tuple[list[float], list[torch.Tensor]]:
    """Three steps' losses, and the weights after them."""
    job = Job(cell_of(learning_rate=0.01, **said), get_device("cpu"))
    job.load()
    losses = [float(job.step(index)["loss"]) for index in range(3)]
    return losses, [parameter.detach() for parameter in job.parameters()]


@pytest.mark.parametrize("name", [name for name in CELLS if name != "qlora"])
def test_a_job_trains_as_it_does_without(name: str) -> None:
    losses, weights = trained(**CELLS[name])
    losses_without, weights_without = trained(**CELLS[name] | {"activation_offloading": False})
    if "amp" in CELLS[name].get("precision", "") and _products_depend_on_layout():
        assert losses == pytest.approx(losses_without, rel=2**-8)
        assert _norm(map(torch.sub, weights, weights_without)) < 2**-7 * _norm(weights_without)
    else:
        assert losses == losses_without
        assert all(map(torch.equal, weights, weights_without))
    assert losses[0] != losses[2]


def _products_depend_on_layout() -> bool:
    """On CPUs without instructions for bf16 batched products add up in an order that goes by the strides; what comes back from
    the host has its own."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(4, *shape, generator=generator).bfloat16() for shape in ((64, 96), (96, 32)))
    return not torch.equal(one @ other, one @ other.mT.contiguous().mT)


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(tensor)) for tensor in tensors))


def saved_by(module: nn.Module, inputs: torch.Tensor) -> tuple[OffloadActivations, torch.Tensor]:
    """What is left after a forward pass, and its result."""
    activations = OffloadActivations(module, get_device("cpu"))
    with activations.forward():
        return activations, module(inputs)


def moved(activations: OffloadActivations) -> list[int]:
    """Bytes of what was offloaded, in order."""
    return [one.host.nbytes for one in activations._saved.values() if isinstance(one.host, torch.Tensor)]


def test_parameters_and_what_is_small_stay_on_the_device() -> None:
    linear = nn.Linear(64, 64)
    large, _ = saved_by(linear, torch.randn(4, 64, requires_grad=True))
    small, _ = saved_by(linear, torch.randn(3, 64, requires_grad=True))
    assert moved(large) == [4 * 64 * 4]
    assert moved(small) == []
    assert len(large._saved) == len(small._saved) == 2


class Shared(nn.Module):
    """Layers that save the same input, and then `others` tensors."""

    def __init__(self, others: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.others = others

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        total = self.first(inputs)
        for _ in range(self.others):
            total = total.sigmoid()
        return total + self.second(inputs)


def test_what_is_saved_again_while_the_stash_holds_it_stays_on_the_device() -> None:
    nbytes = 4 * 64 * 4
    for others, times in ((0, 1), (4, 5), (5, 7)):
        activations, made = saved_by(Shared(others), torch.randn(4, 64))
        assert moved(activations) == [nbytes] * times
        with activations.backward():
            made.sum().backward()
        assert not activations._saved


def test_what_is_repeated_or_has_gaps_comes_back_as_it_was() -> None:
    inputs = torch.randn(40, 64)
    for view in (inputs.t(), inputs[1:], inputs[::2], inputs[:, None].expand(40, 3, 64), inputs[1:, 3:]):
        factor = nn.Parameter(torch.randn(view.shape))
        module = nn.ParameterList([factor])
        activations = OffloadActivations(module, get_device("cpu"))
        with activations.forward():
            made = (factor * view).sum()
        with activations.backward():
            made.backward()
        assert factor.grad is not None
        assert torch.equal(factor.grad, view)


def test_two_forward_passes_may_come_before_the_backward_pass() -> None:
    linear = nn.Linear(64, 64)
    activations = OffloadActivations(linear, get_device("cpu"))
    losses = []
    for _ in range(2):
        with activations.forward():
            losses.append(linear(torch.ones(4, 64)).sum())
    with activations.backward():
        sum(losses).backward()
    assert linear.weight.grad is not None
    assert torch.equal(linear.weight.grad, torch.full((64, 64), 8.0))


@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("model", ["tiny", "tiny-gpt2", "tiny-neox"])
def test_heads_are_found_by_trls_names(model: str, adapter: str) -> None:
    job = Job(cell_of(model=model, adapter=adapter, algorithm="ppo", value="separate"), get_device("cpu"))
    job.load()
    policy = job.roles["policy"].module
    assert output_heads(policy) == [part for path, part in policy.named_modules() if path.endswith("lm_head")]
    assert output_heads(job.roles["value"].module) == []


def test_no_forward_pass_without_gradients_is_offloaded() -> None:
    job = Job(cell_of(algorithm="ppo", adapter="lora", rollout_batch=2), get_device("cpu"))
    job.load()
    policy = job.roles["policy"].learner
    assert isinstance(policy, learner.PlainLearner)
    assert policy._activations is not None
    with torch.no_grad(), policy.forward():
        policy.module(torch.zeros(2, 32, dtype=torch.int64), 24)
    assert not policy._activations._saved


class Logged(NoStream):
    """Says who waits for what."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.events = name, log, 0

    def record_event(self) -> str:
        self.events += 1
        return f"{self.name} {self.events}"

    def wait_event(self, event: Any) -> None:
        self.log.append(f"{self.name} waits for {event}")


def test_each_stream_waits_for_the_other_where_both_use_a_copy_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    factor, offset = nn.Parameter(torch.randn(40, 64)), torch.randn(41, 64)
    activations = OffloadActivations(nn.ParameterList([factor]), get_device("cpu"))
    monkeypatch.setattr(activations._streams, "work", Logged("work", log))
    monkeypatch.setattr(activations._streams, "copies", Logged("copies", log))
    for view, waits in (
        (offset[1:], ["work waits for copies 1", "copies waits for work 1", "work waits for copies 2"]),
        (offset[:-1], ["work waits for copies 3"]),
    ):
        with activations.forward():
            made = (factor * view).sum()
        with activations.backward():
            made.backward()
        assert log == waits
        log.clear()
