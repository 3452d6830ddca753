"""torch's symbolic sizes, and sympy, imported once a size is a symbol.

    spec.loader = Postponed(spec.loader, StandIn)   of one of MODULES (compiler.py)
    found = part("sympy.core")                      what a finder answers for the modules in it

Operators of the simulated device ask whether plain conditions hold, and whether plain numbers are sympy's: that the stand-ins
answer, as the real ones would. Whatever else is asked of one makes it the real one, in place.
"""

from __future__ import annotations

import importlib.abc
import operator
import sys
from collections.abc import Callable, Mapping
from functools import reduce
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Any

from vrambench.bench.predict.compiler import There

SHAPES, SYMPY = "torch.fx.experimental.symbolic_shapes", "sympy"
MODULES = (SHAPES, SYMPY)


def part(name: str) -> ModuleSpec | None:
    """Of a module in sympy that is about to be imported: as ever, all of sympy comes first, and with it perhaps the module itself.
    None where others find it."""
    package, sympy = name.partition(".")[0], sys.modules.get(SYMPY)
    if package != SYMPY or not isinstance(sympy, StandIn):
        return None
    sympy.become_real()
    return ModuleSpec(name, There(sys.modules[name])) if name in sys.modules else None


class StandIn(ModuleType):
    """Becomes the real module, in place, since others hold it by then."""

    def __init__(self, name: str, loader: importlib.abc.Loader) -> None:
        super().__init__(name)
        self._real = loader

    def __getattr__(self, name: str) -> Any:
        known = ANSWERS[self.__name__].get(name)
        if known is not None:
            return known
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        self.become_real()
        return getattr(self, name)

    def become_real(self) -> None:
        self.__class__ = ModuleType  # type: ignore[assignment]
        self._real.exec_module(self)


def _is_plain(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, tuple | list) and all(map(_is_plain, value)))


def _is_of_plain_sizes(value: Any) -> bool:
    """Whether it is a tensor in which no symbol can be; torch is imported where this is asked."""
    torch = sys.modules["torch"]
    return (
        isinstance(value, torch.Tensor) and value.layout == torch.strided and _is_plain([*value.shape, *value.stride()])
    )


def _of_plain(name: str, compute: Callable[..., Any], is_plain: Callable[[Any], bool]) -> Callable[..., Any]:
    """torch's function `name`: `compute` where all its arguments are plain, else the real one."""

    def answer(*args: Any, **more: Any) -> Any:
        if not more and all(map(is_plain, args)):
            return compute(*args)
        shapes = sys.modules[SHAPES]
        if isinstance(shapes, StandIn):
            shapes.become_real()
        return getattr(shapes, name)(*args, **more)

    return answer


def _equal(one: Any, other: Any) -> bool:
    return list(one) == list(other) if isinstance(one, tuple | list) else bool(one == other)


class _NoSymbol:
    """What no number and no tensor is."""


CONDITIONS = ("expect_true", "guard_or_false", "guard_or_true", "guard_size_oblivious", "statically_known_true")
"""Functions that give a plain condition as it is."""
COMPUTED: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "sym_and": lambda *all_of: reduce(operator.and_, all_of),
        "sym_or": lambda *any_of: reduce(operator.or_, any_of),
        "sym_eq": _equal,
        "is_nested_int": lambda number: False,
        "has_guarding_hint": lambda number: True,
        "guarding_hint_or_throw": lambda number: number,
    }
)
"""By function: what it gives for plain conditions, numbers and sizes."""
ANSWERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        SHAPES: {
            **{name: _of_plain(name, lambda holds: holds, lambda value: type(value) is bool) for name in CONDITIONS},
            **{name: _of_plain(name, compute, _is_plain) for name, compute in COMPUTED.items()},
            "free_unbacked_symbols": _of_plain("free_unbacked_symbols", lambda tensor: set(), _is_of_plain_sizes),
        },
        SYMPY: {"Basic": _NoSymbol},
    }
)
"""By module: what of it answers without it."""
