"""`watch` on CUDA: a plain loop's peaks are as predicted where there is no CUDA, in a process of each kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

LOOP = """
import torch, vrambench
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(vocab_size=4096, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8)
card = {card!r}
with vrambench.watch("24GiB", card=card) as ledger:
    model = LlamaForCausalLM(config).to("cuda", torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for _ in range(2):
        ids = torch.randint(0, 4096, (4, 512), device="cuda")
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
result |= {{"source": ledger.source, "allocated": ledger.memory.allocated_bytes, "fits": ledger.fits}}
result["weights"] = [share.nbytes for share in ledger.at_peak if share.kind == "weights"]
"""
CARD = """
from vrambench.bench.predict.unseen.hardware import card_here
card = card_here()
result["card"] = card.name if card else None
"""
HERE = "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''\n"


def test_measured_peaks_are_as_predicted(measured: Callable[[str], dict[str, Any]]) -> None:
    code = LOOP.format(card=measured(CARD)["card"])
    on_device, without = measured(code), measured(HERE + code)
    assert (on_device["source"], without["source"]) == ("measured", "predicted")
    assert on_device["weights"] == without["weights"]
    assert on_device["allocated"] == pytest.approx(without["allocated"], rel=0.02)
