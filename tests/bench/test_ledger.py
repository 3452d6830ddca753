"""The ledger's lines against arithmetic: bytes of weights, gradients and optimizer state by role."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from vrambench.bench.measure.ledger import paged_state, role_bytes
from vrambench.bench.measure.measurement import Measurement
from vrambench.bench.measure.meters.cpu import CpuMeter
from vrambench.bench.results.records import RoleBytes, Sample
from vrambench.methods.device import get_device
from vrambench.methods.job import Role


def measured(plan: Any, axes: dict[str, str] | None = None, **workload: Any) -> Sample:
    sample = Measurement(plan(axes, **workload).cell, get_device("cpu"), CpuMeter()).run()
    assert sample.status == "ok", sample.reason
    return sample


def test_full_fine_tuning_in_fp32_holds_sixteen_bytes_per_parameter(plan: Any) -> None:
    sample = measured(plan)
    assert sample.parameters is not None
    count = sample.parameters.total
    policy = sample.roles["policy"]
    assert sample.parameters.trainable == count
    assert policy.gradients_bytes == 4 * count
    # AdamW: two fp32 moments, and a step counter of 4 bytes for each tensor.
    assert 8 * count < policy.optimizer_bytes < 8 * count + 4 * 100
    assert 4 * count <= policy.weights_bytes < 4 * count + 1024, "and the rotary embedding's table"


def test_bf16_halves_all_of_it(plan: Any) -> None:
    full, half = measured(plan).roles["policy"], measured(plan, {"precision": "bf16"}).roles["policy"]
    assert half.gradients_bytes * 2 == full.gradients_bytes
    assert half.weights_bytes * 2 == pytest.approx(full.weights_bytes, rel=0.01)
    assert half.optimizer_bytes * 2 == pytest.approx(full.optimizer_bytes, rel=0.01)


def test_lora_trains_its_factors_alone(plan: Any) -> None:
    sample = measured(plan, {"adapter": "lora", "precision": "bf16"}, lora_r=4, lora_target_modules="all-linear")
    assert sample.parameters is not None
    # r * (in + out) for q, k, v, o, gate, up, down of two layers; hidden 64, 2 of 4 heads for keys, 176 inside the MLP.
    expected = 2 * 4 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 2 * (64 + 176) + (176 + 64))
    assert sample.parameters.trainable == expected
    assert sample.roles["policy"].gradients_bytes == 4 * expected, "adapters are fp32, as PEFT casts them"


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("nf4", 4)])
def test_quantised_weights_take_their_bits_and_scales(plan: Any, precision: str, bits: int) -> None:
    base = measured(plan, {"adapter": "lora", "precision": "bf16"})
    sample = measured(plan, {"adapter": "lora", "precision": precision})
    quantised = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 176 * 3)
    saved = base.roles["policy"].weights_bytes - sample.roles["policy"].weights_bytes
    scales = quantised * (16 - bits) // 8 - saved
    per_block = {"int8": 4 * 2 * (64 + 32 + 32 + 64 + 176 + 176 + 64), "nf4": quantised // 64 * 4}[precision]
    tables = 14 * 16 * 4 if precision == "nf4" else 0
    assert per_block <= scales <= per_block + tables, "what it costs beside its bits"
    assert sample.parameters == base.parameters, "a quantised weight counts as the numbers that it stands for"


def test_adapter_off_reference_costs_nothing_and_a_copy_costs_its_weights(plan: Any) -> None:
    shared = measured(plan, {"adapter": "lora", "algorithm": "ppo"})
    copied = measured(plan, {"adapter": "lora", "algorithm": "ppo"}, reference="copy")
    assert shared.roles["reference"] == RoleBytes(
        weights_bytes=0, gradients_bytes=0, optimizer_bytes=0, shares="policy"
    )
    assert copied.roles["reference"].weights_bytes == measured(plan).roles["policy"].weights_bytes
    assert (copied.roles["reference"].gradients_bytes, copied.roles["reference"].shares) == (0, None)


def test_ppo_holds_a_value_model_that_remax_does_not(plan: Any) -> None:
    ppo = measured(plan, {"algorithm": "ppo"}, value="separate")
    remax = measured(plan, {"algorithm": "remax"})
    assert set(ppo.roles) - set(remax.roles) == {"value"}
    for role in remax.roles:
        assert ppo.roles[role] == remax.roles[role]
    value = ppo.roles["value"]
    policy = ppo.roles["policy"]
    # The policy's shape with a scalar head instead of the vocabulary's: 64 * 256 - 64 weights fewer.
    assert policy.weights_bytes - value.weights_bytes == 4 * (64 * 256 - 64)
    assert policy.gradients_bytes - value.gradients_bytes == 4 * (64 * 256 - 64)
    assert value.optimizer_bytes == pytest.approx(2 * value.gradients_bytes, rel=0.01)


def test_layerwise_holds_one_gradient_at_a_time(plan: Any) -> None:
    sample = measured(plan, {"optimizer": "galore_adamw_layerwise"}, max_grad_norm=0, galore={"rank": 4})
    whole = measured(plan, {"optimizer": "galore_adamw"}, max_grad_norm=0, galore={"rank": 4})
    assert sample.roles["policy"].gradients_bytes == 4 * 256 * 64, "the embedding's, the largest"
    assert sample.roles["policy"].optimizer_bytes == whole.roles["policy"].optimizer_bytes
    assert sample.memory.allocated_bytes is not None
    assert whole.memory.allocated_bytes is not None
    assert sample.memory.allocated_bytes < whole.memory.allocated_bytes


def test_state_in_managed_memory_is_neither_the_devices_nor_lost() -> None:
    plain, paged = torch.zeros(5), torch.zeros(7)
    paged.is_paged = True  # type: ignore[attr-defined]
    learner: Any = SimpleNamespace(optimizer_state=lambda: iter([plain, paged]))
    job: Any = SimpleNamespace(device=get_device("cpu"), roles={"policy": Role(nn.Linear(3, 2), learner)})
    assert role_bytes(job, {"policy": 9})["policy"] == RoleBytes(
        weights_bytes=4 * 8, gradients_bytes=9, optimizer_bytes=4 * 5
    )
    (found,) = paged_state(job)
    assert found is paged
