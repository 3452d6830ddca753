"""Tensors apart from models: those that are shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def shapes_only() -> Iterator[None]:
    """Tensors made inside are on meta and are nobody's memory, so whoever traces a simulated device must not count
    them: there they would look like allocations."""
    with _disable_current_modes(), torch.device("meta"):
        yield
