"""Whole jobs: the roles they hold, that they repeat, and that they run where nothing is computed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.methods.traces import SHAPES
from vrambench.bench.measure.meters.storages import StorageTrace, tensors_of
from vrambench.methods.algorithms import ALGORITHMS
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job

MakeJob = Callable[..., Job]
TOKENS = torch.randint(0, 256, (4, 8), generator=torch.Generator().manual_seed(5))


def numbers(made: Job, steps: int = 2) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in made.step(index).items()} for index in range(steps)]


def parameters(made: Job, role: str) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in made.roles[role].module.parameters()]


# --- roles ---


@pytest.mark.parametrize(
    ("settings", "roles"),
    [
        ({"algorithm": "sft"}, ["policy"]),
        ({"algorithm": "dpo"}, ["policy", "reference"]),
        ({"algorithm": "dpo", "reference": "precomputed"}, ["policy"]),
        ({"algorithm": "dpo", "dpo": {"loss_type": "simpo"}}, ["policy"]),
        ({"algorithm": "ppo"}, ["policy", "reference"]),
        ({"algorithm": "ppo", "reference": "none"}, ["policy"]),
        ({"algorithm": "ppo", "value": "separate"}, ["policy", "value", "reference"]),
        (
            {"algorithm": "ppo", "value": "separate", "reward": "model"},
            ["policy", "value", "reference", "reward"],
        ),
        ({"algorithm": "remax"}, ["policy", "reference"]),
        ({"algorithm": "remax", "reference": "none", "reward": "model"}, ["policy", "reward"]),
        ({"algorithm": "remax", "value": "separate"}, ["policy", "reference"]),
        ({"algorithm": "reinforce"}, ["policy", "reference"]),
        ({"algorithm": "rloo"}, ["policy", "reference"]),
        ({"algorithm": "rloo", "rloo": {"beta": 0}}, ["policy"]),
        ({"algorithm": "grpo", "reward": "model"}, ["policy", "reward"]),
        ({"algorithm": "grpo", "grpo": {"beta": 0.1}}, ["policy", "reference"]),
    ],
)
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_an_algorithm_holds_the_roles_that_it_was_asked_for(
    job: MakeJob, settings: dict[str, Any], roles: list[str], adapter: str
) -> None:
    made = job(adapter=adapter, **settings)
    assert sorted(made.roles) == sorted(roles)
    assert [name for name, role in made.roles.items() if role.learner] == [
        name for name in made.roles if name in ("policy", "value")
    ]
    for name, role in made.roles.items():
        shares = name == "reference" and adapter == "lora"
        assert role.shares == ("policy" if shares else None)
        if role.learner is None and not shares:
            assert not any(parameter.requires_grad for parameter in role.module.parameters())
    counted = [id(parameter) for parameter in made.parameters()]
    assert len(counted) == len(set(counted))
    held = {id(p) for role in made.roles.values() for p in role.module.parameters()}
    assert set(counted) == held


def test_roles_come_in_their_order(job: MakeJob) -> None:
    made = job(algorithm="ppo", value="separate", reward="model")
    assert list(made.roles) == ["policy", "reference", "value", "reward"]


def test_a_value_head_is_trained_with_the_policy(job: MakeJob) -> None:
    made = job(algorithm="ppo")
    policy: Any = made.roles["policy"].module
    assert isinstance(policy.value_head, nn.Linear)
    before = policy.value_head.weight.detach().clone()
    assert float(before.std()) == pytest.approx(65**-0.5, rel=0.3)
    made.step(0)
    assert not torch.equal(policy.value_head.weight, before)
    alone: Any = job(algorithm="ppo", value="separate").roles["policy"].module
    assert alone.value_head is None


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_separate_value_model_is_trained_and_leaves_the_policy_s_weights(job: MakeJob, adapter: str) -> None:
    made = job(algorithm="ppo", value="separate", adapter=adapter)
    with_head = job(algorithm="ppo", adapter=adapter)
    ours, theirs = parameters(made, "policy"), parameters(with_head, "policy")
    # No role's weights depend on which others there are: the same policy, with and without a critic beside it.
    assert all(map(torch.equal, ours, theirs[: len(ours)]))
    before = parameters(made, "value")
    trained = [parameter.requires_grad for parameter in made.roles["value"].module.parameters()]
    made.step(0)
    made.step(1)  # LoRA's first factor moves once the second has
    moved = [not torch.equal(a, b) for a, b in zip(before, parameters(made, "value"), strict=True)]
    assert moved == trained


@pytest.mark.parametrize("algorithm", ["ppo", "remax"])
@pytest.mark.parametrize(
    ("adapter", "reference", "precision"),
    [
        ("none", "copy", "fp32"),
        ("lora", "adapter_off", "bf16"),
        ("lora", "adapter_off", "int8"),
        ("lora", "copy", "nf4"),
    ],
)
def test_the_reference_is_the_first_policy_and_stays_it(
    job: MakeJob, algorithm: str, adapter: str, reference: str, precision: str
) -> None:
    made = job(algorithm=algorithm, adapter=adapter, reference=reference, precision=precision, learning_rate=1e-2)
    policy: Any = made.roles["policy"].module
    with torch.no_grad(), made.device.attention(made.cell.workload.attention):
        first = torch.cat([policy(batch, 4).logprobs for batch in TOKENS.split(2)])
        frozen = made.trainer.reference.logprobs(TOKENS, 4)  # type: ignore[attr-defined]
        assert torch.equal(frozen, first)
        assert not frozen.requires_grad
    for index in range(2):
        made.step(index)
    with torch.no_grad(), made.device.attention(made.cell.workload.attention):
        assert torch.equal(made.trainer.reference.logprobs(TOKENS, 4), first)  # type: ignore[attr-defined]
        assert not torch.allclose(policy(TOKENS, 4).logprobs, first, atol=1e-3)
    if adapter == "lora":  # switched on again, and trained again
        trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
        assert any("lora_A" in name for name in trained)
        assert any("lora_B" in name for name in trained)


def test_without_a_reference_there_is_no_kl(job: MakeJob) -> None:
    for algorithm in ("ppo", "remax"):
        made = job(algorithm=algorithm, reference="none")
        assert made.trainer.reference is None  # type: ignore[attr-defined]
        assert [metrics["kl"] for metrics in numbers(made)] == [0.0, 0.0]


@pytest.mark.parametrize("algorithm", ["ppo", "remax"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_at_the_first_step_the_policy_is_the_reference(job: MakeJob, algorithm: str, adapter: str) -> None:
    first, second, third = numbers(job(algorithm=algorithm, adapter=adapter, learning_rate=1e-2), 3)
    assert first["kl"] == 0.0
    assert second["kl"] != 0.0
    assert third["kl"] != 0.0


OURS = [name for name, value in ALGORITHMS.values().items() if value.foreign is None and value.trains]

# --- determinism ---

REPEATED: list[dict[str, Any]] = [
    {"algorithm": "sft"},
    {"algorithm": "sft", "adapter": "lora", "lora_dropout": 0.5},
    {"algorithm": "sft", "precision": "nf4", "adapter": "lora"},
    {"algorithm": "dpo"},
    {"algorithm": "dpo", "adapter": "lora", "reference": "precomputed"},
    {"algorithm": "reward", "adapter": "lora"},
    {"algorithm": "ppo"},
    {"algorithm": "ppo", "value": "separate", "reward": "model", "adapter": "lora"},
    {"algorithm": "remax"},
    {"algorithm": "remax", "precision": "bf16", "remax": {"advantage": "repository"}},
]


@pytest.mark.parametrize("settings", REPEATED)
def test_the_same_cell_gives_the_same_numbers(job: MakeJob, settings: dict[str, Any]) -> None:
    first = job(**settings)
    ran = numbers(first)
    torch.manual_seed(999)  # whatever the process did before
    assert numbers(job(**settings)) == ran
    other = numbers(job(seed=1, **settings))
    assert other[0]["loss"] != ran[0]["loss"] or settings["algorithm"] == "dpo", "whose first loss is ln 2"
    assert other[1]["loss"] != ran[1]["loss"]


@pytest.mark.slow
def test_checkpointing_changes_no_number(job: MakeJob) -> None:
    for algorithm in OURS:
        plain = numbers(job(algorithm=algorithm))
        checkpointed = numbers(job(algorithm=algorithm, gradient_checkpointing=True))
        assert checkpointed == [pytest.approx(metrics, rel=1e-5, abs=1e-6) for metrics in plain]


# --- where nothing is computed ---


class CpuBytes(TorchDispatchMode):
    """The largest tensor that operators make on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = SHAPES.call(func, args, kwargs or {})
        for tensor in tensors_of((result,)):
            if tensor.device.type == "cpu":
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return result


@pytest.mark.parametrize(
    ("algorithm", "adapter", "precision"),
    list(itertools.product(OURS, ["none", "lora"], ["fp32", "bf16", "int8", "nf4"])),
)
def test_every_algorithm_runs_on_meta_with_no_weights_in_memory(
    job: MakeJob, algorithm: str, adapter: str, precision: str
) -> None:
    settings: dict[str, Any] = {"ppo": {"epochs": 1}, "response_tokens": 2, "rollout_batch": 2}
    with CpuBytes() as cpu:
        made = job(device="meta", algorithm=algorithm, adapter=adapter, precision=precision, **settings)
        metrics = made.step(0)
    # bitsandbytes' and torch's tables; PEFT makes each factor on the CPU before it moves it.
    factor = max((p.numel() * 4 for p in made.parameters() if p.requires_grad), default=0) if adapter == "lora" else 0
    assert cpu.largest <= max(2048, factor), "a tensor of a model's size was made on the CPU"
    assert {value.device.type for value in metrics.values()} == {"meta"}
    assert all(value.shape == () for value in metrics.values())
    assert {parameter.device.type for parameter in made.parameters()} == {"meta"}
    learner: Any = next(role.learner for role in made.roles.values() if role.learner)
    state = {tensor.device.type for tensor in learner.optimizer_state() if tensor.numel() > 1}
    assert state == {"meta"}


def test_every_role_runs_on_meta(job: MakeJob) -> None:
    settings = {"value": "separate", "reward": "model", "gradient_checkpointing": True}
    settings |= {"ppo": {"epochs": 1}, "rollout_batch": 2}
    made = job(device="meta", algorithm="ppo", adapter="lora", precision="bf16", **settings)
    with CpuBytes() as cpu:
        metrics = made.step(0)
    assert cpu.largest <= 2048
    assert {value.device.type for value in metrics.values()} == {"meta"}
    assert sorted(made.roles) == ["policy", "reference", "reward", "value"]


def test_a_seven_billion_model_needs_no_memory_on_meta(job: MakeJob) -> None:
    with StorageTrace("cpu") as trace:
        before = trace.live_bytes
        made = job(device="meta", model="llama-2-7b", precision="bf16", adapter="lora")
        made.step(0)
    assert trace.peak_bytes - before < 2 * 2**20  # one factor at a time, before PEFT moves it
    assert sum(parameter.numel() for parameter in made.parameters()) > 6_738_415_616


# --- mistakes ---


def test_a_model_that_is_not_there_is_named(job: MakeJob) -> None:
    with pytest.raises(ConfigurationError, match=r"^model: 'tyny' is neither a preset"):
        job(model="tyny")
    with pytest.raises(ConfigurationError, match=r"^reward_model: 'tyny' is neither a preset"):
        job(algorithm="remax", reward="model", reward_model="tyny")
    with pytest.raises(ConfigurationError, match=r"^reward_model: 'tiny' knows 256 tokens and the policy has 50257"):
        job(algorithm="remax", model="gpt2", reward="model", device="meta")
