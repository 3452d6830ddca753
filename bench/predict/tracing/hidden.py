"""Memory that no tensor shows: what operators take and give back inside one call, and what libraries keep from a first call on.

hidden = HiddenMemory(workspaces, early, kept)
hidden.sizes("aten.mm.default", args, kwargs, result)        bytes of each buffer inside this call
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from vrambench.methods.registry import Workspace


class Kept(NamedTuple):
    """A buffer that a library keeps, by name and bytes."""

    name: str
    nbytes: int


class HiddenMemory:
    """One job's. `workspaces`: what operators take inside themselves, by the operators' names. `early`: those that take it before
    their results. `kept`: what operators keep from their first call on, once for the thread of the forward and once for that
    of the backward pass."""

    def __init__(
        self,
        workspaces: Mapping[str, Workspace] | None = None,
        early: frozenset[str] = frozenset(),
        kept: Mapping[str, tuple[Kept, ...]] | None = None,
    ) -> None:
        self._workspaces = dict(workspaces or {})
        self._kept = dict(kept or {})
        self._kept_already: set[tuple[str, bool]] = set()
        self.early = early
        self.operators = self._workspaces.keys() | self._kept.keys()

    def sizes(self, operator: str, args: Any, kwargs: Any, result: Any) -> list[int]:
        """Bytes of each buffer that this call takes inside itself."""
        workspace = self._workspaces.get(operator)
        return [nbytes for nbytes in workspace(args, kwargs, result) if nbytes] if workspace else []

    def total(self, operator: str, args: Any, kwargs: Any, result: Any) -> Callable[[list[Any]], int]:
        """Bytes of all its buffers as a function of the call's first argument, a list."""
        workspace = self._workspaces[operator]
        return lambda items: sum(workspace((items, *args[1:]), kwargs, result))

    def newly_kept(self, operator: str, backward: bool) -> Iterator[Kept]:
        """What `operator` keeps from this call on."""
        for kept in self._kept.get(operator, ()):
            key = (kept.name, backward)
            if key not in self._kept_already:
                self._kept_already.add(key)
                yield kept
