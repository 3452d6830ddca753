"""What models and learners need to know of their cell: no more than this, so that nothing that makes them knows a cell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vrambench.methods.errors import ConfigurationError, did_you_mean

if TYPE_CHECKING:
    from vrambench.methods.adapters import Adapter
    from vrambench.methods.optimizers import Optimizer
    from vrambench.methods.precision import Precision
    from vrambench.methods.workload import Workload


@dataclass(frozen=True)
class Setup:
    """`zero_stage`, `optimizer_on_host`, `parameters_on_host`: the offload's. `saved`: the folder of what the run's cells have
    saved, where it has one."""

    precision: Precision
    adapter: Adapter
    optimizer: Optimizer
    workload: Workload
    zero_stage: int = 0
    optimizer_on_host: bool = False
    parameters_on_host: bool = False
    saved: Path | None = None

    def saved_folder(self, name: str, field: str) -> Path:
        """Where a cell of the run has saved `name`. Raises ConfigurationError where none has."""
        folder = self.saved / name if self.saved else None
        if folder is None or not folder.is_dir():
            there = sorted(path.name for path in self.saved.iterdir()) if self.saved and self.saved.is_dir() else []
            raise ConfigurationError(
                f"{field}: nothing is saved as {name!r} in this run{did_you_mean(name, there)} (save_as: {name} saves it)",
                field=field,
            )
        return folder
