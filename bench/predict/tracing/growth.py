"""What is made from all layers of a stack, and how much larger one more layer would make it.

growth = Growth(trace, places, storages)
growth.note(ident, size, nbytes, items)        trace.growth[ident] = (stack, bytes for each more layer)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vrambench.bench.measure.meters.storages import Storages
from vrambench.bench.predict.tracing.places import Places
from vrambench.bench.predict.tracing.trace import Trace


class Growth:
    """Fills `trace.growth`, from what operators outside the layers make."""

    def __init__(self, trace: Trace, places: Places, storages: Storages) -> None:
        self._growth = trace.growth
        self._places = places
        self._storages = storages

    def note(self, ident: int, size: Callable[[list[Any]], int], nbytes: int, items: Any) -> None:
        """`ident` was made from `items`: `nbytes` now, `size(fewer)` if it were made from fewer of them. Where a stack's second and
        third layer are among them, leaving out the second's shows what one layer adds."""
        layers = [self._places.layer_of((item,)) for item in items]
        for stack in range(len(self._places.stacks)):
            if (stack, 1) in layers and (stack, 2) in layers:
                fewer = [item for item, layer in zip(items, layers, strict=True) if layer != (stack, 1)]
                self._growth[ident] = (stack, nbytes - size(fewer))

    def inherit(self, ident: int, source: torch.Tensor, result: torch.Tensor) -> None:
        """`ident`, the storage of `result`, is a copy of `source`, element by element: it grows as that does."""
        storage = self._storages.of(source) if self._growth else None
        if storage is not None and storage.ident in self._growth:
            stack, per_layer = self._growth[storage.ident]
            self._growth[ident] = (stack, per_layer * result.element_size() // source.element_size())
