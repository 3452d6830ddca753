"""What `torch.cuda` and `torch.accelerator` say on the simulated device."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import vrambench
from vrambench.bench.watch.cuda import NotFollowed, NoValue

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="predicted where there is no CUDA")
MIB = 1024**2


def test_the_accelerator_is_cuda_within_and_not_after() -> None:
    before = torch.accelerator.is_available(), torch.accelerator.current_accelerator()
    with vrambench.watch() as ledger:
        assert torch.accelerator.is_available()
        assert torch.accelerator.device_count() == 1
        device = torch.accelerator.current_accelerator()
        torch.accelerator.set_device_index(0)
        with torch.accelerator.device_index(0):
            assert torch.zeros(MIB, dtype=torch.uint8, device=device).is_cuda
        torch.accelerator.synchronize()
        torch.accelerator.empty_cache()
        assert torch.get_device_module() is torch.cuda
    assert ledger.memory.allocated_bytes == MIB
    assert (torch.accelerator.is_available(), torch.accelerator.current_accelerator()) == before


def test_a_second_accelerator_is_an_error() -> None:
    with vrambench.watch(), pytest.raises(RuntimeError, match="cuda:1: invalid device ordinal"):
        torch.accelerator.set_device_index(1)
    with vrambench.watch(), pytest.raises(RuntimeError, match="cuda:1: invalid device ordinal"):
        torch.accelerator.device_index(1).__enter__()


@pytest.mark.parametrize("name", ["max_memory_allocated", "memory_reserved", "reset_peak_memory_stats"])
def test_what_the_accelerator_counts_is_no_zero(name: str) -> None:
    with (
        vrambench.watch(),
        pytest.raises(NoValue, match=rf"torch.accelerator.{name}\(\) .* the ledger has the peaks afterwards"),
    ):
        getattr(torch.accelerator, name)()


def test_between_two_events_no_time_was_measured() -> None:
    with vrambench.watch():
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.zeros(4, device="cuda")
        end.record(torch.cuda.current_stream())
        torch.cuda.synchronize()
        assert end.query()
        assert math.isnan(start.elapsed_time(end))


def test_states_of_the_random_numbers_are_kept_and_set() -> None:
    with vrambench.watch(), torch.random.fork_rng():
        state = torch.cuda.get_rng_state()
        assert state.dtype == torch.uint8
        torch.cuda.set_rng_state(state)
        torch.cuda.random.set_rng_state_all(torch.cuda.random.get_rng_state_all())
        torch.cuda.seed_all()


def test_ranges_for_a_profiler_are_nothing() -> None:
    with vrambench.watch(), torch.cuda.nvtx.range("step"):
        torch.cuda.nvtx.range_push("forward")
        torch.cuda.nvtx.range_pop()


@pytest.mark.parametrize("asked", [torch.cuda.Stream, torch.Stream, torch.cuda.CUDAGraph])
def test_what_has_memory_of_its_own_is_not_followed(asked: type) -> None:
    named = {torch.Stream: "Stream"}.get(asked, asked.__name__)
    with vrambench.watch(), pytest.raises(NotFollowed, match=f"torch.cuda.{named}"):
        getattr(torch if asked is torch.Stream else torch.cuda, named)()


@pytest.mark.parametrize(
    "compiled",
    [
        lambda layer: torch.compile(layer),
        lambda layer: layer.compile(),
        lambda layer: torch.compile(layer.forward, fullgraph=True),
        lambda layer: torch.compile(mode="max-autotune")(lambda states: layer(states)),
    ],
)
def test_what_is_compiled_is_not_followed(compiled: Callable[[torch.nn.Module], object]) -> None:
    with vrambench.watch(), pytest.raises(NotFollowed, match=r"torch\.compile: what a compiled program holds"):
        compiled(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_pins_as_on_cuda(workers: int) -> None:
    rows = TensorDataset(torch.arange(8.0))
    with vrambench.watch():
        loader = DataLoader(rows, batch_size=4, pin_memory=True, num_workers=workers)
        assert [batch.to("cuda", non_blocking=True).device.type for (batch,) in loader] == ["cuda"] * 2


def test_checkpointing_after_a_watch_is_the_cpus() -> None:
    def trained(device: str) -> None:
        layer, states = torch.nn.Linear(4, 4).to(device), torch.ones(2, 4, device=device, requires_grad=True)
        loss: Callable[..., torch.Tensor] = checkpoint
        loss(layer, states, use_reentrant=False).sum().backward()

    with vrambench.watch():
        trained("cuda")
    trained("cpu")
