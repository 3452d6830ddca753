"""Fine-tuning and RLHF on one GPU: what fits, how fast it is, and where every byte went.

    cell = vrambench.resolve({"precision": "nf4", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none",
                              "algorithm": "ppo"}, {"model": "llama-2-7b", "budget": "rtx-4090"})
    answer = vrambench.fit(cell)
    answer.forecast.verdict                                     "fits", "tight" or "does not fit"
    vrambench.RunFolder.open(Path("runs/rl")).results()         what a run has stored

These names are the public ones, each imported when it is first used; `import vrambench` alone imports nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vrambench.bench.predict.answer import Answer
    from vrambench.bench.predict.fit import fit
    from vrambench.bench.results.forecast import Forecast
    from vrambench.bench.results.records import Result
    from vrambench.bench.results.store import RunFolder
    from vrambench.bench.watch.ledger import watch
    from vrambench.methods.cards import CARDS
    from vrambench.methods.cell import Cell, resolve
    from vrambench.methods.errors import ConfigurationError
    from vrambench.reports.page.html import write_report

__version__ = "0.1.0"

__all__ = (
    "CARDS",
    "Answer",
    "Cell",
    "ConfigurationError",
    "Forecast",
    "Result",
    "RunFolder",
    "fit",
    "resolve",
    "watch",
    "write_report",
)

_HOMES = {
    "bench.predict.answer": ("Answer",),
    "bench.predict.fit": ("fit",),
    "bench.results.forecast": ("Forecast",),
    "bench.results.records": ("Result",),
    "bench.results.store": ("RunFolder",),
    "bench.watch.ledger": ("watch",),
    "methods.cards": ("CARDS",),
    "methods.cell": ("Cell", "resolve"),
    "methods.errors": ("ConfigurationError",),
    "reports.page.html": ("write_report",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))
