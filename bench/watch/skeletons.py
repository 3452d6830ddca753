"""Tensors that code itself puts on `meta`: they take no memory on a GPU, nor on the simulated device, which is `meta` to torch.

transformers and accelerate build a model so before they load its weights. What is made of such tensors alone is one, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vrambench.bench.measure.meters.storages import tensors_of


class Skeletons:
    """The storages of such tensors. `made`: whether the function that runs was asked for `meta` (True) or for CUDA (False)."""

    def __init__(self) -> None:
        self.made: bool | None = None
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return bool(self._storages) and tensor.untyped_storage()._cdata in self._storages

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._storages[key] = weakref.ref(storage, lambda gone: self._storages.pop(key, None))

    @contextmanager
    def asked_for(self, meta: bool) -> Iterator[None]:
        before, self.made = self.made, meta
        try:
            yield
        finally:
            self.made = before

    def takes(self, tensor: torch.Tensor, args: Any) -> bool:
        """Whether `tensor`, which an operator gave for `args`, is one; from here on it is."""
        if tensor in self:
            return True
        taken = self.made
        if taken is None:
            sources = tensors_of(args) if self._storages else []
            taken = bool(sources) and all(source in self for source in sources)
        if taken:
            self.add(tensor)
        return taken
