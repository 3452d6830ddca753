"""What libraries do with a GPU that is simulated: load weights onto it, write what they trained, generate.

- transformers loads weights in threads of its own, which have no simulated device; here it loads in the caller's.
- `device_map="auto"` asks how much memory is free, and takes the CPU where nothing answers.
- bitsandbytes, where it is imported only now, takes its kernels for the machine that there is.
- Nothing has a value, so nothing is written: `save_pretrained` and the like warn, and what lies on the disk stays as it is.
- `model.generate` goes on to its greatest length, since no token is the end's.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers import modeling_utils
from transformers.generation import stopping_criteria
from transformers.generation.utils import GenerationMixin
from transformers.integrations import accelerate as placing

from vrambench.bench.watch.cuda import NotFollowed


def _is_simulated(value: Any) -> bool:
    """Whether a tensor of the simulated device is in `value`: a model, or tensors in containers."""
    if isinstance(value, nn.Module):
        return any(parameter.is_cuda for parameter in value.parameters())
    return any(isinstance(one, torch.Tensor) and one.is_cuda for one in pytree.tree_leaves(value))


def _writes_nothing(name: str, real: Callable[..., Any], of: Callable[[Any], Any]) -> Any:
    """`real`, whose first argument has by `of` what is saved."""

    @functools.wraps(real)
    def saved(value: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_simulated(of(value)):
            return real(value, *args, **kwargs)
        warnings.warn(f"{name} writes nothing: what is on the simulated device has no values", stacklevel=2)
        return None

    return saved


def _with_answers(real: Callable[..., Any], room: Callable[[], tuple[int, int]]) -> Any:
    """`real`, which places weights by how much memory is free. None is reserved and unused."""

    @functools.wraps(real)
    def placed(*args: Any, **kwargs: Any) -> Any:
        answers: dict[str, Any] = {
            "mem_get_info": lambda device=None: room(),
            "memory_reserved": lambda device=None: 0,
            "memory_allocated": lambda device=None: 0,
            "get_device_properties": lambda device=None: SimpleNamespace(is_integrated=False),
        }
        with patch.multiple(torch.cuda, **answers):
            return real(*args, **kwargs)

    return placed


class Generating:
    """Which truth values code reads while it generates: whether the greatest length is reached. None while it does not."""

    def __init__(self) -> None:
        self.ends: bool | None = None

    def to_the_end(self, generate: Callable[..., Any]) -> Any:
        @functools.wraps(generate)
        def generated(*args: Any, **kwargs: Any) -> Any:
            before, self.ends = self.ends, False
            try:
                return generate(*args, **kwargs)
            finally:
                self.ends = before

        return generated

    def at_length(self, reached: Callable[..., Any]) -> Any:
        """`MaxLengthCriteria.__call__`, which sees each length."""

        @functools.wraps(reached)
        def seen(criterion: Any, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.ends = tokens.shape[1] >= criterion.max_length
            return reached(criterion, tokens, *args, **kwargs)

        return seen


def _not_followed(what: str) -> Callable[..., Any]:
    def asked(*args: Any, **kwargs: Any) -> Any:
        raise NotFollowed(f"model.generate: {what} decides by values, which nothing has on the simulated device")

    return asked


def _on_device(real: Callable[..., Any]) -> Any:
    """`default_restore_location` of torch.load: a storage that belongs on CUDA is one of the simulated device."""

    @functools.wraps(real)
    def restored(storage: Any, location: str) -> Any:
        if not location.startswith("cuda"):
            return real(storage, location)
        return torch.empty(storage.nbytes(), dtype=torch.uint8, device=location).untyped_storage()

    return restored


def _opened(real: Any) -> Any:
    """`safe_open` of safetensors, which reads to the GPU past torch."""

    def opened(filename: Any, framework: str, device: Any = "cpu", **kwargs: Any) -> Any:
        if device == "cpu":
            return real(filename, framework=framework, device=device, **kwargs)
        return _Opened(real(filename, framework=framework, device="cpu", **kwargs), device)

    return opened


class _Opened:
    """A file of safetensors whose tensors come to `device`, each by itself."""

    def __init__(self, file: Any, device: Any) -> None:
        self._file, self._device = file, device

    def __enter__(self) -> _Opened:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name).to(self._device)

    def get_tensors(self) -> dict[str, torch.Tensor]:
        return {name: self.get_tensor(name) for name in self._file.keys()}  # noqa: SIM118


class _OnCpu(Loader):
    """A module's loader, which runs it as on a machine without GPU: what it finds when it is imported, it takes kernels for."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with patch.object(torch.cuda, "is_available", lambda: False):
            self._real.exec_module(module)


class _ImportedOnCpu(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == "bitsandbytes" else None
        if spec is not None:
            spec.loader = _OnCpu(spec.loader)
        return spec


@contextmanager
def followed_libraries(room: Callable[[], tuple[int, int]], generating: Generating) -> Iterator[None]:
    """Within, they do so. `room`: bytes on the device that are free, and all."""
    with ExitStack() as exits:

        def instead(owner: Any, name: str, made: Callable[[Any], Any]) -> None:
            if hasattr(owner, name):
                exits.enter_context(patch.object(owner, name, made(getattr(owner, name))))

        def unwritten(owner: Any, name: str, called: str, of: Callable[[Any], Any] = lambda value: value) -> None:
            instead(owner, name, lambda real: _writes_nothing(called, real, of))

        exits.enter_context(patch.dict("os.environ", HF_DEACTIVATE_ASYNC_LOAD="1"))
        exits.enter_context(patch.object(sys, "meta_path", [_ImportedOnCpu(), *sys.meta_path]))
        instead(modeling_utils, "caching_allocator_warmup", lambda real: _with_answers(real, room))
        instead(placing, "accelerate_max_memory", lambda real: _with_answers(real, room))
        instead(safetensors.torch, "safe_open", _opened)
        instead(torch.serialization, "default_restore_location", _on_device)
        unwritten(torch, "save", "torch.save()")
        unwritten(safetensors.torch, "save_file", "save_file()")
        unwritten(safetensors.torch, "save_model", "save_model()")
        unwritten(modeling_utils.PreTrainedModel, "save_pretrained", "save_pretrained()")
        imported = sys.modules
        if "peft" in imported:
            unwritten(imported["peft"].PeftModel, "save_pretrained", "save_pretrained()")
        if "transformers.trainer" in imported:
            for name in ("save_model", "_save_checkpoint"):
                trainer = imported["transformers.trainer"].Trainer
                unwritten(trainer, name, f"Trainer.{name}()", lambda one: one.model)
        instead(GenerationMixin, "generate", generating.to_the_end)
        instead(stopping_criteria.MaxLengthCriteria, "__call__", generating.at_length)
        instead(GenerationMixin, "_beam_search", lambda real: _not_followed("a beam search"))
        instead(GenerationMixin, "_assisted_decoding", lambda real: _not_followed("assisted decoding"))
        yield
