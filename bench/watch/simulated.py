"""CUDA for code that asks for it on a machine without: its `cuda` tensors are on the simulated device, where nothing is computed.

    with simulated_cuda(CARDS["rtx-4090"]):
        model.to("cuda"); torch.zeros(8, device="cuda").device        cuda:0

Nothing has a value there. A floating-point number that code reads (`loss.item()`, `print(f"{loss:.3f}")`) is NaN, which says
itself that it was not computed. An integer or a truth value is an error, since code that reads one decides by it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from vrambench.methods.amp import CastPolicy, SimulatedScaler
from vrambench.methods.cards import Card
from vrambench.methods.device import EMPTIES_CACHE
from vrambench.methods.experts import experts_of_gpu
from vrambench.methods.fused import fused
from vrambench.methods.sdpa import on_simulated_device

CUDA, META, CPU = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")


class NoValue(RuntimeError):
    """Code on the simulated device asked for a value that decides what it does."""


def _simulated(value: Any) -> Any:
    """`value`, an argument, where it names CUDA: the simulated device. Raises RuntimeError for a second GPU."""
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        value = torch.device(value)
    if not isinstance(value, torch.device) or value.type != "cuda":
        return value
    _check_ordinal(value)
    return META


def _numbered(device: Any) -> Any:
    """A device that is given by its number, as torch has it: a GPU's."""
    return torch.device("cuda", device) if type(device) is int else device


def _check_ordinal(device: Any) -> None:
    """That a device, or its number, is no second GPU. Raises RuntimeError, as torch does on a machine with one."""
    index = device if device is None or isinstance(device, int) else torch.device(device).index
    if index:
        raise RuntimeError(
            f"cuda:{index}: invalid device ordinal; one GPU is simulated, cuda:0, and several are not followed"
        )


def _exchanged(index: int) -> int:
    """What `with torch.cuda.device(index)` does; the one before is told. A negative one is none."""
    _check_ordinal(max(index, 0))
    return 0


def _number(tensor: torch.Tensor, asked: str) -> Any:
    if tensor.is_floating_point() or tensor.is_complex():
        return math.nan
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


class CudaIsSimulated(TorchFunctionMode):
    """Functions of torch that name CUDA get the simulated device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*(map(_numbered, args) if len(args) == 1 else args), **kwargs)
        first = args[0] if args else None
        if isinstance(first, torch.Tensor):
            if func is torch.Tensor.cuda:
                for device in (*args[1:2], kwargs.get("device")):
                    _check_ordinal(device)
                return first.to(META)
            if func is torch.Tensor.pin_memory:
                return first
            if func is torch.Tensor.to:
                args = (first, *map(_numbered, args[1:2]), *args[2:])
            if first.is_meta:
                answer = _READS.get(func)
                if answer is not None:
                    return answer(*args, **kwargs)
                if func is torch.Tensor.to and _goes_to_cpu(args[1:], kwargs):
                    found = (one for one in (*args[1:], *kwargs.values()) if isinstance(one, torch.dtype))
                    return _to_cpu(first, 'to("cpu")', next(found, None))
        args = tuple(map(_simulated, args))
        if "device" in kwargs:
            kwargs = kwargs | {"device": _simulated(_numbered(kwargs["device"]))}
        return func(*args, **kwargs)


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


NOT_COUNTED = [
    "memory_allocated",
    "max_memory_allocated",
    "memory_reserved",
    "max_memory_reserved",
    "memory_stats",
    "memory_summary",
    "mem_get_info",
    "reset_peak_memory_stats",
    "reset_max_memory_allocated",
    "get_device_properties",
    "memory_snapshot",
]
"""Of torch.cuda: what would be 0 without a GPU, or is not known; a comparison with it would pass for nothing."""


def _not_counted(name: str) -> Callable[..., Any]:
    def asked(*args: Any, **kwargs: Any) -> Any:
        raise NoValue(
            f"torch.cuda.{name}() is not known on the simulated device while the code runs; the ledger has the peaks afterwards"
        )

    return asked


NOT_RECORDED = ("_record_memory_history", "_dump_snapshot", "_set_memory_metadata")
"""Of torch.cuda.memory: what records what CUDA's allocator does. There is none, and the job goes on."""


def _not_recorded(name: str) -> Callable[..., Any]:
    def asked(*args: Any, **kwargs: Any) -> None:
        warnings.warn(
            f"torch.cuda.memory.{name}() does nothing on the simulated device, which has no allocator to record; the ledger has "
            "the peaks",
            stacklevel=2,
        )

    return asked


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

    def parsed(*args: Any, **kwargs: Any) -> Any:
        named = {"device": _numbered(kwargs["device"])} if "device" in kwargs else {}
        return real(*map(_numbered, args[:1]), *args[1:], **kwargs | named)

    return parsed


def _empties() -> None:
    with torch.profiler.record_function(EMPTIES_CACHE):
        pass


@contextmanager
def simulated_cuda(card: Card | None) -> Iterator[None]:
    """Within, this process has a GPU, `card` or one like an RTX 3090, to all that asks torch for it. Modules that move to it keep
    their parameters' identity, as on CUDA."""
    capability = card.capability if card else None
    cast, set_default = _Autocast(), torch.set_default_device
    instead: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": _check_ordinal,
        "_exchange_device": _exchanged,
        "_maybe_exchange_device": _exchanged,
        "get_device_name": lambda device=None: card.name if card else "simulated",
        "get_device_capability": lambda device=None: capability or (8, 6),
        "is_bf16_supported": lambda including_emulation=True: (capability or (8, 6)) >= (8, 0),
        "synchronize": lambda device=None: None,
        "empty_cache": _empties,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
    }
    instead |= {name: _not_counted(name) for name in NOT_COUNTED if hasattr(torch.cuda, name)}
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    with ExitStack() as exits:
        for name, function in instead.items():
            exits.enter_context(patch.object(torch.cuda, name, function))
        for name in NOT_RECORDED:
            exits.enter_context(patch.object(torch.cuda.memory, name, _not_recorded(name)))
        exits.enter_context(patch.object(torch.cuda.memory, "_snapshot", _not_counted("memory._snapshot")))
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
        mode, run_backward = CudaIsSimulated(), torch.autograd._engine_run_backward

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
