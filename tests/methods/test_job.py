"""Whole jobs: the roles they hold, that they repeat, and that they run where nothing is computed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vrambench.bench.measure.meters.storages import StorageTrace
from vrambench.methods.algorithms import ALGORITHMS
from vrambench.methods.algorithms import ppo as ppo_module
from vrambench.methods.algorithms import remax as remax_module
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.rollout import GREEDY, generate

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


# --- what a step does ---


@pytest.mark.parametrize("value", ["head", "separate"])
@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"adapter": "lora"}])
def test_ppos_first_ratio_is_one(
    job: MakeJob, value: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the policy's loss is minus the mean advantage: old log-probabilities equal recomputed ones."""
    seen: list[tuple[torch.Tensor, ...]] = []
    original = ppo_module.policy_loss

    def listening(logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, *rest: Any) -> torch.Tensor:
        loss = original(logprobs, old, advantages, *rest)
        seen.append((logprobs.detach(), old, advantages, loss.detach()))
        return loss

    monkeypatch.setattr(ppo_module, "policy_loss", listening)
    made = job(algorithm="ppo", value=value, learning_rate=1e-2, ppo={"epochs": 2}, **settings)
    for index in range(2):
        seen.clear()
        made.step(index)
        assert len(seen) == 2 * 2  # epochs x minibatches
        logprobs, old, advantages, loss = seen[0]
        torch.testing.assert_close(logprobs, old, rtol=0, atol=1e-5)
        torch.testing.assert_close(loss, -advantages.mean(), rtol=0, atol=1e-5)
        assert not torch.allclose(seen[-1][0], seen[-1][1], atol=1e-3)
        # Each epoch goes over the whole batch, whose advantages are whitened.
        epoch = torch.cat([advantages for _, _, advantages, _ in seen[:2]])
        torch.testing.assert_close(epoch.mean(), torch.zeros(()), rtol=0, atol=1e-5)
        torch.testing.assert_close(epoch.std(), torch.ones(()), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("settings", "train", "generated", "samples"),
    [
        ({}, 2 * 8, 0, 2),
        ({"gradient_accumulation_steps": 3}, 6 * 8, 0, 6),
        ({"algorithm": "ppo"}, 4 * 8, 4 * 4, 4),
        ({"algorithm": "ppo", "ppo": {"epochs": 7}}, 4 * 8, 4 * 4, 4),
        ({"algorithm": "remax"}, 4 * 8, 2 * 4 * 4, 4),
    ],
)
def test_work_is_counted_once(job: MakeJob, settings: dict[str, Any], train: int, generated: int, samples: int) -> None:
    trainer = job(**settings).trainer
    assert (trainer.train_tokens, trainer.generated_tokens, trainer.samples) == (train, generated, samples)


@pytest.mark.parametrize("algorithm", ["ppo", "remax"])
def test_no_forward_pass_of_training_has_more_than_batch_size_sequences(job: MakeJob, algorithm: str) -> None:
    heard: list[str] = []
    made = job(algorithm=algorithm, rollout_batch=5, batch_size=2, phase=heard.append)
    sizes: dict[str, set[int]] = {}
    policy = made.roles["policy"].module
    policy.register_forward_pre_hook(lambda module, inputs: sizes.setdefault(heard[-1], set()).add(inputs[0].shape[0]))
    made.step(0)
    assert sizes == {"score": {2, 1}, "learn": {2, 1}}


def test_sft_learns_every_token_of_a_sequence(job: MakeJob) -> None:
    """Prompt and response: cross-entropy of all tokens but the first, whole rows at once."""
    made = job(prompt_tokens=6, response_tokens=2)
    tokens = made.data.sequences(0, 2, 8)
    model: Any = made.roles["policy"].module.model
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[:, :-1]
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(made.step(0)["loss"], expected)


def listening_to(made: Job, seen: list[torch.Tensor]) -> list[torch.Tensor]:
    """The scores that `made`'s reward gives from now on; the responses that they are for go to `seen`."""
    trainer: Any = made.trainer
    reward, scores = trainer.reward, list[torch.Tensor]()

    def listening(prompts: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        seen.append(responses)
        scores.append(reward(prompts, responses))
        return scores[-1]

    trainer.reward = listening
    return scores


@pytest.mark.parametrize("form", ["verl", "repository"])
def test_a_remax_step_is_its_formula(job: MakeJob, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled score less the greedy response's, less the KL term: of a policy that has moved from its reference."""
    settings = {"algorithm": "remax", "learning_rate": 1e-2, "batch_size": 4, "response_tokens": 8}
    made = job(remax={"advantage": form, "kl_coef": 0.5, "gamma": 0.9}, **settings)
    made.step(0)
    responses: list[torch.Tensor] = []
    scores = listening_to(made, responses)
    prompts = made.data.sequences(1, 4, 4)
    model: Any = made.roles["policy"].module.model
    with made.device.attention(made.cell.workload.attention):
        greedy = generate(model, prompts, 8, GREEDY, made.device)[:, 4:]
    advantages: list[torch.Tensor] = []
    original = remax_module.policy_loss

    def loss(logprobs: torch.Tensor, given: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        advantages.append(given)
        return original(logprobs, given, mask)

    monkeypatch.setattr(remax_module, "policy_loss", loss)
    reference: Any = made.trainer.reference  # type: ignore[attr-defined]
    policy: Any = made.roles["policy"].module
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    kl = made.step(1)["kl"]
    with torch.no_grad():
        for parameter, old in zip(policy.parameters(), before, strict=True):
            parameter.copy_(old)
        tokens = torch.cat([prompts, responses[0]], dim=1)
        terms = policy(tokens, 4, 1.0).logprobs - reference.logprobs(tokens, 4, 1.0)
    assert torch.equal(responses[1], greedy)
    assert not torch.equal(responses[0], greedy)
    torch.testing.assert_close(kl, terms.sum(dim=1).mean(), rtol=1e-4, atol=1e-5)
    assert terms.abs().max() > 1e-3
    sampled, baseline = scores
    (given,) = advantages
    if form == "verl":
        expected = (sampled - baseline)[:, None] - 0.5 * terms.flip(1).cumsum(1).flip(1)
    else:
        expected = 0.9 ** torch.arange(8, 0, -1) * (sampled - baseline)[:, None] - 0.5 * terms
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", ["head", "separate"])
def test_ppos_loss_is_the_policys_and_its_share_of_the_values(
    job: MakeJob, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with a head and with a separate critic."""
    parts: dict[str, list[torch.Tensor]] = {"policy_loss": [], "value_loss": []}
    for name, losses in parts.items():
        original = getattr(ppo_module, name)

        def listening(*arguments: Any, original: Any = original, losses: list[torch.Tensor] = losses) -> torch.Tensor:
            losses.append(original(*arguments))
            return losses[-1]

        monkeypatch.setattr(ppo_module, name, listening)
    made = job(algorithm="ppo", value=value, ppo={"epochs": 2, "vf_coef": 0.25})
    told = made.step(0)["loss"]
    policy, values = (torch.stack(losses).detach() for losses in parts.values())
    assert len(policy) == len(values) == 4
    assert values.min() > 0
    torch.testing.assert_close(told, (policy + 0.25 * values).mean())


def test_a_separate_critics_gradient_has_its_coefficient(job: MakeJob) -> None:
    norms = []
    for coefficient in (0.1, 0.2):
        made = job(algorithm="ppo", value="separate", max_grad_norm=0, ppo={"epochs": 1, "vf_coef": coefficient})
        learner: Any = made.roles["value"].learner
        seen: list[torch.Tensor] = []

        def look(*_: Any, learner: Any = learner, seen: list[torch.Tensor] = seen) -> None:
            seen.append(torch.cat([gradient.flatten() for gradient in learner.gradients()]).norm())

        learner._optimizer.register_step_pre_hook(look)
        made.step(0)
        norms.append(float(seen[0]))
    assert norms[0] > 0
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-4)


def test_ppo_shuffles_its_minibatches_anew_in_each_epoch(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[list[float]] = []
    original = ppo_module.policy_loss

    def listening(logprobs: torch.Tensor, old: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(old.sum(dim=1).tolist())
        return original(logprobs, old, *rest)

    monkeypatch.setattr(ppo_module, "policy_loss", listening)
    made = job(algorithm="ppo", rollout_batch=8, ppo={"epochs": 3})
    evaluate, scored = made.trainer.evaluate, list[float]()  # type: ignore[attr-defined]

    def evaluated(batch: torch.Tensor) -> Any:
        told = evaluate(batch)
        scored.extend(told.logprobs.sum(dim=1).tolist())
        return told

    made.trainer.evaluate = evaluated  # type: ignore[attr-defined]
    made.step(0)
    epochs = [[score for batch in rows[first : first + 4] for score in batch] for first in (0, 4, 8)]
    orders = [scored, *epochs]
    assert all(sorted(epoch) == sorted(scored) for epoch in epochs), "each epoch goes over every sequence once"
    assert len({tuple(order) for order in orders}) == 4


# --- determinism ---

REPEATED: list[dict[str, Any]] = [
    {"algorithm": "sft"},
    {"algorithm": "sft", "adapter": "lora", "lora_dropout": 0.5},
    {"algorithm": "sft", "precision": "nf4", "adapter": "lora"},
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
    assert other[0]["loss"] != ran[0]["loss"]
    assert other[1]["loss"] != ran[1]["loss"]


def test_checkpointing_changes_no_number(job: MakeJob) -> None:
    for algorithm in ALGORITHMS:
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
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                self.largest = max(self.largest, leaf.numel() * leaf.element_size())
        return result


@pytest.mark.parametrize(
    ("algorithm", "adapter", "precision"),
    list(itertools.product(ALGORITHMS, ["none", "lora"], ["fp32", "bf16", "int8", "nf4"])),
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
    learner: Any = made.roles["policy"].learner
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
