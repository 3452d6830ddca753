"""What the server that jobs are forked from imports, once: everything a job needs, and not one tensor operation.

A thread pool that a tensor operation had started would not exist in a forked child, which would then wait for it for ever.
On CUDA, importing PEFT, bitsandbytes or DeepSpeed initialises the device, which no child could use: there the server holds
torch and transformers at most.

The server ends with its parent, even where that is killed while the server starts, and what a job leaves running becomes
the server's child.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import warnings
from collections.abc import Iterable

from vrambench.bench.run.lifetime import adopt_orphans, end_with_parent

ALWAYS = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.opt.modeling_opt",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.models.mistral.modeling_mistral",
    "vrambench.bench.measure.measurement",
    "vrambench.methods.job",
)


def load() -> None:
    """Imports silently; a module that is missing here is missed by the cell that needs it, and named there."""
    if parent := os.environ.pop("VRAMBENCH_SERVER_PARENT", None):
        end_with_parent(int(parent))
        adopt_orphans()
        warnings.filterwarnings("ignore", "forkserver: waitpid returned unexpected pid")  # an adopted one's
    device = os.environ.get("VRAMBENCH_SERVER_DEVICE", "cpu")
    sink = os.open(os.devnull, os.O_WRONLY)
    kept = os.dup(1), os.dup(2)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    try:
        _import(ALWAYS)
        from vrambench.methods.axes import AXES

        values = [value for registry in AXES.values() for value in registry.values().values()]
        if device == "cpu":
            _import(name for value in values for name in value.requires)
            _import(["torch.utils.cpp_extension"])
            # A compiler that is gone, a file cut short: the cell that needs it says so.
            with contextlib.suppress(Exception):
                from vrambench.methods.offload.deepspeed import load_compiled

                load_compiled()
        # What the libraries made at import no job will free: collectors in the children need not look at it again.
        gc.collect()
        gc.freeze()
    finally:
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for handle in (sink, *kept):
            os.close(handle)


def _import(names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


load()
