"""Forecasts: what must be exact is, what must grow grows, and a verdict is what the allocator would say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from vrambench.bench.allocator import AllocatorSettings
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.replay import Replay
from vrambench.bench.predict.unseen.hardware import outside_allocator
from vrambench.bench.predict.unseen.matmuls import cublas_workspace_bytes
from vrambench.bench.results.forecast import KINDS, Forecast
from vrambench.methods.cards import CARDS
from vrambench.methods.cell import Cell, resolve

GIB, MIB = 2**30, 2**20
PREDICTOR = Predictor()


def cell(**more: Any) -> Cell:
    axes = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    work: dict[str, Any] = {"model": "gpt2", "prompt_tokens": 24, "response_tokens": 8, "rollout_batch": 4}
    for name, value in more.items():
        (axes if name in axes else work)[name] = value
    return resolve(axes, work)


def forecast(budget: int | None = None, **more: Any) -> Forecast:
    return PREDICTOR.forecast(cell(**more), budget)


PARAMETERS = 124_439_808
"""GPT-2's, its head tied to its embeddings."""
LINEARS = 12 * 12 * 768 * 768
"""Those of them that are quantised: the matrices of the blocks."""


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("fp32", 4 * PARAMETERS),
        ("bf16", 2 * PARAMETERS),
        ("fp16", 2 * PARAMETERS),
        ("bf16_amp", 4 * PARAMETERS),
    ],
)
def test_weights_take_their_precisions_bytes(precision: str, expected: int) -> None:
    assert forecast(precision=precision).roles["policy"].weights_bytes == expected


@pytest.mark.parametrize(("optimizer", "clipped"), [("galore_adamw_8bit", 1.0), ("galore_adamw_8bit_layerwise", 0.0)])
def test_weights_that_a_step_replaces_are_counted_once(optimizer: str, clipped: float) -> None:
    projected = {"galore": {"rank": 128}, "max_grad_norm": clipped}
    assert forecast(optimizer=optimizer, **projected).roles["policy"].weights_bytes == 2 * PARAMETERS


def test_quantised_weights_take_a_byte_or_half_of_one_and_their_scales() -> None:
    lora = 2 * 16 * (768 + 3 * 768) // 2 * 12 * 4  # rank 16 on c_attn, in fp32
    rows = 12 * (3 + 1 + 4 + 1) * 768
    int8 = forecast(precision="int8", adapter="lora").roles["policy"].weights_bytes
    assert int8 == LINEARS + 4 * rows + 2 * (PARAMETERS - LINEARS) + lora
    nf4 = forecast(precision="nf4", adapter="lora").roles["policy"].weights_bytes
    tables = 48 * 16 * 4  # each matrix keeps the sixteen values
    assert nf4 == LINEARS // 2 + LINEARS // 64 * 4 + 2 * (PARAMETERS - LINEARS) + lora + tables


def test_adamw_keeps_eight_bytes_for_each_fp32_parameter() -> None:
    full = forecast(precision="fp32")
    assert full.roles["policy"].optimizer_bytes == 8 * PARAMETERS
    assert full.roles["policy"].gradients_bytes == 4 * PARAMETERS
    lora = forecast(precision="bf16", adapter="lora")
    assert lora.parameters.trainable == 12 * 16 * (768 + 3 * 768)
    assert lora.roles["policy"].optimizer_bytes == 8 * lora.parameters.trainable
    assert lora.parameters.total == PARAMETERS + lora.parameters.trainable


def test_paged_state_is_managed_memory() -> None:
    paged, plain = forecast(optimizer="paged_adamw_8bit"), forecast(optimizer="adamw_bnb_8bit")
    managed = paged.memory.managed_bytes
    assert managed is not None
    assert 2 * PARAMETERS < managed < 2 * PARAMETERS + 6 * 50257 * 768 + 6 * 1024 * 768 + 1
    assert plain.roles["policy"].optimizer_bytes == paged.roles["policy"].optimizer_bytes + managed
    assert any("managed" in note for note in paged.notes)


def test_ppo_holds_what_remax_holds_and_a_value_model() -> None:
    ppo = forecast(algorithm="ppo", value="separate", precision="fp32")
    remax = forecast(algorithm="remax", precision="fp32")
    assert ppo.roles["policy"] == remax.roles["policy"]
    assert ppo.roles["reference"] == remax.roles["reference"]
    value = ppo.roles["value"]
    parameters = PARAMETERS + 768  # its head; it has no vocabulary to predict
    assert (value.weights_bytes, value.gradients_bytes, value.optimizer_bytes) == (
        4 * parameters,
        4 * parameters,
        8 * parameters,
    )
    assert ppo.memory.allocated_bytes is not None
    assert remax.memory.allocated_bytes is not None
    # Both peak in an optimizer's step: PPO's holds the other model's weights and states as well; its gradients are gone by then.
    assert ppo.memory.allocated_bytes - remax.memory.allocated_bytes == pytest.approx(12 * parameters, rel=0.01)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("batch_size", (1, 2, 4)),
        ("response_tokens", (8, 64, 256)),
        ("lora_r", (4, 16, 64)),
    ],
)
def test_more_work_never_takes_less(field: str, values: tuple[int, ...]) -> None:
    adapter = "lora" if field == "lora_r" else "none"
    for algorithm in ("sft", "ppo"):
        seen = [forecast(algorithm=algorithm, adapter=adapter, **{field: value}) for value in values]
        asked = [one.memory.requested_bytes or 0 for one in seen]
        assert asked == sorted(asked)
        # Segments are given out whole, and blocks with tails: how they happen to fit is not monotone.
        held = [one.memory.device_bytes or 0 for one in seen]
        assert all(after >= before - 20 * MIB for before, after in pairwise(held))


def test_checkpointing_takes_less() -> None:
    many = {"batch_size": 8, "prompt_tokens": 256, "response_tokens": 256, "adapter": "lora"}
    plain, checkpointed = forecast(**many), forecast(**many, gradient_checkpointing=True)
    assert plain.memory.allocated_bytes is not None
    assert checkpointed.memory.allocated_bytes is not None
    assert checkpointed.memory.allocated_bytes < 0.7 * plain.memory.allocated_bytes


@pytest.mark.parametrize("algorithm", ["sft", "ppo", "remax"])
def test_the_ledger_adds_up(algorithm: str) -> None:
    one = forecast(algorithm=algorithm, adapter="lora")
    memory = one.memory
    counts = [
        memory.requested_bytes,
        memory.allocated_bytes,
        memory.active_bytes,
        memory.reserved_bytes,
        memory.device_bytes,
    ]
    assert None not in counts
    assert counts == sorted(counts)  # type: ignore[type-var]
    assert memory.device_bytes == memory.reserved_bytes + memory.context_bytes  # type: ignore[operator]
    assert max(phase.allocated_bytes for phase in one.phases) == memory.allocated_bytes
    assert max(phase.reserved_bytes for phase in one.phases) == memory.reserved_bytes
    at_peak = sum(share.nbytes for share in one.at_peak)
    assert memory.requested_bytes is not None
    assert at_peak <= memory.requested_bytes
    assert at_peak == pytest.approx(memory.requested_bytes, rel=0.001)


def test_each_phase_tells_what_is_in_use_at_its_own_peak() -> None:
    one = forecast(algorithm="ppo", value="separate")
    for phase in one.phases:
        told = sum(share.nbytes for share in phase.at_peak)
        assert 0.97 * phase.allocated_bytes <= told <= phase.allocated_bytes, f"{phase.name}: blocks are rounded up"
    most = max(one.phases, key=lambda phase: phase.allocated_bytes)
    assert most.at_peak == tuple(share for share in one.at_peak if share in most.at_peak)
    kinds = {phase.name: {share.kind for share in phase.at_peak} for phase in one.phases}
    assert "kv_cache" in kinds["rollout"]
    assert "kv_cache" not in kinds["learn"]
    assert kinds["load"] == {"weights"}
    assert {"step_temporaries", "optimizer"} <= kinds["optimizer_step"]
    first, second = (phase for phase in forecast().phases if phase.name == "learn")
    assert "optimizer" in {share.kind for share in second.at_peak}
    assert "optimizer" not in {share.kind for share in first.at_peak}, "its state comes with the first step"
    phases = [phase.name for phase in one.phases]
    assert one.limiting_phase in phases
    assert one.roles[one.limiting_role or "policy"]


def test_the_verdict_is_the_allocators() -> None:
    needed = forecast().memory.device_bytes
    assert needed is not None
    roomy, band = forecast(2 * needed), forecast(2 * needed).band_bytes
    assert (roomy.verdict, roomy.fits, roomy.margin_bytes) == ("fits", True, needed)
    assert forecast(needed + band + 1).verdict == "fits"
    assert forecast(needed + band - 1).verdict == "tight"
    assert forecast(needed).verdict == "tight"
    short = forecast(needed - 200 * MIB)
    assert (short.verdict, short.fits) == ("does not fit", False)
    assert short.margin_bytes == -200 * MIB
    assert short.oom is not None
    assert short.oom.missing_bytes
    assert short.oom_phase in {phase.name for phase in short.phases}
    assert not short.far_over
    assert forecast(needed * 2 // 3).far_over


def test_a_budget_that_only_cached_memory_is_over_is_tight() -> None:
    """The allocator gives unused segments back before it fails."""
    made = cell(algorithm="ppo", precision="fp32", value="separate")
    free = PREDICTOR.forecast(made)
    outside = outside_allocator(None).expected_bytes
    replay = Replay(PREDICTOR.simulation(made).trace, AllocatorSettings())
    assert free.memory.device_bytes == replay.reserved_bytes + outside
    capped = PREDICTOR.forecast(made, free.memory.device_bytes - 2 * MIB)
    assert (capped.verdict, capped.memory.num_alloc_retries) == ("tight", 1)
    assert capped.memory.device_bytes is not None
    assert capped.memory.device_bytes <= capped.budget_bytes


def test_a_named_card_brings_its_context_and_its_cublas() -> None:
    named = PREDICTOR.forecast(cell(), CARDS["rtx-3090"].usable_bytes)
    assert named.memory.context_bytes == outside_allocator(CARDS["rtx-3090"]).expected_bytes
    hopper = PREDICTOR.forecast(cell(), card=CARDS["h100-80gb"])
    ampere = PREDICTOR.forecast(cell(), card=CARDS["rtx-3090"])
    difference = cublas_workspace_bytes((9, 0)) - cublas_workspace_bytes((8, 6))
    assert hopper.memory.requested_bytes is not None
    assert ampere.memory.requested_bytes is not None
    assert hopper.memory.requested_bytes - ampere.memory.requested_bytes >= 2 * difference


def test_a_value_brings_its_libraries() -> None:
    card = CARDS["h200"]
    plain = PREDICTOR.forecast(cell(), card=card).memory.context_bytes
    galore = PREDICTOR.forecast(cell(optimizer="galore_adamw", galore={"rank": 16}), card=card).memory.context_bytes
    assert plain == outside_allocator(card).expected_bytes
    assert galore == outside_allocator(card, 98 * MIB).expected_bytes


def test_the_same_question_gets_the_same_answer() -> None:
    first = Predictor().forecast(cell(algorithm="ppo", adapter="lora", precision="nf4"))
    second = PREDICTOR.forecast(cell(algorithm="ppo", adapter="lora", precision="nf4"))
    assert first.model_dump(exclude={"seconds"}) == second.model_dump(exclude={"seconds"})


def test_galores_svd_step_is_in_it() -> None:
    one = forecast(optimizer="galore_adamw", galore={"rank": 16})
    assert "svd" in {phase.name for phase in one.phases}


def test_what_offload_holds_on_the_host_is_said() -> None:
    one = forecast(offload="zero2_optimizer")
    assert one.memory.host_pinned_bytes is not None
    assert one.memory.host_pinned_bytes > 8 * PARAMETERS
    assert one.roles["policy"].optimizer_bytes == 0


def kinds(**more: Any) -> dict[tuple[str | None, str], int]:
    return {(share.role, share.kind): share.nbytes for share in forecast(**more).at_peak}


def test_what_is_live_is_named_by_what_it_is_for() -> None:
    step = kinds()
    assert step["policy", "weights"] == step["policy", "gradients"] == 2 * PARAMETERS
    assert step["policy", "step_temporaries"] == 2 * PARAMETERS, "the list kernels' copy of all parameters"
    assert ("policy", "activations") not in step
    assert ("policy", "step_temporaries") not in kinds(optimizer="adamw_torch_fused")

    tokens = {"prompt_tokens": 512, "response_tokens": 512, "rollout_batch": 64, "gradient_checkpointing": True}
    rollout = kinds(algorithm="remax", adapter="lora", batch_size=1, **tokens)
    assert rollout["policy", "kv_cache"] == 2 * 12 * 768 * 2 * 64 * 1024, "2 x layers x width x 2 bytes x tokens"

    learn = kinds(adapter="lora", batch_size=16, prompt_tokens=256, response_tokens=256)
    assert learn["policy", "logits_and_loss"] >= 16 * 511 * 50257 * 4, "logits in fp32"
    assert learn["policy", "activations"] > 0

    zero = kinds(offload="zero2_optimizer", algorithm="ppo", zero={"reduce_bucket_size": 1_000_000})
    assert zero["policy", "engine_buffers"] >= 50257 * 768 * 2, "as large as the largest parameter"
    assert {kind for _, kind in (*step, *rollout, *learn, *zero)} <= set(KINDS)


def test_weights_that_an_optimizer_puts_in_the_place_of_others_are_weights() -> None:
    """After each of a step's four optimizer steps, and not after the step alone."""
    galore = {"optimizer": "galore_adamw_8bit", "galore": {"rank": 16}, "prompt_tokens": 8, "response_tokens": 8}
    step = kinds(**galore, algorithm="remax", batch_size=1, rollout_batch=4)
    assert step["policy", "weights"] == step["reference", "weights"] == 2 * PARAMETERS
    assert ("policy", "step_temporaries") not in step
