"""A cell of TRL's SFTTrainer holds what the cell of ours that says the same holds, but for what its batches have beside tokens."""

from __future__ import annotations

from typing import Any

import pytest

from vrambench.bench.measure.measurement import Measurement
from vrambench.bench.measure.meters.cpu import CpuMeter
from vrambench.bench.results.records import Sample
from vrambench.methods.cell import resolve
from vrambench.methods.device import get_device

pytest.importorskip("trl")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]

BATCH, TOKENS = 4, 96
INPUTS = 2 * BATCH * TOKENS * 8
"""Labels, and an attention mask: int64, as the tokens."""
UNNAMED = 0.002
"""Share of a peak that may differ without a name: counts of tokens, norms and losses, one number each."""
WORK: dict[str, Any] = {"model": "tiny", "batch_size": BATCH, "prompt_tokens": 1, "response_tokens": TOKENS - 1}
WORK |= {"steps": 1, "warmup_steps": 1}
LORA: dict[str, Any] = {"lora_r": 4, "lora_target_modules": "all-linear"}
CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "TRL's defaults": ("bf16 none adamw_torch_fused none", CHECKPOINTED | {"loss": "chunked_nll", "autocast": "bf16"}),
    "full": ("bf16 none adamw_torch_fused none", {"loss": "chunked_nll"}),
    "lora": ("bf16 lora adamw_torch none", LORA | {"loss": "chunked_nll"}),
    "lora, checkpointed": ("bf16 lora adamw_torch none", LORA | CHECKPOINTED | {"loss": "chunked_nll"}),
    "accumulated": ("bf16 none adamw_torch_fused none", {"loss": "chunked_nll", "gradient_accumulation_steps": 2}),
}


def measured(algorithm: str, axes: str, settings: dict[str, Any]) -> Sample:
    names = ("precision", "adapter", "optimizer", "offload", "algorithm")
    cell = resolve(dict(zip(names, (*axes.split(), algorithm), strict=True)), WORK | settings)
    sample = Measurement(cell, get_device("cpu"), CpuMeter()).run()
    assert sample.status == "ok", sample.reason
    return sample


def peaks(sample: Sample) -> dict[str, int]:
    """Of the step in which bytes are counted."""
    return {phase.name: phase.allocated_bytes for phase in sample.phases if phase.step and phase.allocated_bytes}


@pytest.mark.parametrize(("axes", "settings"), CELLS.values(), ids=CELLS)
def test_it_holds_what_ours_holds(axes: str, settings: dict[str, Any]) -> None:
    ours, theirs = (measured(name, axes, settings) for name in ("sft", "trl_sft"))
    assert theirs.roles == ours.roles
    more = INPUTS * settings.get("gradient_accumulation_steps", 1)
    assert peaks(theirs).keys() == peaks(ours).keys() == {"learn", "optimizer_step"}
    for phase, nbytes in peaks(theirs).items():
        assert nbytes == pytest.approx(peaks(ours)[phase] + more, rel=UNNAMED), phase


def test_without_naming_anything_they_agree_within_two_percent() -> None:
    ours, theirs = (measured(name, *CELLS["lora"]) for name in ("sft", "trl_sft"))
    assert ours.memory.allocated_bytes is not None
    assert theirs.memory.allocated_bytes == pytest.approx(ours.memory.allocated_bytes, rel=0.02)
