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
print(*(name in sys.modules for name in ("torch._dynamo.symbolic_convert", "torch.distributed.tensor", "sympy.core")))
"""

SYMBOLS = """
from vrambench.bench.predict.imports import less_at_import
if {less}:
    less_at_import()
import sys, torch
from torch.fx.experimental import symbolic_shapes
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND as KINDS, elementwise_dtypes
from torch.fx.experimental.symbolic_shapes import guard_or_false, guard_or_true, is_nested_int, sym_and, sym_eq, sym_or

torch._check(True)
print(torch.add(torch.empty(2, device="meta"), 1.5).dtype)
print(guard_or_false(False), guard_or_true(True), sym_and(True, True, False), sym_or(False, True))
print(sym_eq((1, 2), [1, 3]), sym_eq(3, 3), is_nested_int(3))
print("sympy.core" in sys.modules)
try:
    torch._check(False, lambda: "as said")
except RuntimeError as error:
    print(error)

env = symbolic_shapes.ShapeEnv()
size = env.create_unbacked_symint()
print("sympy.core" in sys.modules)
print(guard_or_false(size == 3), symbolic_shapes.guard_or_true(size == 3), type(sym_and(size == 3, True)).__name__)
print(elementwise_dtypes(size.node.expr, 1, type_promotion_kind=KINDS.DEFAULT))
import sympy, sympy.core.numbers
from sympy import Symbol
print(sympy.Basic.__module__, isinstance(Symbol("x"), sympy.Basic), sympy.__version__)
"""

FAKE = """
from vrambench.bench.predict.imports import less_at_import
if {less}:
    less_at_import()
import torch

def shape(x):
    return x

library = torch.library.Library("vrambench_test", "FRAGMENT")
library.define("f(Tensor x) -> Tensor")
torch.library.register_fake("vrambench_test::f", shape, lib=library)
print(torch._library.simple_registry.singleton.find("vrambench_test::f").fake_impl.kernel.source.rpartition(":")[2])
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


def test_a_prediction_needs_no_compiler_and_nothing_that_shards() -> None:
    assert printed(PREDICTED) == ["False", "False", "False"]


def test_symbols_are_torchs_once_there_is_one() -> None:
    before, after = (printed(SYMBOLS.format(less=less)) for less in (False, True))
    assert (before.pop(8), after.pop(8)) == ("True", "False")
    assert before == after
    assert after[:10] == ["torch.float32", "False", "True", "False", "True", "False", "True", "False", "as", "said"]
    assert after[10] == "True"


def test_where_an_operator_is_told_to_torch_is_said_as_torch_says_it() -> None:
    before, after = (printed(FAKE.format(less=less)) for less in (False, True))
    assert before == after == ["12"]


def test_what_decorators_tell_the_compiler_it_is_told_once_it_is_needed() -> None:
    before, after = (printed(LEFT_ALONE.format(less=less)) for less in (False, True))
    assert (before.pop(2), after.pop(2)) == ("True", "False")
    assert before == after
    assert before[2:] == ["6.0", "[['allowed',", "'mul']]", "True", "torch._dynamo.config"]


def test_names_of_transformers_are_read_as_it_reads_them() -> None:
    before, after = (printed(ALL.format(less=less)) for less in (False, True))
    assert len(before) > 1000
    assert before == after
