"""Devices: their names, and that the simulated one may leave out work without leaving out what it shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from tests.methods.traces import QuickTrace
from vrambench.methods.device import KERNELS, Device, get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job

MakeJob = Callable[..., Job]
META, CPU = get_device("meta"), get_device("cpu")


def test_devices_by_name() -> None:
    assert get_device("cpu") == Device("cpu", torch.device("cpu"))
    assert META.simulated
    assert not CPU.simulated
    assert get_device("auto").kind == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cude", "; did you mean 'cuda'?"),
        ("cuda:x", "; did you mean 'cuda:N'?"),
        ("cpu:1", "; did you mean 'cpu'?"),
        ("CPU", "; did you mean 'cpu'?"),
        ("mps", ""),
        ("", ""),
    ],
)
def test_other_names_are_refused(name: str, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        get_device(name)
    assert str(caught.value) == f"device: {name!r} is not one of auto, cpu, cuda, cuda:N, meta{hint}"
    assert caught.value.field == "device"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigurationError, match="device: 'cuda:1' was asked for, but torch sees no GPU here"):
        get_device("cuda:1")


@pytest.mark.parametrize("kernel", ["flash", "efficient", "math"])
def test_attention_is_pinned_inside_and_free_outside(kernel: str) -> None:
    def enabled() -> set[SDPBackend]:
        backends = torch.backends.cuda
        found = {
            SDPBackend.FLASH_ATTENTION: backends.flash_sdp_enabled(),
            SDPBackend.EFFICIENT_ATTENTION: backends.mem_efficient_sdp_enabled(),
            SDPBackend.MATH: backends.math_sdp_enabled(),
        }
        return {backend for backend, on in found.items() if on}

    before = enabled()
    with CPU.attention(kernel):
        assert enabled() == {KERNELS["cpu"][kernel]}
    assert enabled() == before


def test_the_simulated_device_casts_as_what_it_stands_for() -> None:
    """CUDA's autocast computes squares in fp32, the CPU's in half precision."""
    half = torch.ones(2, dtype=torch.bfloat16, device="meta")
    assert META.stands_for == "cuda"
    with META.autocast(torch.bfloat16):
        assert (half**2).dtype == torch.float32
    with replace(META, stands_for="cpu").autocast(torch.bfloat16):
        assert (half**2).dtype == torch.bfloat16
    with META.autocast(None):
        assert (half**2).dtype == torch.bfloat16


@pytest.mark.parametrize("device", [CPU, META])
def test_losses_are_scaled_where_it_is_asked_for(device: Device) -> None:
    loss = torch.ones((), device=device.torch)
    assert device.grad_scaler(False).scale(loss) is loss
    scaler = device.grad_scaler(True)
    assert scaler.scale(loss) is not loss
    assert scaler.get_scale() == 2.0**16


@pytest.mark.parametrize("count", range(12))
@pytest.mark.parametrize("group", [1, 2, 3])
def test_the_simulated_device_keeps_the_first_two_groups(count: int, group: int) -> None:
    items = list(range(count))
    assert list(CPU.alike(items, group)) == items
    assert list(META.alike(items, group)) == items[: 2 * group]


@pytest.mark.parametrize("count", range(1, 6))
def test_the_simulated_device_keeps_both_ends_of_what_grows(count: int) -> None:
    items = list(range(count))
    assert list(CPU.growing(items)) == items
    assert list(META.growing(items)) == (items if count < 4 else [0, 1, count - 1])


@pytest.mark.parametrize("count", range(1, 7))
def test_results_have_everyones_shape(count: int) -> None:
    seen: list[int] = []

    def function(item: torch.Tensor) -> tuple[torch.Tensor, None]:
        seen.append(item.shape[0])
        return item * 2, None

    for device in (CPU, META):
        seen.clear()
        items = torch.zeros((2 * count - 1, 3), device=device.torch).split(2)
        results = device.map_alike(function, items)
        assert [result[0].shape for result in results] == [item.shape for item in items]
        assert {result[1] for result in results} == {None}
        assert len(seen) == (min(count, 2) if device.simulated else count)


MANY: list[dict[str, Any]] = [
    {"gradient_accumulation_steps": 5},
    {"gradient_accumulation_steps": 9},
    {"gradient_accumulation_steps": 9, "offload": "zero2_optimizer", "zero": {"reduce_bucket_size": 100_000}},
    {"algorithm": "remax", "rollout_batch": 9},
    {"algorithm": "ppo", "rollout_batch": 8, "gradient_accumulation_steps": 2, "ppo": {"epochs": 2}},
    {"algorithm": "reinforce", "rollout_batch": 9, "micro_rollout_batch_size": 2},
    {"algorithm": "rloo", "rollout_batch": 3, "rloo": {"num_iterations": 3}},
    {"algorithm": "grpo", "gradient_accumulation_steps": 8, "micro_rollout_batch_size": 5},
]


@pytest.mark.parametrize("settings", MANY)
def test_leaving_out_work_leaves_out_no_phase_and_no_peak(
    job: MakeJob, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same step on meta with nothing left out: as high in every phase, but for a loss or a view of each minibatch."""

    def peaks(*, whole: bool) -> tuple[dict[str, int], int]:
        if whole:
            monkeypatch.setattr(Device, "alike", lambda self, items, group=1: items)
            monkeypatch.setattr(Device, "passes", lambda self, accumulation: accumulation)
            monkeypatch.setattr(Device, "micro_batches", lambda self, items, accumulation: items)
            monkeypatch.setattr(Device, "map_alike", lambda self, function, items: [function(item) for item in items])
        trace = QuickTrace("meta")
        made = job(device="meta", response_tokens=5, **settings, phase=lambda name: trace.begin_phase(name))
        with trace:
            before = trace.live_bytes
            made.step(0)
            return {name: peak - before for name, peak in trace.phase_peaks.items()}, trace.live_bytes - before

    shown, left = peaks(whole=False)
    everything, left_then = peaks(whole=True)
    assert set(shown) == set(everything)
    assert "optimizer_step" in shown
    assert left == left_then
    assert shown == pytest.approx(everything, rel=0, abs=512)
