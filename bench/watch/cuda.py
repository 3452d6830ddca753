"""What torch says of CUDA without its tensors: `torch.cuda`, `torch.accelerator` and their events, as of a simulated device.

What a program asks for before it trains (is there a GPU, which, seed it) has an answer. What would be 0 without a GPU is an error,
`NoValue`, since a comparison with it would pass for nothing. Nothing is computed, so nothing takes time: between two events NaN
milliseconds go by.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils import checkpoint
from torch.utils.data._utils import pin_memory

from vrambench.methods.cards import Card
from vrambench.methods.device import EMPTIES_CACHE

CUDA = torch.device("cuda", 0)
LIKE_RTX_3090 = (8, 6)
"""Compute capability of the simulated device where no card is named."""


class NoValue(RuntimeError):
    """Code on the simulated device asked for a value that decides what it does."""


class NotFollowed(RuntimeError):
    """Code on the simulated device does what changes memory in a way that is not simulated."""


def check_ordinal(device: Any) -> None:
    """That a device, or its number, is no second GPU. Raises RuntimeError, as torch does on a machine with one."""
    index = device if device is None or isinstance(device, int) else torch.device(device).index
    if index:
        raise RuntimeError(
            f"cuda:{index}: invalid device ordinal; one GPU is simulated, cuda:0, and several are not followed"
        )


def _exchanged(index: int) -> int:
    """What `with torch.cuda.device(index)` does; the one before is told. A negative one is none."""
    check_ordinal(max(index, 0))
    return 0


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What has no effect without a GPU."""


def _empties() -> None:
    with torch.profiler.record_function(EMPTIES_CACHE):
        pass


class SimulatedEvent:
    """torch.cuda.Event, of work that takes no time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.record = self.wait = self.synchronize = _nothing

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: SimulatedEvent) -> float:
        """Milliseconds: NaN, which says itself that it was not measured."""
        return math.nan


class SimulatedStream:
    """The one stream that there is, the current one."""

    device, device_index, cuda_stream, priority = CUDA, 0, 0, 0

    def __init__(self) -> None:
        self.synchronize = self.wait_stream = self.wait_event = _nothing

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def record_event(self, event: SimulatedEvent | None = None) -> SimulatedEvent:
        return event or SimulatedEvent()


STREAM = SimulatedStream()


class SecondStream:
    """torch.cuda.Stream. Raises NotFollowed where one is made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotFollowed(
            "torch.cuda.Stream: one stream is simulated, the current one; CUDA's allocator keeps the blocks of each stream apart, "
            "and those of others are not followed"
        )


class Graph:
    """torch.cuda.CUDAGraph. Raises NotFollowed where one is made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotFollowed("torch.cuda.CUDAGraph: graphs have a pool of memory of their own, which is not followed")


def _compiled(model: Any = None, **options: Any) -> Any:
    """torch.compile. A library's function, which may be compiled as it is imported, stays as it is written."""
    if model is None:
        return _compiled
    module = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    code = getattr(model, "__code__", None)
    if code is not None and "site-packages" in code.co_filename and not isinstance(module, nn.Module):
        return model
    raise NotFollowed(
        "torch.compile: what a compiled program holds is not followed; leave it out where the code is watched"
    )


NOT_COUNTED = [
    "memory_allocated",
    "max_memory_allocated",
    "memory_reserved",
    "max_memory_reserved",
    "memory_stats",
    "memory_summary",
    "memory_usage",
    "mem_get_info",
    "get_memory_info",
    "reset_peak_memory_stats",
    "reset_accumulated_memory_stats",
    "reset_max_memory_allocated",
    "get_device_properties",
    "memory_snapshot",
    "utilization",
]
"""Of torch.cuda and torch.accelerator: what is 0 without a GPU, or not known; a comparison with it would pass for nothing."""


def _not_counted(name: str) -> Callable[..., Any]:
    def asked(*args: Any, **kwargs: Any) -> Any:
        raise NoValue(
            f"{name}() is not known on the simulated device while the code runs; the ledger has the peaks afterwards"
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


def _random_state(device: Any = None) -> torch.Tensor:
    """Seed and offset, as CUDA's generator gives them: uint8 [16]. Nothing is drawn on the simulated device."""
    return torch.zeros(16, dtype=torch.uint8)


def _of_cuda(card: Card | None) -> dict[str, Any]:
    """What `torch.cuda` has instead, by name."""
    capability = card.capability if card else LIKE_RTX_3090
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": _nothing,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": check_ordinal,
        "_exchange_device": _exchanged,
        "_maybe_exchange_device": _exchanged,
        "get_device_name": lambda device=None: card.name if card else "simulated",
        "get_device_capability": lambda device=None: capability,
        "is_bf16_supported": lambda including_emulation=True: capability >= (8, 0),
        "synchronize": lambda device=None: None,
        "empty_cache": _empties,
        "ipc_collect": _nothing,
        "set_per_process_memory_fraction": _not_counted("torch.cuda.set_per_process_memory_fraction"),
        "Event": SimulatedEvent,
        "Stream": SecondStream,
        "CUDAGraph": Graph,
        "current_stream": lambda device=None: STREAM,
        "default_stream": lambda device=None: STREAM,
        "set_stream": _nothing,
        "is_current_stream_capturing": lambda: False,
    }


RANDOM = {
    "manual_seed": _nothing,
    "manual_seed_all": _nothing,
    "seed": _nothing,
    "seed_all": _nothing,
    "initial_seed": lambda: 0,
    "get_rng_state": _random_state,
    "get_rng_state_all": lambda: [_random_state()],
    "set_rng_state": _nothing,
    "set_rng_state_all": _nothing,
}
"""What `torch.cuda.random` has instead, by name; `torch.cuda` has the same."""

RANGES = {
    "range_push": _nothing,
    "range_pop": _nothing,
    "mark": _nothing,
    "range": lambda *args, **kwargs: nullcontext(),
}
"""What `torch.cuda.nvtx` has instead, by name."""

ACCELERATOR = {
    "is_available": lambda: True,
    "current_accelerator": lambda check_available=False: torch.device("cuda"),
    "device_count": lambda: 1,
    "current_device_index": lambda: 0,
    "current_device_idx": lambda: 0,
    "set_device_index": check_ordinal,
    "set_device_idx": check_ordinal,
    "synchronize": lambda device=None: None,
    "empty_cache": _empties,
    "empty_host_cache": _nothing,
    "current_stream": lambda device=None: STREAM,
    "set_stream": _nothing,
}
"""What `torch.accelerator` has instead, by name."""


@contextmanager
def simulated_functions(card: Card | None) -> Iterator[None]:
    """Within, `torch.cuda` and `torch.accelerator` speak of one GPU, `card` or one like an RTX 3090."""
    with ExitStack() as exits:

        def instead(module: Any, found: dict[str, Any]) -> None:
            for name, function in found.items():
                if hasattr(module, name):
                    exits.enter_context(patch.object(module, name, function))

        for module in (torch.cuda, torch.accelerator):
            instead(module, {name: _not_counted(f"{module.__name__}.{name}") for name in NOT_COUNTED})
        instead(torch.cuda, _of_cuda(card) | RANDOM)
        instead(torch.cuda.random, RANDOM)
        instead(torch.cuda.nvtx, RANGES)
        instead(torch.cuda.memory, {name: _not_recorded(name) for name in NOT_RECORDED})
        instead(torch.cuda.memory, {"_snapshot": _not_counted("torch.cuda.memory._snapshot")})
        instead(torch.accelerator, ACCELERATOR)
        of_device = torch.get_device_module
        asked = {"get_device_module": lambda device=None: of_device(device or "cuda")}
        instead(torch, asked | {"Event": SimulatedEvent, "Stream": SecondStream, "compile": _compiled})
        instead(nn.Module, {"compile": lambda module, *args, **kwargs: _compiled(module)})
        for name in ("_accelerator_exchangeDevice", "_accelerator_maybeExchangeDevice"):
            instead(torch._C, {name: _exchanged})
        # A loader pins in a thread of its own, which has no simulated device.
        instead(pin_memory, {"pin_memory": lambda data, device=None: data})
        # It is asked of torch.accelerator once, and kept.
        instead(
            checkpoint.DefaultDeviceType, {"_default_device_type": checkpoint.DefaultDeviceType._default_device_type}
        )
        yield
