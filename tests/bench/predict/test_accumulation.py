"""Gradients that autograd sums up: the traced job makes as many tensors for that as a job without a tracer. That a GPU's job really
makes so few is in test_recorded.py."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from vrambench.bench.predict.tracing.trace import ALLOC
from vrambench.bench.predict.tracing.tracer import Tracer

Function = Callable[[torch.Tensor], torch.Tensor]


def backward_allocations(function: Function, device: str) -> list[str]:
    """Operators that made a tensor in the backward pass of `function`'s sum."""
    leaf = torch.ones(4, 4, device=device, requires_grad=True)
    with Tracer(device) as tracer:
        function(leaf).sum().backward()
    return [event.operator for event in tracer.trace.events if event.kind == ALLOC and event.place.backward]


def many(value: torch.Tensor) -> torch.Tensor:
    return (value * 2) * (value * 3) * (value * 4)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_gradient_that_nobody_else_holds_is_added_to_in_place(device: str) -> None:
    assert "aten.add.Tensor" not in backward_allocations(many, device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_gradient_that_somebody_holds_is_not(device: str) -> None:
    """The sum's gradient is one tensor for both sides of an addition, and is still to be read by the other one."""
    held: list[torch.Tensor] = []

    def shared(value: torch.Tensor) -> torch.Tensor:
        first = value * 2
        first.register_hook(held.append)
        return first + value.view(16).view(4, 4).exp() * 3 + first

    assert "aten.add.Tensor" in backward_allocations(shared, device)


PUTS: dict[str, Function] = {
    "gather": lambda value: value.gather(1, torch.zeros(4, 1, dtype=torch.long, device=value.device)),
    "index_select": lambda value: value.index_select(0, torch.zeros(2, dtype=torch.long, device=value.device)),
    "max": lambda value: value.max(dim=1).values,
    "index": lambda value: value[torch.zeros(2, dtype=torch.long, device=value.device)],
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", PUTS)
def test_what_is_put_into_zeros_is_no_second_tensor(name: str, device: str) -> None:
    made = backward_allocations(lambda value: PUTS[name](value * 1.0), device)
    assert sum("zeros" in operator for operator in made) == 1
    assert not [operator for operator in made if "scatter" in operator or "index" in operator]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_additions_written_in_python_stay_as_they_are(device: str) -> None:
    class Sums(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
            return value * 2

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return (grad * 2) + (grad * 3)

    assert "aten.add.Tensor" in backward_allocations(lambda value: Sums.apply(value * 1.0), device)


def test_gradients_have_their_values_all_the_same() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    inputs = torch.randn(4, 8)

    def gradients(traced: bool) -> list[torch.Tensor]:
        layer.zero_grad()
        hidden = layer(inputs)
        put = hidden.gather(1, torch.ones(4, 1, dtype=torch.long)) + hidden[[0, 0, 1, 2]] + hidden.amax()
        loss = (hidden * hidden + layer(hidden) + hidden.exp() + put + hidden.max(dim=1, keepdim=True).values).sum()
        if traced:
            with Tracer("cpu"):
                loss.backward()
        else:
            loss.backward()
        return [parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None]

    for traced, plain in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(traced, plain, rtol=0, atol=0)


def test_nothing_is_kept_alive() -> None:
    leaf = torch.ones(4, 4, requires_grad=True)
    with Tracer("cpu"):
        product = many(leaf)
        alive = weakref.ref(product)
        product.sum().backward()
        del product
    assert alive() is None
