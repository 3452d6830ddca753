"""What libraries say about the machine, and make ready for it, where nothing is to run on it."""

from __future__ import annotations

import logging
import warnings

from vrambench.bench.machine.imports import less_at_import

KERNELS = "Failed to load CPU gemm_4bit_forward from kernels-community"
"""bitsandbytes, where an optional package of faster CPU kernels is not installed."""
LOGGED = {
    "bitsandbytes.backends.cpu.ops": KERNELS,
    "torchao": "Failed to load ",  # kernels for a GPU or a Python that are not here
    "torch.utils._pytree": "<enum 'KernelPreference'>",  # about torchao's own code
    "transformers.modeling_utils": "`loss_type=None` was set in the config",  # which then is the usual one
}
"""How the sentences begin that are left out, by their logger."""


def hush() -> None:
    """Keeps a few sentences, and no others, off stderr, and makes imports do less."""
    less_at_import()
    for name in LOGGED:
        logging.getLogger(name).addFilter(_is_news)
    warnings.simplefilter("ignore", FutureWarning)  # transformers' about its own names, one for each model
    warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")  # where none is meant to run
    warnings.filterwarnings(
        "ignore", "None of the inputs have requires_grad=True"
    )  # of passes that nothing learns from


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(LOGGED[record.name])
