"""What the matrix libraries keep from their first product on, where no tracer sees it: cuBLAS' workspaces, and cuBLASLt's.

cublas_workspace_bytes((9, 0)), cublaslt_workspace("2.13.0")         for the operators of MATMULS, and of LT_MATMULS
"""

from __future__ import annotations

import re
from typing import NamedTuple

CUBLAS_BYTES = (2 * 4096 + 8 * 16) * 1024
CUBLAS_HOPPER_BYTES = 8 * 4096 * 1024
CUBLASLT_BYTES = 1024 * 1024

MATMULS: frozenset[str] = frozenset(
    {
        *(
            f"aten.{name}.{overload}"
            for name in ("mm", "addmm", "bmm", "baddbmm")
            for overload in ("default", "out", "dtype")
        ),
        *(f"aten.{name}.default" for name in ("mv", "addmv", "dot", "vdot", "addbmm")),
        *("aten._addmm_activation.default", "aten._int_mm.default", "aten._scaled_mm.default"),
        "bitsandbytes.gemm_4bit.default",
    }
)
"""Operators that take a cuBLAS handle, so that its workspace is allocated at the first of them in each thread.

bitsandbytes.gemm_4bit takes one where it falls back to a product by PyTorch (see `methods.precision.nf4`).
"""

LT_MATMULS: frozenset[str] = frozenset(
    {
        *("aten.addmm.default", "aten._addmm_activation.default"),
        *("aten._int_mm.default", "aten._scaled_mm.default"),
    }
)
"""Those that go through cuBLASLt: addmm with a bias of one dimension (beta 1), integer and scaled products."""


def cublas_workspace_bytes(capability: tuple[int, int] | None, config: str | None = None) -> int:
    """What each cuBLAS handle keeps on each stream from its first product on: once for the thread of the forward pass, once
    more for autograd's.

    `config`: the text of CUBLAS_WORKSPACE_CONFIG (`:SIZE_KIB:COUNT`, repeated), which replaces the default; PyTorch ignores
    what it cannot read. Source: aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize: 32 MiB on sm_90; on
    sm_100 and later too since early 2026 (PyTorch's pull request 175344), before that as on all others. PyTorch's main
    branch allocates it within each product since late summer 2026 (194311), which no release up to 2.13 does.
    """
    pairs = re.findall(r":([0-9]+):([0-9]+)", config or "")
    if pairs:
        return sum(int(size) * 1024 * int(count) for size, count in pairs)
    return CUBLAS_HOPPER_BYTES if capability is not None and capability >= (9, 0) else CUBLAS_BYTES


class LtWorkspace(NamedTuple):
    """`nbytes` beside cuBLAS's own workspace; `kept`: for good, by handle and stream, or else within each product."""

    nbytes: int
    kept: bool


def cublaslt_workspace(torch_version: str) -> LtWorkspace:
    """What cuBLASLt takes for an operator of `LT_MATMULS`, with PyTorch's default settings.

    Up to 2.8: 1 MiB within each call (cuda/CUDABlas.cpp). 2.9 to 2.11: 1 MiB kept for each handle and stream (pull request
    156495; seen in 2.11, results/nvidia-h200/recordings). From 2.12: nothing of its own, it shares cuBLAS's workspace (168175
    and 175879, whose release is inferred; the headers of 2.13 agree).
    """
    match = re.match(r"(\d+)\.(\d+)", torch_version)
    if not match:
        raise ValueError(f"torch version {torch_version!r} does not begin with two numbers")
    version = int(match[1]), int(match[2])
    if version >= (2, 12):
        return LtWorkspace(0, kept=True)
    return LtWorkspace(CUBLASLT_BYTES, kept=version >= (2, 9))
