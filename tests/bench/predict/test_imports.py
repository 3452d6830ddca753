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

PREDICTED = """
import sys
from vrambench.bench.predict.imports import less_at_import
less_at_import()
from vrambench.bench.predict.simulate import Simulator
from vrambench.methods.cell import resolve
axes = {"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "grpo"}
Simulator().run(resolve(axes, {"model": "tiny", "gradient_checkpointing": True}))
print("torch._dynamo.symbolic_convert" in sys.modules, "torch.distributed.tensor" in sys.modules)
"""

LEFT_ALONE = """
from vrambench.bench.predict.imports import less_at_import
if {less}:
    less_at_import()
import sys, torch

@torch.compiler.disable
def alone(x):
    return x.sum().item()

@torch.compiler.assume_constant_result
def constant():
    return 3

def allowed(x):
    return x + 1

torch.compiler.allow_in_graph(allowed)
print(alone(torch.ones(2)), torch.utils.checkpoint.checkpoint(torch.sin, torch.zeros(1), use_reentrant=False).item())
print("torch._dynamo.symbolic_convert" in sys.modules)

graphs = []
def shown(graph, inputs):
    graphs.append([node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"])
    return graph

print(torch.compile(lambda x: allowed(x) * constant(), backend=shown, fullgraph=True)(torch.ones(1)).item(), graphs)
try:
    torch.compile(lambda x: alone(x), backend=shown, fullgraph=True)(torch.ones(2))
except torch._dynamo.exc.Unsupported as error:
    print("alone" in str(error))
print(torch._dynamo.config.__name__)
"""

ALL = """
from pathlib import Path
from vrambench.bench.predict.imports import less_at_import
if {less}:
    less_at_import()
import transformers
from transformers.utils.import_utils import fetch__all__
files = sorted(Path(transformers.__file__).parent.rglob("*.py"))
print([fetch__all__(file.read_text(encoding="utf-8")) for file in files])
print(fetch__all__("__all__ = ['a']"), fetch__all__("x = 1"), fetch__all__(""), fetch__all__("__all__ = [\\n    'a',\\n]\\n"))
"""


FORKS = """
import os, sys
import torch
for program in sys.argv[1:]:
    child = os.fork()
    if not child:
        exec(program, {"__name__": "__main__"})
        sys.exit()
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
    print("\\0", end="", flush=True)
"""


def printed(*programs: str) -> list[list[str]]:
    """The words that each prints, in a process that has imported torch, once for all, and computed nothing."""
    done = subprocess.run([sys.executable, "-c", FORKS, *programs], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return [said.split() for said in done.stdout.split("\0")[:-1]]


def with_and_without(program: str) -> list[list[str]]:
    return printed(*(program.format(less=less) for less in (False, True)))


def test_what_bitsandbytes_compiles_is_compiled_when_it_is_called() -> None:
    assert printed(COMPILED) == [["False", "tensor([3.,", "2.])", "True"]]


def test_transformers_reads_its_models_once() -> None:
    before, after = with_and_without(READ)
    assert (before[0], after[0]) == ("True", "False")
    assert before[1:] == after[1:]


def test_a_prediction_needs_no_compiler_and_nothing_that_shards() -> None:
    assert printed(PREDICTED) == [["False", "False"]]


def test_what_decorators_tell_the_compiler_it_is_told_once_it_is_needed() -> None:
    before, after = with_and_without(LEFT_ALONE)
    assert (before.pop(2), after.pop(2)) == ("True", "False")
    assert before == after
    assert before[2:] == ["6.0", "[['allowed',", "'mul']]", "True", "torch._dynamo.config"]


def test_names_of_transformers_are_read_as_it_reads_them() -> None:
    before, after = with_and_without(ALL)
    assert len(before) > 1000
    assert before == after
