"""The flash-attn package on the simulated device, against transformers' own code around its kernel, which runs on the CPU here with
an operator in the kernel's place that allocates the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import modeling_flash_attention_utils
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import flash_attention_mask as their_mask

from vrambench.bench.measure.meters.storages import StorageTrace
from vrambench.methods.batches import Batch
from vrambench.methods.models import flash_attn
from vrambench.methods.sdpa import working_on

HEADS, KEYS, SIZE, WIDTH = 4, 2, 16, 96
BATCHES = {
    "padded": Batch(((96,), (40,), (64,)), WIDTH),
    "one row": Batch(((40, 32, 24),), WIDTH, flat=True),
    "one row, padded": Batch(((40, 32),), WIDTH, flat=True),
}
DROPPED = frozenset(("causal", "softmax_scale", "dropout_p", "max_seqlen_q", "max_seqlen_k"))


def varlen(query: Any, key: Any, value: Any, *, cu_seqlens_q: Any, cu_seqlens_k: Any, **options: Any) -> Any:
    """flash_attn_varlen_func, which keeps and allocates what `_Varlen` says."""
    assert options.keys() <= DROPPED
    assert int(cu_seqlens_q[-1]) == len(query)
    return flash_attn._Varlen.apply(query, key, value, len(cu_seqlens_q) - 1)


def pad(values: Any, indices: Any, batch: int, tokens: int) -> Any:
    """flash_attn.bert_padding.pad_input."""
    return flash_attn._Pad.apply(values, indices, batch * tokens).view(batch, tokens, *values.shape[1:])


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    def process(**options: Any) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name in DROPPED}

    functions = (None, varlen, None, pad, None)
    monkeypatch.setattr(
        modeling_flash_attention_utils, "lazy_import_flash_attention", lambda name: (functions, (process, process))
    )


def inputs(batch: Batch, device: str) -> tuple[list[torch.Tensor], torch.Tensor | None, torch.Tensor | None]:
    """Queries, keys and values as layers have them, [B,H,T,D]; a mask; positions."""
    rows = len(batch.rows)
    made = [
        torch.zeros(rows, WIDTH, heads, SIZE, dtype=torch.bfloat16, device=device, requires_grad=True)
        for heads in (HEADS, KEYS, KEYS)
    ]
    mask, positions = torch.zeros(rows, WIDTH, dtype=torch.bool), torch.zeros(1, WIDTH, dtype=torch.long)
    for number, row in enumerate(batch.rows):
        mask[number, : sum(row)] = True
    if batch.flat:
        positions = torch.cat([torch.arange(length) for length in batch.documents])[None]
        return made, None, positions.to(device)
    return made, mask.to(device), None


def peaks(batch: Batch, device: str, attend: Any, masked: Any) -> dict[str, int]:
    tensors, mask, positions = inputs(batch, device)
    module = SimpleNamespace(
        is_causal=True, config=SimpleNamespace(_attn_implementation="flash_attention_2"), layer_idx=0
    )
    with working_on(batch), StorageTrace(device) as trace:
        before = trace.live_bytes
        trace.begin_phase("forward")
        if mask is not None:
            mask = masked(batch_size=len(mask), q_length=WIDTH, kv_length=WIDTH, attention_mask=mask)
        query, key, value = ((tensor + 0).transpose(1, 2) for tensor in tensors)
        out = attend(module, query, key, value, mask, position_ids=positions)[0]
        del query, key, value
        trace.begin_phase("backward")
        out.float().sum().backward()
        assert out.shape == (len(batch.rows), WIDTH, HEADS, SIZE)
    return {phase: peak - before for phase, peak in trace.phase_peaks.items()}


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("name", BATCHES)
def test_what_is_around_the_kernel_is_what_transformers_does(name: str) -> None:
    theirs = peaks(BATCHES[name], "cpu", flash_attention_forward, their_mask)
    ours = peaks(BATCHES[name], "meta", flash_attn.flash_attention_2, flash_attn.flash_attention_mask)
    assert ours.keys() == theirs.keys() == {"forward", "backward"}
    for phase, nbytes in theirs.items():
        assert ours[phase] == pytest.approx(nbytes, rel=0.005), phase


def test_no_mask_is_left_where_nothing_is_padding() -> None:
    full = Batch(((WIDTH,), (WIDTH,)), WIDTH)
    mask = torch.ones(2, WIDTH, dtype=torch.bool, device="meta")
    with working_on(full):
        assert flash_attn.flash_attention_mask(kv_length=WIDTH, attention_mask=mask) is None
    with working_on(Batch(((WIDTH,), (2,)), WIDTH)):
        assert flash_attn.flash_attention_mask(kv_length=WIDTH, attention_mask=mask) is not None
