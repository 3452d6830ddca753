"""torch's compiler, imported once something is compiled.

    spec.loader = Postponed(spec.loader)        of the module torch._dynamo
    found = part("torch._dynamo.utils")         what a finder answers for the modules in it

Decorators name functions to it that it shall leave alone, or take as they are, and torch's checkpointing asks for its settings: all
of that the stand-in answers. Whatever else is asked of it makes it the real one, which is then told what the decorators said.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

COMPILER = "torch._dynamo"
ALONE = ("config", "_trace_wrapped_higher_order_op")
"""Modules in it that need no other."""

Function = Callable[..., Any]


class Postponed(importlib.abc.Loader):
    """Makes the stand-in; `loader` is the real module's."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name, self._loader)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing yet."""


def part(name: str) -> ModuleSpec | None:
    """Of a module in the compiler that is about to be imported: as ever, all of the compiler comes first, and with it perhaps the
    module itself. None where others find it."""
    package, _, last = name.rpartition(".")
    compiler = sys.modules.get(COMPILER)
    if package != COMPILER or last in ALONE or not isinstance(compiler, _StandIn):
        return None
    compiler.become_real()
    return ModuleSpec(name, _There(sys.modules[name])) if name in sys.modules else None


class _There(importlib.abc.Loader):
    """Gives a module that is there."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _StandIn(ModuleType):
    """Becomes the real module, in place, since others hold it by then."""

    def __init__(self, name: str, loader: importlib.abc.Loader) -> None:
        super().__init__(name)
        self._real = loader
        self._told: list[Callable[[ModuleType], None]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ALONE:
            return importlib.import_module(f"{COMPILER}.{name}")
        self.become_real()
        return getattr(self, name)

    def become_real(self) -> None:
        told = self._told
        self.__class__ = ModuleType  # type: ignore[assignment]
        self._real.exec_module(self)
        for tell in told:
            tell(self)

    def graph_break(self, msg: str = "") -> None:
        """Of a graph that nobody makes."""

    def allow_in_graph(self, fn: Function) -> Function:
        self._told.append(lambda real: real.allow_in_graph(fn))
        return fn

    def assume_constant_result(self, fn: Function) -> Function:
        self._told.append(lambda real: real.assume_constant_result(fn))
        return fn

    def disable(self, fn: Function | None = None, recursive: bool = True, **said: Any) -> Function:
        """`fn` as it is; once there is a compiler, as that wraps it."""
        if fn is None:
            return functools.partial(self.disable, recursive=recursive, **said)
        if not isinstance(fn, FunctionType):
            self.become_real()
            return self.disable(fn, recursive, **said)
        called = fn

        def tell(real: ModuleType) -> None:
            nonlocal called
            called = real.disable(fn, recursive, **said)

        @functools.wraps(fn)
        def left_alone(*args: Any, **kwargs: Any) -> Any:
            return called(*args, **kwargs)

        self._told.append(tell)
        return left_alone
