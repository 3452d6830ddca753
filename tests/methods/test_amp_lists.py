"""What the simulated device's autocast casts: against torch's own autocast on the CPU, and against torch's lists for CUDA."""

from __future__ import annotations

import importlib
import itertools
import re
import sys
import unittest
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vrambench.methods.amp import ATTENTION, CPU_LISTS, CUDA_LISTS, CastLists, CastPolicy

HALVES = [torch.bfloat16, torch.float16]


def autocast(device: str, dtype: torch.dtype) -> Any:
    return torch.autocast("cpu", dtype) if device == "cpu" else CastPolicy(dtype, CPU_LISTS)


def listed(lists: CastLists) -> set[str]:
    return {f"aten::{name}" for name in lists.known()}


@pytest.mark.parametrize("lists", [CUDA_LISTS, CPU_LISTS], ids=["cuda", "cpu"])
def test_torch_casts_for_no_operator_that_is_not_listed(lists: CastLists) -> None:
    registered = set(torch._C._dispatch_get_registrations_for_dispatch_key(lists.key))
    assert len(registered) > 100
    assert registered <= listed(lists)
    # An operator of a later torch is not cast by an earlier one, and attention stands for scaled_dot_product_attention.
    at_work = {f"aten::{name}" for name in CastPolicy(torch.bfloat16, lists).rules}
    assert at_work == registered | {f"aten::{name}" for name in ATTENTION}
    names = f"{lists.lower} {lists.fp32} {lists.fp32_output} {lists.fp32_norm} {lists.promote} {lists.banned}".split()
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("macro", "kind", "others"),
    [
        ("LOWER_PRECISION_FP", "lower", {"cudnn_convolution", "cudnn_convolution_transpose"}),
        ("FP32", "fp32", set()),
        ("FP32_SET_OPT_DTYPE", "fp32_output", set()),
        ("PROMOTE", "promote", set()),
    ],
)
def test_cuda_s_rules_are_those_of_torch_s_header(macro: str, kind: str, others: set[str]) -> None:
    header = (Path(torch.__file__).parent / "include/ATen/autocast_mode.h").read_text()
    found = re.search(rf"#define AT_FORALL_{macro}\(_\)((?:.*\\\n)*.*)\n", header)
    assert found is not None
    theirs = {".".join(part.split(", ")) for part in re.findall(r"_\(([\w, ]+)\)", found[1])} | others
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")
    ours = {name for name in getattr(CUDA_LISTS, kind).split() if f"aten::{name}" in registered}
    assert ours == theirs


class Stop(Exception):
    pass


class CastsOnly(TorchDispatchMode):
    """Casts, in order, until the first operator that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.casts: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten._to_copy.default:
            raise Stop
        self.casts.append((args[0].shape, args[0].dtype, kwargs["dtype"]))
        return func(*args, **kwargs)


def arguments(op: Any, types: Iterator[torch.dtype], device: str) -> tuple[list[Any], dict[str, Any]]:
    """Something for every argument of `op`: tensors each of another size, of the next of `types`; they need not fit together."""
    plain = {"int": 1, "SymInt": 1, "float": 1.0, "bool": False, "number": 1, "str": "fro", "Optional[str]": None}
    sizes = itertools.count(1)
    given: list[Any] = []
    named: dict[str, Any] = {}

    def tensor() -> torch.Tensor:
        return torch.ones(next(sizes), dtype=next(types), device=device)

    for argument in op._schema.arguments:
        kind = str(argument.type)
        if kind in ("Tensor", "Optional[Tensor]"):
            value: Any = tensor()
        elif kind in ("List[Tensor]", "List[Optional[Tensor]]"):
            value = [tensor(), tensor()]
        elif argument.has_default_value():
            value = argument.default_value
        elif kind.startswith("List["):
            value = [plain[kind[5:-1]]]
        else:
            value = plain[kind]
        if argument.kwarg_only:
            named[argument.name] = value
        else:
            given.append(value)
    return given, named


def casts_of(name: str, device: str, dtype: torch.dtype, types: list[torch.dtype]) -> Any:
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default")
    args, kwargs = arguments(op, itertools.cycle(types), device)
    try:
        with CastsOnly() as seen, autocast(device, dtype):
            op(*args, **kwargs)
    except Exception as error:  # what does not fit together is refused after it has been cast
        return seen.casts, "Unexpected floating ScalarType" in str(error)
    return seen.casts, False


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_operator_of_the_cpu_casts_as_the_real_autocast_does(dtype: torch.dtype) -> None:
    """Which arguments, in which order, from and to which types."""
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    single, double = torch.float32, torch.float64
    mixtures = [
        [single],
        [dtype],
        [single, dtype],
        [dtype, single],
        [other],
        [double, single, dtype],
        [torch.int64, dtype],
    ]
    seen = 0
    for name in CastPolicy(dtype, CPU_LISTS).rules:
        if name in ATTENTION:
            continue
        for mixture in mixtures:
            real = casts_of(name, "cpu", dtype, mixture)
            assert casts_of(name, "meta", dtype, mixture) == real, (name, mixture)
            seen += len(real[0])
    assert seen > 800


@pytest.mark.parametrize("mixture", [[torch.float32], [torch.bfloat16, torch.float32], [torch.float64]], ids=str)
def test_attention_is_cast_as_scaled_dot_product_attention_is(mixture: list[torch.dtype]) -> None:
    def casts(name: str, device: str, *rest: Any) -> list[tuple[Any, ...]]:
        types = itertools.cycle(mixture)
        tensors = [torch.ones(1, 1, size, 8, dtype=next(types), device=device) for size in (1, 2, 3)]
        with CastsOnly() as seen, autocast(device, torch.bfloat16), suppress(Stop):
            getattr(torch.ops.aten, name)(*tensors, *rest)
        return seen.casts

    real = casts("scaled_dot_product_attention", "cpu")
    assert len(real) == sum(itertools.islice((dtype == torch.float32 for dtype in itertools.cycle(mixture)), 3))
    flash, efficient, _ = ATTENTION
    assert casts(flash, "meta") == real
    assert casts(efficient, "meta", None, False) == real


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of torch's own test calls, without torch's test runner, which wants more packages and changes global flags."""
    runner = ModuleType("torch.testing._internal.common_utils")
    vars(runner).update(TEST_WITH_ROCM=False, TestCase=unittest.TestCase)
    monkeypatch.setitem(sys.modules, runner.__name__, runner)
    return importlib.import_module("torch.testing._internal.autocast_test_lists")


def calls(lists: Any, *names: str) -> list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]]:
    """torch's own test calls: name, where the function is, arguments. Those that need a GPU's libraries are left out."""
    found = []
    for kind in names:
        home = {"nn": torch._C._nn, "linalg": torch._C._linalg, "methods": torch.Tensor}.get(kind.split("_")[0], torch)
        for name, *rest in getattr(lists, kind):
            args = next((part for part in rest if isinstance(part, tuple)), ())
            kwargs = next((part for part in rest if isinstance(part, dict)), {})
            if hasattr(home, name) and name != "einsum" and "cudnn" not in name:
                found.append((name, home, args, kwargs))
    return found


def dtypes(call: tuple[str, Any, tuple[Any, ...], dict[str, Any]], device: str, context: Any) -> list[torch.dtype]:
    name, home, args, kwargs = call
    args = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), args)
    with context:
        return [
            leaf.dtype for leaf in tree_leaves(getattr(home, name)(*args, **kwargs)) if isinstance(leaf, torch.Tensor)
        ]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_torch_s_own_calls_give_the_types_that_they_give_on_the_cpu(published: Any, dtype: torch.dtype) -> None:
    lists = published.AutocastCPUTestLists(torch.device("cpu"))
    made = calls(lists, "torch_16", "torch_fp32", "nn_16", "nn_fp32", "torch_need_autocast_promote")
    made += calls(lists, "torch_expect_builtin_promote")
    assert len(made) > 40
    for call in made:
        if call[0] in WITHOUT_META or (call[0] in ("cat", "stack") and dtype == torch.float16):
            continue
        assert dtypes(call, "meta", autocast("meta", dtype)) == dtypes(call, "cpu", autocast("cpu", dtype)), call[0]


WITHOUT_META = ("_native_multi_head_attention",)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("torch_fp16", "nn_fp16", "linalg_fp16", "methods_fp16"), torch.float16),
        (("torch_fp32", "nn_fp32", "methods_fp32", "torch_need_autocast_promote"), torch.float32),
    ],
)
def test_torch_s_own_calls_give_the_types_that_they_must_give_on_cuda(
    published: Any, kinds: tuple[str, ...], expected: torch.dtype
) -> None:
    made = calls(published.AutocastTestLists(torch.device("cpu")), *kinds)
    assert len(made) > 20
    for call in made:
        assert set(dtypes(call, "meta", CastPolicy(torch.float16, CUDA_LISTS))) == {expected}, call[0]


def test_what_cuda_bans_is_refused(published: Any) -> None:
    [call] = published.AutocastTestLists(torch.device("cpu")).banned
    with pytest.raises(RuntimeError, match="unsafe"):
        dtypes((call[0], call[2], call[1], {}), "meta", CastPolicy(torch.float16, CUDA_LISTS))
    dtypes((call[0], call[2], call[1], {}), "meta", CastPolicy(torch.float16, CPU_LISTS))


@pytest.mark.parametrize(
    ("call", "cuda", "cpu"),
    [
        (lambda half: half.softmax(-1), torch.float32, torch.bfloat16),
        (lambda half: F.softmax(half, -1), torch.float32, torch.bfloat16),
        (lambda half: F.softmax(half, -1, dtype=torch.bfloat16), torch.bfloat16, torch.bfloat16),
        (lambda half: half.float() @ half.float(), torch.bfloat16, torch.bfloat16),
        (lambda half: torch.einsum("ij,jk->ik", half.float(), half), torch.bfloat16, torch.bfloat16),
        (lambda half: half**2, torch.float32, torch.bfloat16),
        (lambda half: half.pow(2), torch.float32, torch.bfloat16),
        (lambda half: 2**half, torch.float32, torch.bfloat16),
        (lambda half: half.exp(), torch.float32, torch.bfloat16),
        (lambda half: half.sum(), torch.float32, torch.bfloat16),
        (lambda half: half.mean(), torch.bfloat16, torch.bfloat16),
        (lambda half: half.norm(dim=1), torch.float32, torch.bfloat16),
        (lambda half: F.layer_norm(half, (4,)), torch.float32, torch.bfloat16),
        (
            lambda half: F.cross_entropy(half, torch.zeros(4, dtype=torch.long, device=half.device)),
            torch.float32,
            torch.float32,
        ),
        (lambda half: half.double().exp(), torch.float64, torch.float64),
        (lambda half: half.double() @ half.double(), torch.float64, torch.float64),
    ],
)
def test_python_reaches_the_lists_by_every_road(
    call: Callable[[torch.Tensor], torch.Tensor], cuda: torch.dtype, cpu: torch.dtype
) -> None:
    half = torch.ones(4, 4, dtype=torch.bfloat16)
    with autocast("cpu", torch.bfloat16):
        assert call(half).dtype == cpu
    half = half.to("meta")
    for lists, expected in ((CUDA_LISTS, cuda), (CPU_LISTS, cpu)):
        with CastPolicy(torch.bfloat16, lists):
            assert call(half).dtype == expected
