"""Imports that do less, where nothing is to run on this machine.

bitsandbytes, which PEFT imports with every adapter, decorates four functions with torch.compile, which imports torch's compiler:
most of a second, for kernels that no prediction calls. transformers reads the files of all its models, hundreds of them, twice.
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


def less_at_import() -> None:
    """From here on, the modules of REPLACED are imported with what stands there, unless they were imported before."""
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


REPLACED: dict[str, tuple[str, Callable[[Callable[..., Any], ModuleType], Callable[..., Any]]]] = {
    "bitsandbytes.backends.default.ops": ("torch.compile", _postponed),
    "transformers.models": ("transformers.utils.import_utils.create_import_structure_from_path", _read_before),
}
"""By module: a function, and what makes its replacement while the module is imported."""


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of REPLACED as others do."""

    def __init__(self) -> None:
        self._left = set(REPLACED)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._left:
            return None
        self._left.remove(name)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads as `loader` does, with the replacement."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        name, make = REPLACED[module.__name__]
        with mock.patch(name, make(resolve_name(name), module)):
            self._loader.exec_module(module)
