"""Imports that do less, in processes of their own, since each is imported once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

READ = """
import builtins, importlib
from vrambench.bench.machine.imports import less_at_import
if {less}:
    less_at_import()
files, opened = [], open
builtins.open = lambda file, *args, **kwargs: files.append(file) or opened(file, *args, **kwargs)
models = importlib.import_module("transformers.models")
print(len(files) > 100, models.qwen2.Qwen2Config.__name__)
print(sorted(models._class_to_module.items()), dir(models))
"""

PREDICTED = """
import sys
from vrambench.bench.machine.imports import less_at_import
less_at_import()
less_at_import()
from vrambench.bench.predict.simulate import Simulator
from vrambench.methods.cell import resolve
axes = {"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "grpo"}
Simulator().run(resolve(axes, {"model": "tiny", "gradient_checkpointing": True}))
print("torch._dynamo.symbolic_convert" in sys.modules, "torch.distributed.tensor" in sys.modules)
import torch
from bitsandbytes.backends.default import ops
print("peft.tuners.lora" in sys.modules, "torch._inductor.compile_fx" in sys.modules)
with torch.compiler.set_stance("force_eager"):
    print(ops._dequantize_blockwise_compute(torch.tensor([1, 0]), torch.ones(1), torch.tensor([2.0, 3.0]), 2, torch.float32))
print("torch._inductor.compile_fx" in sys.modules)
"""

LEFT_ALONE = """
from vrambench.bench.machine.imports import less_at_import
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
from vrambench.bench.machine.imports import less_at_import
if {less}:
    less_at_import()
import transformers
from transformers.utils.import_utils import fetch__all__
files = sorted(Path(transformers.__file__).parent.rglob("*.py"))
print([fetch__all__(file.read_text(encoding="utf-8")) for file in files])
print(fetch__all__("__all__ = ['a']"), fetch__all__("x = 1"), fetch__all__(""), fetch__all__("__all__ = [\\n    'a',\\n]\\n"))
"""

FORKS = """
import importlib, json, os, sys
for module, programs in json.load(sys.stdin).items():
    importlib.import_module(module)
    for program in programs:
        child = os.fork()
        if not child:
            exec(program, {"__name__": "__main__"})
            sys.exit()
        if os.waitpid(child, 0)[1]:
            sys.exit("of:" + program)
        print("\\0", end="", flush=True)
"""
Said = dict[tuple[str, bool], list[str]]


@pytest.fixture(scope="module")
def said() -> Said:
    """The words that each program prints, with imports that do less and without, in a process of its own that is forked from one
    which has imported torch and nothing else, or transformers too where the program would do so first."""
    asked = {
        "torch": {
            ("predicted", True): PREDICTED,
            ("left alone", False): LEFT_ALONE.format(less=False),
            ("left alone", True): LEFT_ALONE.format(less=True),
            ("all", True): ALL.format(less=True),
        },
        "transformers": {
            ("all", False): ALL.format(less=False),
            ("read", False): READ.format(less=False),
            ("read", True): READ.format(less=True),
        },
    }
    given = json.dumps({module: list(programs.values()) for module, programs in asked.items()})
    done = subprocess.run([sys.executable, "-P", "-c", FORKS], input=given, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    names = [name for programs in asked.values() for name in programs]
    return dict(zip(names, (words.split() for words in done.stdout.split("\0")), strict=False))


def test_what_bitsandbytes_compiles_is_compiled_when_it_is_called(said: Said) -> None:
    assert said["predicted", True][2:] == ["True", "False", "tensor([3.,", "2.])", "True"]


def test_transformers_reads_its_models_once(said: Said) -> None:
    before, after = said["read", False], said["read", True]
    assert (before[0], after[0]) == ("True", "False")
    assert before[1:] == after[1:]


def test_a_prediction_needs_no_compiler_and_nothing_that_shards(said: Said) -> None:
    assert said["predicted", True][:2] == ["False", "False"]


def test_what_decorators_tell_the_compiler_it_is_told_once_it_is_needed(said: Said) -> None:
    before, after = list(said["left alone", False]), list(said["left alone", True])
    assert (before.pop(2), after.pop(2)) == ("True", "False")
    assert before == after
    assert before[2:] == ["6.0", "[['allowed',", "'mul']]", "True", "torch._dynamo.config"]


def test_names_of_transformers_are_read_as_it_reads_them(said: Said) -> None:
    before, after = said["all", False], said["all", True]
    assert len(before) > 1000
    assert before == after
