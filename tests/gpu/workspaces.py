#!/usr/bin/env python3
"""Measures the table of hidden workspaces on a GPU, operator by operator.

    tests/gpu/workspaces.py --device cuda      > workspaces.jsonl
    tests/gpu/workspaces.py --device cpu --tiny      the same operators on meta tensors: what is declared, nothing measured

Each operator runs by itself, once before, with the allocator's history recorded; what it allocated beyond its results is
compared with what `vrambench.bench.predict.unseen.workspaces` and the axis values declare. One JSON object a line: `operator`,
`shapes`, `declared_bytes` (each buffer), `measured_bytes` (each allocation, in order), their `_peak_bytes` (most that was
live at once), the `gpu` and the versions; null where nothing was measured, and an `error` where the operator would not
run. The cuBLAS workspace is a row of its own, the first. Exit code: 0, or 1 if no operator could be measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from vrambench.bench.predict.unseen.hardware import card_here
from vrambench.bench.predict.unseen.matmuls import cublas_workspace_bytes
from vrambench.bench.predict.unseen.workspaces import workspaces
from vrambench.methods.axes import AXES

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """An operator by name, and what makes its arguments on a device, at a size (True: tiny)."""

    operator: str
    arguments: Callable[[torch.device, bool], Arguments]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Hidden workspaces of operators, declared and measured.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes")
    chosen = parser.parse_args(arguments)
    import bitsandbytes  # noqa: F401 - registers its operators

    measured = 0
    for row in rows(chosen.device == "cuda", chosen.tiny):
        measured += row["measured_bytes"] is not None
        print(json.dumps(row), flush=True)
    return 0 if measured or chosen.device == "cpu" else 1


def rows(on_gpu: bool, tiny: bool) -> Iterator[dict[str, Any]]:
    device = torch.device("cuda", 0) if on_gpu else torch.device("meta")
    card = card_here() if on_gpu else None
    about = {
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "card": card.name if card else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "bitsandbytes": version("bitsandbytes"),
    }
    declared = dict(workspaces(card))
    for axis in AXES.values():
        for value in axis.values().values():
            declared |= value.workspaces
    if on_gpu:
        yield cublas_row(device) | about
    for case in cases():
        row: dict[str, Any] = {
            "operator": case.operator,
            "shapes": None,
            "declared_bytes": None,
            "declared_peak_bytes": None,
        }
        row |= {"measured_bytes": None, "measured_peak_bytes": None, "error": None} | about
        try:
            args, kwargs = case.arguments(device, tiny)
            row["shapes"] = [described(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            result, events = (
                observed(case.operator, args, kwargs) if on_gpu else (call(case.operator, args, kwargs), None)
            )
            if case.operator in declared:
                row["declared_bytes"] = list(declared[case.operator](args, kwargs, result))
                row["declared_peak_bytes"] = sum(row["declared_bytes"])
            if events is not None:
                row["measured_bytes"], row["measured_peak_bytes"] = hidden(events, result)
        except Exception as error:  # one operator's fault is a row, not the end
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        yield row
        if on_gpu:
            torch.cuda.empty_cache()


def cublas_row(device: torch.device) -> dict[str, Any]:
    """The first product of the process: what it keeps."""
    left = torch.ones(64, 64, device=device)
    result, events = observed("aten.mm.default", (left, left), {}, warm=False)
    kept = hidden(events, result)[0] or None
    declared = cublas_workspace_bytes(
        torch.cuda.get_device_capability(device), os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    )
    peaks = {"declared_peak_bytes": declared, "measured_peak_bytes": sum(kept) if kept else None}
    return {
        "operator": "cublas_workspace",
        "shapes": None,
        "declared_bytes": [declared],
        "measured_bytes": kept,
    } | peaks


def call(operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    namespace, name, overload = operator.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)(*args, **kwargs)


def observed(
    operator: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, warm: bool = True
) -> tuple[Any, list[tuple[str, int, int]]]:
    """The result, and what the allocator did meanwhile: action, address, bytes asked for."""
    if warm:
        call(operator, args, kwargs)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.memory._record_memory_history("all", context=None, stacks="python", max_entries=100_000)
    try:
        result = call(operator, args, kwargs)
        torch.cuda.synchronize()
        trace = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
    finally:
        torch.cuda.memory._record_memory_history(None)
    actions = ("alloc", "free_requested")
    return result, [(entry["action"], entry["addr"], entry["size"]) for entry in trace if entry["action"] in actions]


def hidden(events: Iterable[tuple[str, int, int]], result: Any) -> tuple[list[int], int]:
    """Bytes of every allocation that is no result's storage, in order; and the most of them that were live at once."""
    results = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
    events = list(events)
    # An address may have been a buffer's before it became a result's: only the last allocation there is the result.
    last = {address: index for index, (action, address, _) in enumerate(events) if action == "alloc"}
    live: dict[int, int] = {}
    sizes: list[int] = []
    peak = 0
    for index, (action, address, size) in enumerate(events):
        if action != "alloc":
            live.pop(address, None)
        elif not (address in results and last[address] == index):
            live[address] = size
            sizes.append(size)
            peak = max(peak, sum(live.values()))
    return sizes, peak


def described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def filled(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, device=device)


def indices(device: torch.device, count: int, below: int) -> torch.Tensor:
    return torch.arange(count, device=device) % below


Shape = tuple[int, int, int, int]


def states(device: torch.device, tiny: bool, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    batch, heads, tokens, size = shape
    return filled(device, batch, min(tokens, 32) if tiny else tokens, heads, size, dtype=dtype).transpose(1, 2)


def attention(kind: str, query: Shape, key: Shape, dtype: torch.dtype = torch.bfloat16) -> Case:
    causal = query[2] == key[2]
    extra: tuple[Any, ...] = (0.0, causal, False) if kind == "flash" else (None, True, 0.0, causal)

    def arguments(device: torch.device, tiny: bool) -> Arguments:
        keys = states(device, tiny, key, dtype)
        return (states(device, tiny, query, dtype), keys, keys, *extra), {}

    return Case(f"aten._scaled_dot_product_{kind}_attention.default", arguments)


def attention_backward(kind: str, query: Shape, key: Shape, dtype: torch.dtype = torch.bfloat16) -> Case:
    forward = attention(kind, query, key, dtype)

    def arguments(device: torch.device, tiny: bool) -> Arguments:
        args, _ = forward.arguments(device, tiny)
        made = call(forward.operator, args, {})
        grad = torch.ones_like(made[0])
        if kind == "flash":
            out, sums, cum_q, cum_k, max_q, max_k, seed, offset = made[:8]
            return (grad, *args[:3], out, sums, cum_q, cum_k, max_q, max_k, 0.0, args[4], seed, offset), {}
        out, sums, seed, offset = made
        return (grad, *args[:3], None, out, sums, seed, offset, 0.0, [True, True, True, False], args[6]), {}

    return Case(f"{forward.operator.removesuffix('.default')}_backward.default", arguments)


def simple(operator: str, make: Callable[[torch.device, int], Arguments], count: int) -> Case:
    return Case(operator, lambda device, tiny: make(device, min(count, 64) if tiny else count))


def on(operator: str, *rest: Any, count: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """The operator on one tensor of [count, width], and the arguments after it."""
    return simple(operator, lambda device, rows: ((filled(device, rows, width, dtype=dtype), *rest), {}), count)


def nf4(device: torch.device, tokens: int) -> Arguments:
    packed, scales = torch.ops.bitsandbytes.quantize_4bit(filled(device, 11008, 4096), 64, "nf4", torch.uint8)
    return (filled(device, tokens, 4096), packed, [11008, 4096], scales, 64, "nf4"), {}


def int8(device: torch.device, tokens: int) -> Arguments:
    inputs, weight = (filled(device, rows, 4096, dtype=torch.int8) for rows in (tokens, 11008))
    scales = [filled(device, rows, dtype=torch.float32) for rows in (tokens, 11008)]
    return (inputs, weight, *scales), {"dtype": torch.bfloat16}


def int8_inputs(device: torch.device, rows: int) -> Arguments:
    """How deep an input's outliers reach is the operator's own argument; the simulated device always asks for none."""
    return (filled(device, rows, 4096, dtype=torch.float16), 0.0 if device.type == "meta" else 6.0), {}


def embedding(device: torch.device, tokens: int) -> Arguments:
    return (filled(device, tokens, 4096), indices(device, tokens, 32000), 32000, -1, False), {}


def layer_norm(device: torch.device, rows: int, width: int) -> Arguments:
    source, sums = filled(device, rows, width), filled(device, rows, 1, dtype=torch.float32)
    weight = filled(device, width)
    return (source, source, [width], sums, sums, weight, weight, [True, True, True]), {}


def summed_to_a_row(device: torch.device, rows: int) -> Arguments:
    return (filled(device, 1, rows, 4096), [0, 1], True), {}


def norms(device: torch.device, rows: int) -> Arguments:
    return ([filled(device, rows, 4096), *(filled(device, 4096) for _ in range(64))], 2), {}


def put(device: torch.device, rows: int) -> Arguments:
    return (filled(device, 32000, 64), [indices(device, rows, 32000)], filled(device, rows, 64), True), {}


def cases() -> list[Case]:
    """Shapes of Llama-2-7B and Llama-3.2-3B in training and decoding, and of GPT-NeoX-20B where rows are wide."""
    return [*of_attention(), *of_reductions(), *of_sorting(), *of_quantised_weights()]


def of_attention() -> list[Case]:
    llama7, llama3, keys3 = (2, 32, 512, 128), (2, 24, 512, 128), (2, 8, 512, 128)
    fp32 = torch.float32
    return [
        attention("flash", llama7, llama7),
        attention("flash", (1, 32, 1, 128), (1, 32, 2048, 128)),
        attention("flash", (8, 24, 1, 128), (8, 8, 512, 128)),
        attention_backward("flash", llama7, llama7),
        attention_backward("flash", llama3, keys3),
        attention_backward("flash", (2, 32, 500, 80), (2, 32, 500, 80)),
        attention("efficient", llama7, llama7, fp32),
        attention("efficient", (2, 8, 512, 160), (2, 8, 512, 160)),
        attention_backward("efficient", llama7, llama7, fp32),
        attention_backward("efficient", (2, 12, 512, 64), (2, 12, 512, 64), fp32),
        attention_backward("efficient", llama7, llama7),
    ]


def of_reductions() -> list[Case]:
    fp32 = torch.float32
    return [
        simple("aten.embedding_dense_backward.default", embedding, 2048),
        simple("aten.embedding_dense_backward.default", embedding, 16384),
        simple("aten.native_layer_norm_backward.default", lambda device, rows: layer_norm(device, rows, 6144), 2048),
        simple("aten.native_layer_norm_backward.default", lambda device, rows: layer_norm(device, rows, 768), 100_000),
        simple("aten.sum.dim_IntList", summed_to_a_row, 2048),
        on("aten.sum.dim_IntList", [0], count=1024, width=24576, dtype=fp32),
        on("aten.sum.dim_IntList", [-1], count=2048, width=4096),
        on("aten.sum.default", count=11008, width=4096, dtype=fp32),
        on("aten.mean.dim", [-1], True, count=2048, width=4096),
        on("aten.linalg_vector_norm.default", 2, count=11008, width=4096),
        on("aten.argmax.default", -1, count=8, width=32000, dtype=fp32),
        on("aten.max.dim", -1, count=8, width=32000, dtype=fp32),
        simple("aten._foreach_norm.Scalar", norms, 11008),
    ]


def of_sorting() -> list[Case]:
    fp32 = torch.float32
    return [
        on("aten.sort.default", -1, True, count=8, width=4096, dtype=fp32),
        on("aten.sort.default", -1, True, count=1, width=32000, dtype=fp32),
        on("aten.sort.default", -1, True, count=8, width=32000, dtype=fp32),
        on("aten.sort.default", -1, True, count=128, width=32000, dtype=fp32),
        on("aten.multinomial.default", 1, count=8, width=32000, dtype=fp32),
        simple("aten.index_put.default", put, 10_000),
        on("aten.cumsum.default", -1, count=8, width=32000, dtype=fp32),
        on("aten._log_softmax.default", -1, False, count=1024, width=32000),
        on("aten.topk.default", 50, count=8, width=32000, dtype=fp32),
        simple("aten.linalg_svd.default", lambda device, rows: ((torch.eye(rows, device=device), False), {}), 1024),
    ]


def of_quantised_weights() -> list[Case]:
    return [
        simple("bitsandbytes.gemm_4bit.default", nf4, 4),
        simple("bitsandbytes.gemm_4bit.default", nf4, 256),
        simple("bitsandbytes.gemm_4bit.default", nf4, 2048),
        simple("bitsandbytes.int8_scaled_mm.default", int8, 2048),
        simple("bitsandbytes.int8_vectorwise_quant.default", int8_inputs, 2048),
    ]


if __name__ == "__main__":
    sys.exit(main())
