"""CUDA for code that asks for it on a machine without: its `cuda` tensors are on the simulated device, where nothing is computed.

    with simulated_cuda(CARDS["rtx-4090"]):
        model.to("cuda"); torch.zeros(8, device="cuda").device        cuda:0

Nothing has a value there. A floating-point number that code reads (`loss.item()`, `print(f"{loss:.3f}")`) is NaN, which says
itself that it was not computed. An integer or a truth value is an error, since code that reads one decides by it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from vrambench.bench.watch.cuda import CUDA, NoValue, check_ordinal, simulated_functions
from vrambench.bench.watch.libraries import Generating, followed_libraries
from vrambench.bench.watch.skeletons import Skeletons
from vrambench.methods.amp import CastPolicy, SimulatedScaler
from vrambench.methods.cards import Card
from vrambench.methods.experts import experts_of_gpu
from vrambench.methods.fused import fused
from vrambench.methods.sdpa import on_simulated_device

META, CPU = torch.device("meta"), torch.device("cpu")


def _simulated(value: Any) -> Any:
    """`value`, an argument, where it names CUDA: the simulated device. Raises RuntimeError for a second GPU."""
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        value = torch.device(value)
    if not isinstance(value, torch.device) or value.type != "cuda":
        return value
    check_ordinal(value)
    return META


def _numbered(device: Any) -> Any:
    """A device that is given by its number, as torch has it: a GPU's."""
    return torch.device("cuda", device) if type(device) is int else device


_GENERATING = Generating()


def _number(tensor: torch.Tensor, asked: str) -> Any:
    if tensor.is_floating_point() or tensor.is_complex():
        return math.nan
    if tensor.dtype is torch.bool and _GENERATING.ends is not None:
        return _GENERATING.ends
    raise NoValue(
        f"{asked} of a {str(tensor.dtype).removeprefix('torch.')} tensor on the simulated device, which has no values: "
        "what the code decides by it is not known without a GPU; keep it from the watched part, or run the test with CUDA"
    )


def _to_cpu(tensor: torch.Tensor, asked: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.full(tensor.shape, _number(tensor, asked), dtype=dtype or tensor.dtype, device=CPU)


def _read(name: str) -> Callable[..., Any]:
    return lambda tensor, *args, **kwargs: _number(tensor, f"{name}()")


def _formatted(tensor: torch.Tensor, spec: str) -> str:
    if tensor.dim() == 0 and tensor.is_floating_point():
        return format(math.nan, spec)
    return object.__repr__(tensor) if spec else repr(tensor)


def _list(tensor: torch.Tensor) -> Any:
    return _to_cpu(tensor, "tolist()").tolist()


_TENSOR: Any = torch.Tensor
_READS: dict[Any, Callable[..., Any]] = {
    _TENSOR.device.__get__: lambda tensor: CUDA,
    _TENSOR.is_cuda.__get__: lambda tensor: True,
    torch.Tensor.get_device: lambda tensor: 0,
    torch.Tensor.item: _read("item"),
    torch.Tensor.__float__: _read("float"),
    torch.Tensor.__int__: _read("int"),
    torch.Tensor.__index__: _read("index"),
    torch.Tensor.__bool__: lambda tensor: _truth(tensor),
    torch.Tensor.__format__: _formatted,
    torch.Tensor.tolist: _list,
    torch.Tensor.cpu: lambda tensor, *args, **kwargs: _to_cpu(tensor, "cpu()"),
    torch.Tensor.numpy: lambda tensor, *args, **kwargs: _to_cpu(tensor, "numpy()").numpy(),
}
"""What is asked of a simulated tensor, and its answer."""


def _truth(tensor: torch.Tensor) -> bool:
    return bool(_number(tensor.bool(), "bool()"))


def _goes_to_cpu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    values = (*args, *kwargs.values())
    return any(
        value == CPU if isinstance(value, torch.device) else isinstance(value, str) and value == "cpu"
        for value in values
    ) or any(isinstance(value, torch.Tensor) and not value.is_meta for value in args)


def _dtype_asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype | None:
    return next((one for one in (*args, *kwargs.values()) if isinstance(one, torch.dtype)), None)


def _place_asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Which of `cuda` and `meta` a function's arguments name, if any."""
    for value in (*args, kwargs.get("device")):
        if isinstance(value, str | torch.device):
            name = value if isinstance(value, str) else value.type
            if name in ("cuda", "meta") or name.startswith("cuda:"):
                return name[:4]
    return None


def _called(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `func` gives. Raises NoValue where that depends on values, in words of a GPU where torch speaks of `meta`."""
    try:
        return func(*args, **kwargs)
    except (NotImplementedError, RuntimeError) as error:
        said = str(error).lower()
        if "expected device meta" in said:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
            ) from error
        if any(words in said for words in ("meta tensor", "register_meta")):
            name = getattr(func, "__name__", str(func))
            raise NoValue(
                f"{name}() of a tensor on the simulated device: what it gives depends on values, and there are none without a GPU; "
                "keep it from the watched part, or run the test with CUDA"
            ) from error
        raise


class CudaIsSimulated(TorchFunctionMode):
    """Functions of torch that name CUDA get the simulated device. Those that name `meta` make `skeletons`."""

    def __init__(self, skeletons: Skeletons) -> None:
        super().__init__()
        self._skeletons = skeletons

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*(map(_numbered, args) if len(args) == 1 else args), **kwargs)
        if getattr(func, "__name__", "") == "_parse_to":  # of Module.to, which then asks each of its tensors
            return func(*args, **kwargs)
        if "device" in kwargs:
            kwargs = kwargs | {"device": _numbered(kwargs["device"])}
        first: Any = args[0] if args else None
        if isinstance(first, torch.Tensor):
            if func is torch.Tensor.cuda:
                for device in (*args[1:2], kwargs.get("device")):
                    check_ordinal(device)
                func, args, kwargs = torch.Tensor.to, (first, CUDA), {}
            if func is torch.Tensor.pin_memory:
                return first
            if func is torch.Tensor.to:
                args = (first, *map(_numbered, args[1:2]), *args[2:])
            if first.is_meta and first not in self._skeletons:
                answer = _READS.get(func)
                if answer is not None:
                    return answer(*args, **kwargs)
                if func is torch.Tensor.to and _goes_to_cpu(args[1:], kwargs):
                    return _to_cpu(first, 'to("cpu")', _dtype_asked(args[1:], kwargs))
        place = _place_asked(args, kwargs)
        if place is None:
            return _called(func, args, kwargs)
        if place == "cuda" and func is torch.Tensor.to and first in self._skeletons:
            raise NotImplementedError("Cannot copy out of meta tensor; no data! Module.to_empty() gives it memory.")
        if place == "meta" and func is torch.Tensor.to and first.is_meta and first not in self._skeletons:
            # to torch it is there already
            func, args, kwargs = torch.empty_like, (first,), {"dtype": _dtype_asked(args[1:], kwargs)}
        args = tuple(map(_simulated, args))
        if "device" in kwargs:
            kwargs = kwargs | {"device": _simulated(kwargs["device"])}
        with self._skeletons.asked_for(meta=place == "meta"):
            return _called(func, args, kwargs)


class _Autocast:
    """torch.autocast, whose regions for CUDA are the simulated device's."""

    def __init__(self) -> None:
        self._real = torch.autocast.__enter__, torch.autocast.__exit__
        self._open: list[CastPolicy] = []

    def enter(self, region: Any) -> Any:
        if region.device != "cuda":
            return self._real[0](region)
        policy = CastPolicy(region.fast_dtype if region._enabled else None)
        self._open.append(policy)
        policy.__enter__()
        return region

    def leave(self, region: Any, *error: Any) -> Any:
        return self._open.pop().__exit__(*error) if region.device == "cuda" else self._real[1](region, *error)


class _Kind(type(torch.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _GENERATOR)


_GENERATOR = torch.Generator


class SimulatedGenerator(_GENERATOR, metaclass=_Kind):
    """torch.Generator: one for CUDA is the CPU's, which fills what is on the CPU; nothing is drawn on the simulated device."""

    def __new__(cls, device: Any = "cpu") -> Any:
        if _simulated(device) is not META:
            return _GENERATOR(device)
        made: Any = _GENERATOR.__new__(cls, "cpu")  # type: ignore[call-arg]
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA


def _parses_to(real: Callable[..., Any]) -> Callable[..., Any]:
    """What `Module.to` reads its arguments with, which knows a GPU by its number where there is one."""

    @functools.wraps(real)
    def parsed(*args: Any, **kwargs: Any) -> Any:
        named = {"device": _numbered(kwargs["device"])} if "device" in kwargs else {}
        return real(*map(_numbered, args[:1]), *args[1:], **kwargs | named)

    return parsed


@contextmanager
def simulated_cuda(card: Card | None, room: Callable[[], tuple[int, int]], skeletons: Skeletons) -> Iterator[None]:
    """Within, this process has a GPU, `card` or one like an RTX 3090, to all that asks torch for it. Modules that move to it keep
    their parameters' identity, as on CUDA. `room`: its bytes, those that are free and all; `skeletons`: is told of tensors
    that the code puts on `meta`."""
    capability = card.capability if card else None
    cast, set_default = _Autocast(), torch.set_default_device
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    with ExitStack() as exits:
        exits.enter_context(simulated_functions(card))
        exits.enter_context(followed_libraries(room, _GENERATING))
        exits.enter_context(patch.object(torch, "Generator", SimulatedGenerator))
        exits.enter_context(patch.object(torch.autocast, "__enter__", lambda region: cast.enter(region)))
        exits.enter_context(patch.object(torch.autocast, "__exit__", lambda region, *error: cast.leave(region, *error)))
        exits.enter_context(patch.object(torch, "set_default_device", lambda device: set_default(_simulated(device))))
        exits.enter_context(patch.object(torch._C._nn, "_parse_to", _parses_to(torch._C._nn._parse_to)))
        for name in ("_maybe_opt_step", "get_scale"):
            exits.enter_context(patch.object(torch.amp.GradScaler, name, getattr(SimulatedScaler, name)))
        exits.enter_context(patch("torch.optim.adam._device_dtype_check_for_fused"))
        exits.callback(torch.__future__.set_swap_module_params_on_conversion, swapped)
        torch.__future__.set_swap_module_params_on_conversion(True)
        exits.enter_context(on_simulated_device(capability))
        exits.enter_context(fused("cuda"))
        exits.enter_context(experts_of_gpu(capability))
        mode, run_backward = CudaIsSimulated(skeletons), torch.autograd._engine_run_backward

        def engine(*args: Any, **kwargs: Any) -> Any:
            """The engine runs hooks and checkpointed parts of the user's code."""
            with mode:
                return run_backward(*args, **kwargs)

        described = checkpoint._allowed_determinism_checks_to_fns

        def as_it_is(tensor: torch.Tensor) -> Any:
            """Tensors are compared in the forward and the backward pass, and torch's own operators see the simulated device."""
            with torch._C.DisableTorchFunction():
                return real_description(tensor)

        real_description = described["default"]
        exits.enter_context(patch.dict(described, default=as_it_is))
        exits.enter_context(patch.object(torch.autograd, "_engine_run_backward", engine))
        exits.enter_context(mode)
        yield
