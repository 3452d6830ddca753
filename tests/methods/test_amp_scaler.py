"""The simulated device's loss scaler against torch's own on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from tests.methods.test_amp import Allocations, Made
from vrambench.methods.amp import (
    SimulatedScaler,
)


@contextmanager
def training(device: str) -> Iterator[tuple[nn.Module, torch.optim.Optimizer, list[Made]]]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4).to(torch.bfloat16)).to(device)
    with Allocations(device) as seen:
        yield module, torch.optim.SGD(module.parameters(), lr=0.1, foreach=True), seen.made


@pytest.mark.parametrize("unscale_first", [False, True])
def test_the_scaler_allocates_as_torch_s_does(unscale_first: bool) -> None:
    def steps(device: str, scaler: Any) -> list[Made]:
        with training(device) as (module, optimizer, made):
            for _ in range(2):
                inputs = torch.ones(2, 4, device=device)
                scaler.scale(module[1](module[0](inputs).bfloat16()).sum()).backward()
                if unscale_first:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            return made

    real = steps("cpu", torch.amp.GradScaler("cpu"))
    assert steps("meta", SimulatedScaler(enabled=True)) == real
    small = [name for name, first, *rest in real if first[1] <= 8 and not rest]
    assert "aten.reciprocal.default" in small


def test_the_scaler_steps_each_time_and_keeps_its_scale() -> None:
    scaler = SimulatedScaler(enabled=True)
    with training("meta") as (module, optimizer, _):
        stepped: list[int] = []
        optimizer.register_step_post_hook(lambda *_: stepped.append(1))
        for _ in range(3):
            scaler.scale(module[0](torch.ones(2, 4, device="meta")).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert len(stepped) == 3
    assert scaler.get_scale() == 2.0**16


def test_a_scaler_that_is_off_does_nothing() -> None:
    scaler = SimulatedScaler(enabled=False)
    loss = torch.ones((), device="meta")
    assert scaler.scale(loss) is loss
    assert not scaler.is_enabled()
    assert scaler.get_scale() == 1.0
