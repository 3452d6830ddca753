"""When autograd adds a gradient to another in place: on a real device it does, and under a tracer it never does.

    if func is ADD and adds_in_place(args, kwargs, sys._getframe(1)): ...        asked inside __torch_dispatch__

A tensor that several operators read gets a gradient from each, and the engine sums them up. If nobody else holds the sum so far,
the engine adds to it in place (torch/csrc/autograd/input_buffer.cpp: accumulate). Under a dispatch mode, and on meta, it
treats every tensor as a subclass and allocates a new sum each time, which a job on a GPU never does.
"""

from __future__ import annotations

import functools
from types import FrameType
from typing import Any

import torch
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import TorchDispatchMode

ADD, ADD_IN_PLACE = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor
_ENGINE = getattr(_engine_run_backward, "__wrapped__", _engine_run_backward).__code__


def adds_in_place(args: tuple[Any, ...], kwargs: dict[str, Any], caller: FrameType | None) -> bool:
    """Whether this call of ADD is the engine's own, on a gradient that it alone holds. `caller`: the frame that called the mode,
    which is the engine's unless a function written in Python is at work."""
    if kwargs or caller is None or caller.f_code is not _ENGINE:
        return False
    held, more = args[0], args[1]
    if not isinstance(more, torch.Tensor) or held.shape != more.shape or held.dtype != more.dtype:
        return False
    return _dense(held) and _holders(held) == sole_holder()


def _dense(tensor: torch.Tensor) -> bool:
    """Without gaps and overlaps, in any order of its dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _holders(tensor: torch.Tensor) -> tuple[int, int]:
    """How often the tensor and its storage are held, this look at them included."""
    storage = tensor.untyped_storage()
    return tensor._use_count(), torch._C._storage_Use_Count(storage._cdata)  # type: ignore[attr-defined]


@functools.cache
def sole_holder() -> tuple[int, int]:
    """What `_holders` gives, inside a mode, for a gradient that the engine alone holds. It is found by trying, since a call's own
    holds on its arguments differ between versions of torch. First call: outside of modes and backward passes."""
    seen: list[tuple[int, int]] = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is ADD:
                seen.append(_holders(args[0]))
            return func(*args, **(kwargs or {}))

    with torch.enable_grad():
        leaf = torch.ones(2, 2, device="meta", requires_grad=True)
        with Look():
            ((leaf * 2) * (leaf * 3)).sum().backward()
    (found,) = seen
    return found
