"""Imports that do less, in processes of their own, since each is imported once."""

from __future__ import annotations

import subprocess
import sys

COMPILED = """
import sys
from vrambench.bench.predict.imports import less_at_import
less_at_import()
less_at_import()
import peft.tuners.lora, torch
from bitsandbytes.backends.default import ops
print("torch._inductor.compile_fx" in sys.modules)
with torch.compiler.set_stance("force_eager"):
    print(ops._dequantize_blockwise_compute(torch.tensor([1, 0]), torch.ones(1), torch.tensor([2.0, 3.0]), 2, torch.float32))
print("torch._inductor.compile_fx" in sys.modules)
"""

READ = """
import builtins, importlib
from pathlib import Path
from vrambench.bench.predict.imports import less_at_import
import transformers
if {less}:
    less_at_import()
files, opened = [], open
builtins.open = lambda file, *args, **kwargs: files.append(file) or opened(file, *args, **kwargs)
models = importlib.import_module("transformers.models")
print(len(files) > 100, len(dir(models)), models.qwen2.modeling_qwen2.Qwen2Model.__name__)
"""


def printed(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.split()


def test_what_bitsandbytes_compiles_is_compiled_when_it_is_called() -> None:
    assert printed(COMPILED) == ["False", "tensor([3.,", "2.])", "True"]


def test_transformers_reads_its_models_once() -> None:
    before, after = (printed(READ.format(less=less)) for less in (False, True))
    assert (before[0], after[0]) == ("True", "False")
    assert before[1:] == after[1:]
