"""Imports that do less, for predictions and for what runs on the CPU.

torch's compiler is imported by whoever tells it what to leave alone: decorators of transformers, its checkpointing and optimizers.
bitsandbytes, which PEFT imports with every adapter, decorates four functions with torch.compile. transformers imports what shards
tensors over GPUs, and reads the files of all its models, hundreds of them, twice. Together that takes longer than a prediction.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any
from unittest import mock

from vrambench.bench.machine.torch_compiler import COMPILER, Postponed, part


def less_at_import() -> None:
    """From here on, the modules of REPLACED and REDEFINED are imported with what stands there, and torch's compiler once it is
    needed, unless they were imported before."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _postponed(compiles: Callable[..., Any], module: ModuleType) -> Callable[..., Any]:
    """As torch.compile, whose result is made when it is first called."""

    def postponed(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        compiled = functools.cache(lambda: compiles(function, **settings))
        return lambda *args, **kwargs: compiled()(*args, **kwargs)

    return postponed


def _read_before(reads: Callable[..., Any], module: ModuleType) -> Callable[..., Any]:
    """What transformers kept under this very argument when it read the folder of `module` itself."""
    found = reads(Path(str(module.__file__)).parent)
    return lambda path: found


def _on_one_device(available: Callable[[], bool], module: ModuleType) -> Callable[[], bool]:
    """As in a torch that was built without torch.distributed."""
    return lambda: False


def _read_from_its_line(reads: Callable[[str], list[str]], module: ModuleType) -> Callable[[str], list[str]]:
    """As transformers' `fetch__all__`, which looks through all lines of a file for the last one that begins with `__all__`."""

    def read(content: str) -> list[str]:
        return reads(content[content.rfind("\n__all__") + 1 :])

    return read


Replacement = Callable[[Callable[..., Any], ModuleType], Callable[..., Any]]

REPLACED: dict[str, tuple[str, Replacement]] = {
    "bitsandbytes.backends.default.ops": ("torch.compile", _postponed),
    "transformers.models": ("transformers.utils.import_utils.create_import_structure_from_path", _read_before),
    "peft.tuners.tuners_utils": ("torch.distributed.is_available", _on_one_device),
}
"""By module: a function, and what makes its replacement while the module is imported."""

REDEFINED: dict[str, dict[str, Replacement]] = {
    "transformers.utils.import_utils": {
        "is_torch_distributed_available": _on_one_device,
        "fetch__all__": _read_from_its_line,
    },
}
"""By module: functions of its own, and what makes their replacements for good."""


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of REPLACED and REDEFINED, and torch's compiler, as others do."""

    def __init__(self) -> None:
        self._left = {*REPLACED, *REDEFINED, COMPILER}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._left:
            return part(name)
        self._left.remove(name)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = Postponed(spec.loader) if name == COMPILER else _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads as `loader` does, with the replacements."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ in REPLACED:
            name, make = REPLACED[module.__name__]
            with mock.patch(name, make(resolve_name(name), module)):
                self._loader.exec_module(module)
        else:
            self._loader.exec_module(module)
        for name, make in REDEFINED.get(module.__name__, {}).items():
            setattr(module, name, make(getattr(module, name), module))
