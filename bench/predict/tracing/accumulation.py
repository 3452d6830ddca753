"""What autograd does in place: on a real device it does, and under a tracer it never does.

    if id(func) in IN_PLACE: func = done(func, args, kwargs, sys._getframe(1))        asked inside __torch_dispatch__

A tensor that several operators read gets a gradient from each, and the engine sums them up. If nobody else holds the sum so far,
the engine adds to it in place (torch/csrc/autograd/input_buffer.cpp: accumulate). Under a dispatch mode, and on meta, it
treats every tensor as a subclass and allocates a new sum each time, which a job on a GPU never does.

For the same reason the gradients of gather, index_select, indexing, max and the like are put into zeros by an operator that copies
these zeros first (torch/csrc/autograd/FunctionsManual.cpp, wherever it asks areAnyTensorSubclassLike).
"""

from __future__ import annotations

import functools
from types import FrameType
from typing import Any

import torch
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import TorchDispatchMode

ADD, ADD_IN_PLACE = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor
_aten = torch.ops.aten
PUT_IN_PLACE = {
    id(func): in_place
    for func, in_place in (
        (_aten.scatter_add.default, _aten.scatter_add_.default),
        (_aten.scatter.src, _aten.scatter_.src),
        (_aten.index_add.default, _aten.index_add_.default),
        (_aten.index_put.default, _aten.index_put_.default),
    )
}
"""By the ids of functions, since their hashes cost more."""
IN_PLACE = {id(ADD), *PUT_IN_PLACE}
_ENGINE = getattr(_engine_run_backward, "__wrapped__", _engine_run_backward).__code__


def done(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], caller: FrameType | None) -> Any:
    """What is called for `func` where no tracer is: its counterpart in place, if the call is the engine's own. `caller`: the frame
    that called the mode, which is the engine's unless a function written in Python is at work."""
    if caller is None or caller.f_code is not _ENGINE:
        return func
    if func is ADD:
        return ADD_IN_PLACE if _adds_in_place(args, kwargs) else func
    return PUT_IN_PLACE[id(func)]


def _adds_in_place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call of ADD by the engine is on a gradient that it alone holds."""
    if kwargs:
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
