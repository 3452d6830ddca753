"""What models and learners need to know of their cell: no more than this, so that nothing that makes them knows a cell."""

from __future__ import annotations

from dataclasses import dataclass

from vrambench.methods.adapters import Adapter
from vrambench.methods.optimizers import Optimizer
from vrambench.methods.precision import Precision
from vrambench.methods.workload import Workload


@dataclass(frozen=True)
class Setup:
    """`zero_stage`, `optimizer_on_host`, `parameters_on_host`: the offload's."""

    precision: Precision
    adapter: Adapter
    optimizer: Optimizer
    workload: Workload
    zero_stage: int = 0
    optimizer_on_host: bool = False
    parameters_on_host: bool = False
