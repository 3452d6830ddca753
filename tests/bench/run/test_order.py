"""A cell that starts from what another saves runs after it, wherever it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vrambench.bench.results.store import RunFolder
from vrambench.bench.run.session import run

LORA = {"adapter": "lora", "precision": "fp32"}
TO_SAVE = {"save": "model", "steps": 1, "warmup_steps": 0}


def test_cells_wait_for_what_they_start_from(plan: Any, listening: Any, tmp_path: Path) -> None:
    base = plan(**TO_SAVE, save_as="base")
    adapter = plan(LORA, **TO_SAVE, weights="saved:base", save_as="sft")
    merged = plan(
        LORA | {"algorithm": "merge"},
        **TO_SAVE | {"save": "merged"},
        weights="saved:base",
        adapter_weights="saved:sft",
        save_as="merged",
    )
    alone = plan(seed=1, steps=1, warmup_steps=0)
    summary = run([merged, adapter, base, alone], tmp_path / "run", listener=listening, jobs=2)
    assert summary.counts == {"ok": 4}
    ended = [result.id for result in listening.results]
    assert ended.index(base.id) < ended.index(adapter.id) < ended.index(merged.id)
    assert sorted(path.name for path in (tmp_path / "run" / "saved").iterdir()) == ["base", "merged", "sft"]


def test_what_nobody_saved_is_the_reason_and_nothing_waits_for_ever(plan: Any, listening: Any, tmp_path: Path) -> None:
    lonely = plan(**TO_SAVE, weights="saved:other", save_as="mine")
    itself = plan(**TO_SAVE, weights="saved:this", save_as="this")
    summary = run([lonely, itself], tmp_path / "run", listener=listening)
    assert summary.counts == {"error": 2}
    reasons = {result.reason for result in RunFolder.open(tmp_path / "run").results()}
    assert reasons == {
        f"weights: nothing is saved as {name!r} in this run (save_as: {name} saves it)" for name in ("other", "this")
    }
