"""What one step of a job does: what it learns from, its formula, and what it counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from vrambench.methods.algorithms import ppo as ppo_module
from vrambench.methods.algorithms import remax as remax_module
from vrambench.methods.job import Job
from vrambench.methods.rollout import GREEDY, generate

MakeJob = Callable[..., Job]
TOKENS = torch.randint(0, 256, (4, 8), generator=torch.Generator().manual_seed(5))


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
        ({"algorithm": "reinforce"}, 4 * 8, 4 * 4, 4),
        ({"algorithm": "rloo"}, 8 * 8, 8 * 4, 8),
        ({"algorithm": "grpo", "group_size": 3, "grpo": {"num_iterations": 2}}, 12 * 8, 12 * 4, 12),
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
