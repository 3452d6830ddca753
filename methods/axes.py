"""The five axes, in the order in which a cell is named."""

from __future__ import annotations

from vrambench.methods.adapters import ADAPTERS
from vrambench.methods.algorithms import ALGORITHMS
from vrambench.methods.offload import OFFLOADS
from vrambench.methods.optimizers import OPTIMIZERS
from vrambench.methods.precision import PRECISIONS
from vrambench.methods.registry import Registry

AXES: dict[str, Registry] = {
    registry.axis: registry for registry in (PRECISIONS, ADAPTERS, OPTIMIZERS, OFFLOADS, ALGORITHMS)
}
