"""What differs between the environments of two runs, as `run.json` holds them: whether their numbers can stand side by side.

same_hardware(before, now)          # in words; empty: nothing
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vrambench.bench.results import PREDICTED

ALLOCATION = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUBLASLT_WORKSPACE_SIZE",
)
"""Variables under which the same job reserves other amounts."""


def same_hardware(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two environments so that their measurements must not be mixed, in words; empty where
    nothing does.

    The GPU and its memory; on the CPU the processor. Versions may differ: whether they moved memory is what a
    comparison is for. A predicted run may name no card: then each cell's is the one whose memory its budget is, and the budget is
    part of the cell.
    """
    if before.get("device") != now.get("device"):
        return [_differs("device", before.get("device"), now.get("device"))]
    kind = "cpu" if now.get("device") == "cpu" else "gpu"
    fields = ("name", "total_bytes") if kind == "gpu" else ("model", "machine")
    old, new = before.get(kind) or {}, now.get(kind) or {}
    if now.get("device") == PREDICTED and not (old and new):
        return []
    return [_differs(f"{kind} {f}", old.get(f), new.get(f)) for f in fields if old.get(f) != new.get(f)]


def same_allocation(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings under which the same job would reserve other amounts, and which differ, in words."""
    old, new = before.get("variables") or {}, now.get("variables") or {}
    return [_differs(name, old.get(name), new.get(name)) for name in ALLOCATION if old.get(name) != new.get(name)]


def changed_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Software that differs, in words: what may explain a difference between two runs."""
    old = dict(before.get("packages") or {}) | {"python": before.get("python"), "CUDA": before.get("torch_cuda")}
    new = dict(now.get("packages") or {}) | {"python": now.get("python"), "CUDA": now.get("torch_cuda")}
    old["driver"] = (before.get("gpu") or {}).get("driver")
    new["driver"] = (now.get("gpu") or {}).get("driver")
    return [_differs(name, old.get(name), new[name]) for name in new if old.get(name) != new[name]]


def _differs(name: str, before: object, now: object) -> str:
    return f"{name}: {before if before is not None else 'none'} before, {now if now is not None else 'none'} now"
