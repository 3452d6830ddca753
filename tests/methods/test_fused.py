"""Functions that are one operator on CUDA are one on the simulated device, and several where it stands for the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vrambench.methods.fused import fused


class Called(TorchDispatchMode):
    """Names of the operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def kept(made: torch.Tensor) -> list[torch.Tensor]:
    """What the last function of `made` keeps for the backward pass."""
    function: Any = made.grad_fn
    return [
        getattr(function, name)
        for name in dir(function)
        if name.startswith("_saved_") and torch.is_tensor(getattr(function, name))
    ]


def test_dropout_keeps_one_byte_an_element() -> None:
    states = torch.empty(4, 8, device="meta", dtype=torch.bfloat16, requires_grad=True)
    with fused("cuda"), Called() as called:
        made = nn.Dropout(0.1)(states)
        (mask,) = kept(made)
        made.backward(torch.empty_like(made))
    assert called.names[0] == "native_dropout"
    assert (mask.dtype, mask.shape) == (torch.bool, states.shape)
    assert made.dtype == torch.bfloat16
    assert states.grad is not None


@pytest.mark.parametrize(
    ("p", "training", "device", "stands_for"),
    [
        (0.1, False, "meta", "cuda"),
        (0.0, True, "meta", "cuda"),
        (0.1, True, "cpu", "cuda"),
        (0.1, True, "meta", "cpu"),
    ],
)
def test_other_dropout_is_torchs_own(p: float, training: bool, device: str, stands_for: Any) -> None:
    states = torch.ones(4, 8, device=device, requires_grad=True)
    with Called() as expected:
        F.dropout(states, p, training)
    with fused(stands_for), Called() as called:
        F.dropout(states, p, training)
    assert called.names == expected.names
    assert "native_dropout" not in called.names


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_softmax_of_fp16_in_fp32_has_no_copy_of_its_input(function: str) -> None:
    half = torch.empty(4, 8, device="meta", dtype=torch.float16, requires_grad=True)
    with fused("cuda"), Called() as called:
        made = getattr(F, function)(half, dim=-1, dtype=torch.float32)
    assert set(called.names) == {f"_{function}", "detach"}
    assert made.dtype == torch.float32
    made.backward(torch.empty_like(made))
    assert half.grad is not None
    assert half.grad.dtype == torch.float16


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_softmax_of_bf16_is_torchs_own(function: str) -> None:
    states = torch.empty(4, 8, device="meta", dtype=torch.bfloat16)
    with fused("cuda"), Called() as called:
        made = getattr(F, function)(states, dim=-1, dtype=torch.float32)
    assert called.names == ["_to_copy", f"_{function}"]
    assert made.dtype == torch.float32


def test_afterwards_all_is_as_it_was() -> None:
    before = F.dropout, F.softmax, F.log_softmax
    with fused("cuda"):
        assert F.dropout is not before[0]
    assert before == (F.dropout, F.softmax, F.log_softmax)
