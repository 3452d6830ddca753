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


def cases() -> list[Case]:
    """Shapes of Llama-2-7B and Llama-3.2-3B in training and decoding, and of GPT-NeoX-20B where rows are wide."""

    def filled(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    def indices(device: torch.device, count: int, below: int) -> torch.Tensor:
        return torch.arange(count, device=device) % below

    def states(device: torch.device, tiny: bool, shape: tuple[int, int, int, int], dtype: torch.dtype) -> torch.Tensor:
        batch, heads, tokens, size = shape
        return filled(device, batch, min(tokens, 32) if tiny else tokens, heads, size, dtype=dtype).transpose(1, 2)

    def attention(
        kind: str, query: tuple[int, int, int, int], key: tuple[int, int, int, int], dtype: torch.dtype = torch.bfloat16
    ) -> Case:
        extra: tuple[Any, ...] = (
            (0.0, query[2] == key[2], False) if kind == "flash" else (None, True, 0.0, query[2] == key[2])
        )

        def arguments(device: torch.device, tiny: bool) -> Arguments:
            keys = states(device, tiny, key, dtype)
            return (states(device, tiny, query, dtype), keys, keys, *extra), {}

        return Case(f"aten._scaled_dot_product_{kind}_attention.default", arguments)

    def attention_backward(
        kind: str, query: tuple[int, int, int, int], key: tuple[int, int, int, int], dtype: torch.dtype = torch.bfloat16
    ) -> Case:
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

    def nf4(device: torch.device, tokens: int) -> Arguments:
        packed, scales = torch.ops.bitsandbytes.quantize_4bit(filled(device, 11008, 4096), 64, "nf4", torch.uint8)
        return (filled(device, tokens, 4096), packed, [11008, 4096], scales, 64, "nf4"), {}

    def int8(device: torch.device, tokens: int) -> Arguments:
        inputs, weight = (filled(device, rows, 4096, dtype=torch.int8) for rows in (tokens, 11008))
        scales = [filled(device, rows, dtype=torch.float32) for rows in (tokens, 11008)]
        return (inputs, weight, *scales), {"dtype": torch.bfloat16}

    def embedding(device: torch.device, tokens: int) -> Arguments:
        return (filled(device, tokens, 4096), indices(device, tokens, 32000), 32000, -1, False), {}

    def layer_norm(device: torch.device, rows: int, width: int) -> Arguments:
        source, sums = filled(device, rows, width), filled(device, rows, 1, dtype=torch.float32)
        weight = filled(device, width)
        return (source, source, [width], sums, sums, weight, weight, [True, True, True]), {}

    llama7, llama3, keys3 = (2, 32, 512, 128), (2, 24, 512, 128), (2, 8, 512, 128)
    fp32, fp16 = torch.float32, torch.float16
    # How deep an input's outliers reach is the operator's own argument; the simulated device always asks for none.
    threshold = 6.0
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
        simple("aten.embedding_dense_backward.default", embedding, 2048),
        simple("aten.embedding_dense_backward.default", embedding, 16384),
        simple("aten.native_layer_norm_backward.default", lambda device, rows: layer_norm(device, rows, 6144), 2048),
        simple("aten.native_layer_norm_backward.default", lambda device, rows: layer_norm(device, rows, 768), 100_000),
        simple("aten.sum.dim_IntList", lambda device, rows: ((filled(device, 1, rows, 4096), [0, 1], True), {}), 2048),
        simple("aten.sum.dim_IntList", lambda device, rows: ((filled(device, rows, 24576, dtype=fp32), [0]), {}), 1024),
        simple("aten.sum.dim_IntList", lambda device, rows: ((filled(device, rows, 4096), [-1]), {}), 2048),
        simple("aten.sum.default", lambda device, rows: ((filled(device, rows, 4096, dtype=fp32),), {}), 11008),
        simple("aten.mean.dim", lambda device, rows: ((filled(device, rows, 4096), [-1], True), {}), 2048),
        simple("aten.linalg_vector_norm.default", lambda device, rows: ((filled(device, rows, 4096), 2), {}), 11008),
        simple("aten.argmax.default", lambda device, rows: ((filled(device, rows, 32000, dtype=fp32), -1), {}), 8),
        simple("aten.max.dim", lambda device, rows: ((filled(device, rows, 32000, dtype=fp32), -1), {}), 8),
        simple(
            "aten._foreach_norm.Scalar",
            lambda device, rows: (([filled(device, rows, 4096), *(filled(device, 4096) for _ in range(64))], 2), {}),
            11008,
        ),
        simple("aten.sort.default", lambda device, rows: ((filled(device, rows, 4096, dtype=fp32), -1, True), {}), 8),
        simple("aten.sort.default", lambda device, rows: ((filled(device, rows, 32000, dtype=fp32), -1, True), {}), 1),
        simple("aten.sort.default", lambda device, rows: ((filled(device, rows, 32000, dtype=fp32), -1, True), {}), 8),
        simple(
            "aten.sort.default", lambda device, rows: ((filled(device, rows, 32000, dtype=fp32), -1, True), {}), 128
        ),
        simple("aten.multinomial.default", lambda device, rows: ((filled(device, rows, 32000, dtype=fp32), 1), {}), 8),
        simple(
            "aten.index_put.default",
            lambda device, rows: (
                (filled(device, 32000, 64), [indices(device, rows, 32000)], filled(device, rows, 64), True),
                {},
            ),
            10_000,
        ),
        simple("aten.cumsum.default", lambda device, rows: ((filled(device, rows, 32000, dtype=fp32), -1), {}), 8),
        simple("aten._log_softmax.default", lambda device, rows: ((filled(device, rows, 32000), -1, False), {}), 1024),
        simple("aten.topk.default", lambda device, rows: ((filled(device, rows, 32000, dtype=fp32), 50), {}), 8),
        simple("aten.linalg_svd.default", lambda device, rows: ((torch.eye(rows, device=device), False), {}), 1024),
        simple("bitsandbytes.gemm_4bit.default", nf4, 4),
        simple("bitsandbytes.gemm_4bit.default", nf4, 256),
        simple("bitsandbytes.gemm_4bit.default", nf4, 2048),
        simple("bitsandbytes.int8_scaled_mm.default", int8, 2048),
        simple(
            "bitsandbytes.int8_vectorwise_quant.default",
            lambda device, rows: (
                (filled(device, rows, 4096, dtype=fp16), 0.0 if device.type == "meta" else threshold),
                {},
            ),
            2048,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
