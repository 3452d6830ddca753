"""What the server that jobs are forked from imports, once: what all jobs need and, on the CPU, what those of the
run's cells do; and not one tensor operation.

A thread pool that a tensor operation had started would not exist in a forked child, which would then wait for it for ever.
On CUDA, importing PEFT, bitsandbytes or DeepSpeed initialises the device, which no child could use: there the server holds
torch and transformers at most. On the CPU imports do less (`machine/imports.py`): whoever compiles imports the compiler then.

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

from vrambench.bench.machine.imports import less_at_import
from vrambench.bench.measure.collector import collector_held
from vrambench.bench.run.lifetime import adopt_orphans, end_with_parent

ALWAYS = (
    "numpy.random",
    "torch",
    "torch.fx.experimental.symbolic_shapes",  # what fills weights with normal numbers imports it
    "transformers",
    "vrambench.methods.models.modeling",  # before what imports transformers' own, and torchao with it
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.opt.modeling_opt",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.models.mistral.modeling_mistral",
    "vrambench.bench.measure.measurement",
    "vrambench.methods.job",
)
BESIDE = {
    "deepspeed": ("torch.utils.cpp_extension", "torch._inductor.compile_fx"),  # its engine's Muon is compiled
    # accelerate asks of every model whether it is DeepSpeed's, or compiled
    "trl": ("transformers.trainer", "deepspeed", "torch._dynamo.eval_frame"),
}
"""By module: what it imports only when it is used."""


def load() -> None:
    """Imports silently; a module that is missing here is missed by the cell that needs it, and named there."""
    if parent := os.environ.pop("VRAMBENCH_SERVER_PARENT", None):
        end_with_parent(int(parent))
        adopt_orphans()
        warnings.filterwarnings("ignore", "forkserver: waitpid returned unexpected pid")  # an adopted one's
    device = os.environ.get("VRAMBENCH_SERVER_DEVICE", "cpu")
    modules = os.environ.get("VRAMBENCH_SERVER_MODULES", "").split()
    sink = os.open(os.devnull, os.O_WRONLY)
    kept = os.dup(1), os.dup(2)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    try:
        if device == "cpu":
            less_at_import()
        with collector_held(collect=False):  # which takes a second of imports
            _import(ALWAYS)
            from vrambench.methods.axes import AXES

            for registry in AXES.values():
                registry.values()
            if device == "cpu":
                _import(name for module in modules for name in (module, *BESIDE.get(module, ())))
        if device == "cpu" and "deepspeed" in modules:
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
