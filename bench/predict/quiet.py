"""What libraries say about the machine, and make ready for it, where nothing is to run on it."""

from __future__ import annotations

import logging
import warnings

from vrambench.bench.predict.imports import less_at_import

KERNELS = "Failed to load CPU gemm_4bit_forward from kernels-community"
"""bitsandbytes, where an optional package of faster CPU kernels is not installed."""


def hush() -> None:
    """Keeps four sentences, and no others, off stderr, and makes imports do less."""
    less_at_import()
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_news)
    warnings.simplefilter("ignore", FutureWarning)  # transformers' about its own names, one for each model
    warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")  # where none is meant to run
    warnings.filterwarnings(
        "ignore", "None of the inputs have requires_grad=True"
    )  # of passes that nothing learns from


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(KERNELS)
