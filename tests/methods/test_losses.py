"""Every loss against what it is called after: transformers' Trainer, TRL's functions, Liger's buffers. Values, gradients, bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments
from trl.trainer.sft_trainer import _CHUNKED_LM_HEAD_CHUNK_SIZE, _patch_chunked_ce_lm_head
from trl.trainer.utils import _ChunkedLogProbFunction, selective_log_softmax

from vrambench.bench.measure.meters import storages
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.losses import LOSSES, chunked, cut, fused
from vrambench.methods.models.policy import Policy

Compute = Callable[[], torch.Tensor]

SHAPE: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# Three of TRL's chunks, the last of them shorter.
TOKENS = torch.randint(0, 1000, (2, 300), generator=torch.Generator().manual_seed(0))
IDS = TOKENS.nbytes
"""Bytes by which peaks may differ: token ids, here and there kept a little longer."""
START, TEMPERATURE = 40, 0.7
WORDS = 8192
"""Of the buffer in which TRL's asynchronous GRPO makes logits."""
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "bloom": {},  # whose forward pass takes no positions
    "gemma2": {"final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.5},
    "granite": {"logits_scaling": 4.0},
}
MEANS = tuple(LOSSES)
SCORERS = tuple(name for name, loss in LOSSES.items() if loss.scorer)


def tiny(kind: str = "llama", dtype: torch.dtype = torch.float32, *, head: bool = True, **shape: Any) -> Any:
    """A model of one layer; with head=False its head is frozen and apart from the embeddings."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE | {"tie_word_embeddings": False} | KINDS[kind] | shape)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    model.lm_head.requires_grad_(head)
    return model.train()


def valued(model: nn.Module, compute: Compute) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss that `compute` gives, and the gradients."""
    model.zero_grad()
    loss = compute()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def peaks(model: nn.Module, compute: Compute, *there: torch.Tensor) -> dict[str, int]:
    """The bytes at the peaks of forward and backward, above those before, to which `there` belongs."""
    model.zero_grad()
    with pytest.MonkeyPatch.context() as patch:
        # Looking for every tensor in the process takes seconds.
        patch.setattr(storages, "existing_tensors", lambda: [TOKENS, *there, *model.parameters(), *model.buffers()])
        with storages.StorageTrace("cpu") as trace:
            before = trace.live_bytes
            trace.begin_phase("forward")
            loss = compute()
            trace.begin_phase("backward")
            loss.backward()
    return {phase: peak - before for phase, peak in trace.phase_peaks.items()}


def ours(model: nn.Module, name: str) -> Compute:
    policy = Policy(model, loss=LOSSES[name])
    return lambda: policy(TOKENS)


def summed(model: nn.Module, name: str) -> Compute:
    """The sum of log-probabilities, with the scores held until the backward pass is over."""
    policy = Policy(model, loss=LOSSES[name])
    held: list[Any] = []

    def compute() -> torch.Tensor:
        held[:] = [policy(TOKENS, START, TEMPERATURE)]
        return held[0].logprobs.sum()

    return compute


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Callable[[nn.Module], Compute]]:
    """transformers' Trainer's loss of a model, for TOKENS."""

    def make(model: nn.Module) -> Compute:
        arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
        made = Trainer(model=model, args=arguments)
        count = torch.tensor(TOKENS.numel() - len(TOKENS))
        batch = {"input_ids": TOKENS, "labels": TOKENS, "use_cache": False}
        return lambda: made.compute_loss(model, dict(batch), num_items_in_batch=count)

    return make


def close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], rtol: float, atol: float) -> None:
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name].float(), two[name].float(), rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MEANS)
def test_every_loss_is_the_mean_cross_entropy(name: str, kind: str) -> None:
    if name in ("liger", "cut_cross_entropy") and kind in ("cohere", "granite"):
        pytest.skip("its kernels do not scale logits")
    model = tiny(kind)
    loss, gradients = valued(model, ours(model, name))
    expected, wanted = valued(model, lambda: model(input_ids=TOKENS, labels=TOKENS).loss)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    close(gradients, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCORERS)
def test_every_loss_gives_the_models_log_probabilities(name: str, kind: str) -> None:
    model = tiny(kind)

    def long_way() -> torch.Tensor:
        logits = model(input_ids=TOKENS).logits[:, START - 1 : -1] / TEMPERATURE
        return logits.log_softmax(-1).gather(-1, TOKENS[:, START:, None]).sum()

    total, gradients = valued(model, summed(model, name))
    expected, wanted = valued(model, long_way)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    close(gradients, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", [True, False], ids=["head trained", "head frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_nll_holds_what_the_trainer_holds(
    kind: str, dtype: torch.dtype, head: bool, trainer: Callable[[nn.Module], Compute]
) -> None:
    model = tiny(kind, dtype, head=head)
    theirs = peaks(model, trainer(model))
    assert peaks(model, ours(model, "nll")) == pytest.approx(theirs, abs=IDS)


@pytest.mark.parametrize("head", [True, False], ids=["head trained", "head frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere"])
def test_chunked_nll_is_trls_default(
    kind: str, dtype: torch.dtype, head: bool, trainer: Callable[[nn.Module], Compute]
) -> None:
    assert chunked.TOKENS == _CHUNKED_LM_HEAD_CHUNK_SIZE
    model = tiny(kind, dtype, head=head)
    loss, gradients = valued(model, ours(model, "chunked_nll"))
    held = peaks(model, ours(model, "chunked_nll"))
    _patch_chunked_ce_lm_head(model, chunk_size=_CHUNKED_LM_HEAD_CHUNK_SIZE)
    theirs = trainer(model)
    expected, wanted = valued(model, theirs)
    assert torch.equal(loss, expected)
    close(gradients, wanted, rtol=0, atol=0)
    assert held == pytest.approx(peaks(model, theirs), abs=IDS)


@pytest.mark.parametrize("head", [True, False], ids=["head trained", "head frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_liger_holds_the_buffers_of_its_source(dtype: torch.dtype, head: bool) -> None:
    """Run with stand-ins for its Triton kernels, Liger 0.8.2's own function has these very peaks."""
    count, width, words, item = 600, 32, 1000, dtype.itemsize
    states = torch.randn(count, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(words, width, dtype=dtype, requires_grad=head)
    labels = TOKENS.flatten()
    held = peaks(nn.ParameterList([states, weight]), lambda: fused._Fused.apply(states, weight, labels, None))
    chunk = fused.chunk_tokens(count, width, words)
    assert chunk == 32  # 600 tokens in 1000 / 32 chunks are 19 each; the next power of two
    kept = states.nbytes + (weight.nbytes if head else 0) + 4 * count
    logits, part = chunk * words * item, chunk * width * item
    product = (weight.nbytes if dtype == torch.float32 else weight.nbytes + 4 * weight.numel()) if head else 0
    # A chunk's logits are made while those of the one before are still there.
    assert held["forward"] == pytest.approx(kept + logits + max(part, product, logits), abs=count + 64)


def test_liger_holds_neither_part_of_fp32_gradients_under_autocast() -> None:
    """cuBLAS adds products of half precision to a total in fp32."""
    states = torch.randn(600, 32, requires_grad=True)
    weight = torch.randn(1000, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        held = peaks(
            nn.ParameterList([states, weight]), lambda: fused._Fused.apply(states, weight, TOKENS.flatten(), None)
        )
    kept, logits, part, lower = states.nbytes + weight.nbytes + 4 * 600, 32 * 1000 * 2, 32 * 32 * 2, weight.nbytes // 2
    assert held["forward"] == pytest.approx(kept + 2 * logits + 2 * lower + part, abs=600 + 64)


@pytest.mark.parametrize("head", [True, False], ids=["head trained", "head frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cut_cross_entropy_holds_the_buffers_of_its_source(dtype: torch.dtype, head: bool) -> None:
    states = torch.randn(600, 32, dtype=dtype, requires_grad=True)
    weight = torch.randn(1000, 32, dtype=dtype, requires_grad=head)
    positions = cut._positions(TOKENS, TOKENS.numel() - len(TOKENS))
    assert positions.tolist() == [*range(299), *range(300, 599)]
    targets = TOKENS.flatten()
    parameters = nn.ParameterList([states, weight])
    held = peaks(parameters, lambda: cut._Cut.apply(states, weight, targets, positions, None), positions)
    sums = average = 4
    assert held["forward"] == pytest.approx(2 * 598 * sums + 1000 * average, abs=64)
    kept = 598 * sums + 1000 * average
    gradients = states.nbytes + (weight.nbytes if head else 0)
    order = 1000 * torch.int64.itemsize
    assert held["backward"] == pytest.approx(kept + gradients, abs=order)


def torchtunes(model: Any, name: str) -> Compute:
    """torchtune's losses as its files have them (modules/loss/): labels are shifted, and each sequence's last is ignored."""
    labels = F.pad(TOKENS[:, 1:], (0, 1), value=-100)

    def summed(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), wanted, reduction="sum", ignore_index=-100)

    def linear() -> torch.Tensor:
        states = model.model(TOKENS, use_cache=False).last_hidden_state
        states, wanted = states.reshape(-1, states.shape[-1]), labels.reshape(-1)
        learnt = torch.where(wanted != -100)[0]
        states, wanted = states.index_select(0, learnt), wanted.index_select(0, learnt)
        total = torch.tensor(0.0)
        for some, each in zip(states.tensor_split(8, dim=0), wanted.tensor_split(8, dim=0), strict=True):
            total += summed(model.lm_head(some), each)
        return total / len(learnt)

    def chunked_output() -> torch.Tensor:
        states = model.model(TOKENS, use_cache=False).last_hidden_state
        logits = [model.lm_head(some) for some in states.tensor_split(8, dim=1)]
        wanted = [each.reshape(-1) for each in labels.tensor_split(8, dim=1)]
        total: Any = 0.0
        for some, each in zip(logits, wanted, strict=True):
            total += summed(some.reshape(-1, some.shape[-1]), each)
        return total / (labels != -100).sum()

    return linear if name == "linear_cross_entropy" else chunked_output


@pytest.mark.parametrize("head", [True, False], ids=["head trained", "head frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["linear_cross_entropy", "chunked_output"])
def test_losses_in_pieces_are_torchtunes(name: str, dtype: torch.dtype, head: bool) -> None:
    model = tiny(dtype=dtype, head=head)
    loss, gradients = valued(model, ours(model, name))
    expected, wanted = valued(model, torchtunes(model, name))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    close(gradients, wanted, rtol=1e-2, atol=1e-5)
    held, theirs = peaks(model, ours(model, name)), peaks(model, torchtunes(model, name))
    assert held == pytest.approx(theirs, rel=0.01, abs=4 * IDS)
    assert held["forward"] > 4 * (TOKENS.numel() - 2) * 1000  # the log-softmax of every piece


@pytest.mark.parametrize("loss", ["chunked_nll", "liger", "cut_cross_entropy"])
def test_an_adapter_on_the_head_is_not_left_out(loss: str) -> None:
    model = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ConfigurationError, match=f"loss: {loss} reads the output head's weight as it is"):
        Policy(model, loss=LOSSES[loss])(TOKENS)
    assert Policy(model, loss=LOSSES["nll"])(TOKENS).isfinite()


def test_what_a_loss_cannot_do_to_logits_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"'liger'.*soft-capping of logits alone.*scales them by 0.25"):
        Policy(tiny("granite"), loss=LOSSES["liger"])(TOKENS)
    biased = tiny()
    biased.lm_head.bias = nn.Parameter(torch.zeros(1000))
    for loss, arguments in (("liger", (TOKENS,)), ("chunked_nll", (TOKENS, START))):
        with pytest.raises(ConfigurationError, match=f"{loss} knows no bias of the output head"):
            Policy(biased, loss=LOSSES[loss])(*arguments)
    assert Policy(biased, loss=LOSSES["chunked_nll"])(TOKENS).isfinite()


@pytest.mark.parametrize("head", [True, False], ids=["head trained", "head frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nll_scores_as_trls_ppo(dtype: torch.dtype, head: bool) -> None:
    model = tiny(dtype=dtype, head=head)
    held: list[Any] = []

    def trls() -> torch.Tensor:
        output = model(input_ids=TOKENS)
        logits = output.logits[:, START - 1 : -1]
        logits /= TEMPERATURE + 1e-7
        held[:] = [output, logits]
        return selective_log_softmax(logits, TOKENS[:, START:]).float().sum()

    expected, wanted = valued(model, trls)
    total, gradients = valued(model, summed(model, "nll"))
    assert torch.equal(total, expected)
    close(gradients, wanted, rtol=0, atol=0)
    theirs = peaks(model, trls)
    held.clear()
    # A value head reads the last hidden states, so they are held in the forward pass.
    states = TOKENS.numel() * SHAPE["hidden_size"] * dtype.itemsize
    assert peaks(model, summed(model, "nll")) == pytest.approx(theirs, abs=IDS if head else states)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere"])
def test_chunked_nll_scores_as_trls_async_grpo(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama with a buffer of as many words as TRL's, the others with a shorter one."""
    words = WORDS
    if kind != "llama":
        monkeypatch.setattr(chunked, "WORDS", words := 1_500)
    model = tiny(kind, dtype, vocab_size=words + 1_000)
    cap, scale = KINDS[kind].get("final_logit_softcapping"), KINDS[kind].get("logit_scale", 1.0)

    def trls() -> torch.Tensor:
        states = model.model(input_ids=TOKENS, use_cache=False).last_hidden_state[:, START - 1 : -1]
        flat, wanted = states.reshape(-1, states.shape[-1]), TOKENS[:, START:].reshape(-1)
        found, _ = _ChunkedLogProbFunction.apply(flat, model.lm_head.weight, wanted, TEMPERATURE, words, cap, scale)
        return found.sum()

    expected, wanted = valued(model, trls)
    total, gradients = valued(model, summed(model, "chunked_nll"))
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    close(gradients, wanted, rtol=1e-5, atol=1e-6)
    assert peaks(model, summed(model, "chunked_nll")) == pytest.approx(peaks(model, trls), abs=IDS)
