"""The five axes' values: where each is written, and how a user's own is found.

A registry is an explicit, ordered table from a value's name to the `module:attribute` that holds it; adding a value is
one file (or function) and one line. A user's own value is named by its `module:attribute` and needs no line at all:
the current directory is searched last, so that no file there can hide an installed module.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from vrambench.methods.errors import ConfigurationError, UnknownValue, brief, did_you_mean, shown


class Options(BaseModel):
    """Settings of one axis value, written under its `namespace` in a workload (`ppo: {epochs: 4}`, `--set ppo.epochs=4`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    namespace: ClassVar[str]


Workspace = Callable[[tuple[Any, ...], dict[str, Any], Any], tuple[int, ...]]
"""From an operator's arguments, keyword arguments and result (meta tensors will do): the bytes of each buffer that lives
inside the call, beside its result."""


@dataclass(frozen=True, kw_only=True)
class AxisValue:
    """What every value of every axis declares beside its code.

    `options`: its settings, if it has any. `fields`: the workload's fields that mean something only with this value
    (or with others that declare them too): where no value of a cell declares such a field, the cell does not have it.
    `summary`: half a line for people. `requires`: the modules that it imports once it is used, beside torch and transformers.
    `extra`: vrambench's extra that has them, where the default install has not. `cuda_only`: it cannot run on the CPU, with the
    reason. `workspaces`: memory that operators of this value allocate inside themselves on CUDA, by the operator's name
    (`bitsandbytes.gemm_4bit.default`); a tracer cannot see it. `library_bytes`: what its libraries load onto a CUDA device outside
    PyTorch's allocator, more than every job loads. `unmodelled`: what else it takes there that nobody can tell beforehand, in
    words, where a workload has that.
    """

    summary: str
    options: type[Options] | None = None
    fields: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    extra: str | None = None
    cuda_only: str | None = None
    workspaces: Mapping[str, Workspace] = field(default_factory=dict, hash=False)
    library_bytes: int = 0
    unmodelled: Callable[[Any], str | None] | None = None


Value = TypeVar("Value", bound=AxisValue)


class Registry(Generic[Value]):
    """The ordered values of one axis. Modules are imported when a value is first asked for. `families`: by the word before the
    colon, the `module:attribute` of a function that makes a value from the word behind it."""

    def __init__(
        self, axis: str, kind: type[Value], values: dict[str, str], families: Mapping[str, str] | None = None
    ) -> None:
        self.axis = axis
        self.kind = kind
        self.families = families or {}
        self._values = values
        self._found: dict[str, Value] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def get(self, name: str) -> Value:
        """The value called `name`; UnknownValue or ConfigurationError where there is none."""
        if name not in self._found:
            if name not in self._values and ":" not in name:
                raise UnknownValue(self.axis, name, self._values, told_by="vrambench list values")
            family, _, member = name.partition(":")
            if family in self.families:
                found = load_attribute(self.families[family], field=self.axis)(member)
            else:
                found = load_attribute(self._values.get(name, name), field=self.axis)
            if not isinstance(found, self.kind):
                raise ConfigurationError(
                    f"{self.axis}: {name!r} is of type {type(found).__name__}, not {self.kind.__name__}",
                    field=self.axis,
                )
            if found.options is not None and not _holds_options(found.options):
                raise ConfigurationError(
                    f"{self.axis}: {name!r} has options that are no class of {Options.__module__}:Options",
                    field=self.axis,
                )
            self._found[name] = found
        return self._found[name]

    def values(self) -> dict[str, Value]:
        """Every built-in value by name, in order."""
        return {name: self.get(name) for name in self}


def _holds_options(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Options)


def check_module(reference: str, *, field: str) -> None:
    """That the outermost package of `module:attribute` is there; nothing is imported. Raises ConfigurationError."""
    outermost = reference.partition(":")[0].partition(".")[0]
    _search_here(outermost)
    if outermost.isidentifier() and importlib.util.find_spec(outermost) is None:
        raise ConfigurationError(
            f"{field}: {shown(reference)} cannot be imported: No module named {outermost!r}", field=field
        )


def _search_here(module_name: str) -> None:
    """The current directory is the last place searched, never the first."""
    here = os.getcwd()  # noqa: PTH109 - sys.path holds strings
    if here not in sys.path and not module_name.startswith("vrambench."):
        sys.path.append(here)


def load_attribute(reference: str, *, field: str) -> Any:
    """What `module:attribute` names."""
    module_name, _, attribute = reference.partition(":")
    _search_here(module_name)
    try:
        found: Any = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's module may raise anything while it is imported, SystemExit too
        reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        reason = reason.splitlines()[0] if reason else ""
        raise ConfigurationError(
            f"{field}: {shown(reference)} cannot be imported: {brief(reason, 300)}", field=field
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, (name for name in dir(found) if not name.startswith("_")))
            raise ConfigurationError(f"{field}: {shown(reference)}: there is no {shown(part)}{hint}", field=field)
        found = getattr(found, part)
    return found
