"""A plain loop that never heard of vrambench takes, as predicted, what `fit` says of the same job."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

import vrambench
from vrambench.methods.models.presets import PRESETS

BLOCK = 512
"""The allocator's smallest: what the one number of `loss / accumulation` takes."""


@pytest.mark.parametrize("divided", [True, False])
def test_a_plain_loop_takes_what_fit_predicts_for_the_job(divided: bool) -> None:
    """`fit`'s job divides the loss by the number of accumulated passes; a loop that does not holds one number less."""
    cell = vrambench.resolve(
        {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"},
        {"model": "tiny", "budget": "rtx-4090", "loss": "nll", "max_grad_norm": 0, "batch_size": 2},
    )
    forecast = vrambench.fit(cell).forecast
    with vrambench.watch("rtx-4090") as ledger:
        model = LlamaForCausalLM(PRESETS["tiny"].config()).to(torch.bfloat16).to("cuda")
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
        for _ in range(2):
            tokens = torch.randint(0, 100, (2, 512), device="cuda")
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            (loss / 1 if divided else loss).backward()
            optimizer.step()
            optimizer.zero_grad()
    less = 0 if divided else BLOCK
    assert ledger.memory.allocated_bytes == (forecast.memory.allocated_bytes or 0) - less
    assert ledger.memory.device_bytes == forecast.memory.device_bytes
    peaks = {(phase.name, phase.step): phase.allocated_bytes for phase in ledger.phases}
    learnt = ("learn", 1)
    assert peaks[learnt] == {(one.name, one.step): one.allocated_bytes for one in forecast.phases}[learnt] - less
