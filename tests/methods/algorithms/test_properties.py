"""What must hold for any batch: of the advantages, of whitening, of the clipped losses."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from vrambench.methods.algorithms import grpo, ppo, reinforce, remax, rloo
from vrambench.methods.rewards import kl_estimates, token_rewards, whiten

NUMBERS = st.floats(-10, 10, allow_nan=False, width=32)
FRACTIONS = st.floats(0.0078125, 1, width=32)


@st.composite
def batches(draw: Any, tensors: int, least: int = 1) -> tuple[torch.Tensor, ...]:
    """`tensors` of [B, R] in float64, then a mask: a prefix of each row, at least one token each and `least` in all."""
    rows, length = draw(st.integers(1, 4)), draw(st.integers(max(1, least), 6))
    values = [
        torch.tensor(draw(st.lists(NUMBERS, min_size=rows * length, max_size=rows * length)), dtype=torch.float64).view(
            rows, length
        )
        for _ in range(tensors)
    ]
    lengths = torch.tensor(draw(st.lists(st.integers(least, length), min_size=rows, max_size=rows)))
    mask = (torch.arange(length) < lengths[:, None]).double()
    return *values, mask


def garbage(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same with other numbers outside the mask."""
    return torch.where(mask.bool(), values, torch.full_like(values, 1e3))


def later_sums(values: torch.Tensor) -> torch.Tensor:
    return values.flip(1).cumsum(1).flip(1)


@given(batches(2))
def test_with_lambda_and_gamma_one_advantages_are_rewards_to_go_less_values(data: Any) -> None:
    rewards, values, mask = data
    rewards = rewards * mask
    advantages, returns = ppo.gae(rewards, values, mask, 1.0, 1.0)
    torch.testing.assert_close(advantages, (later_sums(rewards) - values) * mask)
    torch.testing.assert_close(returns, later_sums(rewards) * mask)


@given(batches(2), FRACTIONS)
def test_with_lambda_zero_advantages_are_one_step_errors(data: Any, gamma: float) -> None:
    rewards, values, mask = data
    rewards = rewards * mask
    advantages, _ = ppo.gae(rewards, values, mask, gamma, 0.0)
    following = torch.cat([(values * mask)[:, 1:], torch.zeros(len(values), 1, dtype=values.dtype)], dim=1)
    torch.testing.assert_close(advantages, (rewards + gamma * following - values) * mask)


@given(batches(2), FRACTIONS, FRACTIONS)
def test_advantages_see_nothing_outside_the_mask(data: Any, gamma: float, lam: float) -> None:
    rewards, values, mask = data
    rewards = rewards * mask
    advantages, returns = ppo.gae(rewards, values, mask, gamma, lam)
    again = ppo.gae(rewards, garbage(values, mask), mask, gamma, lam)
    torch.testing.assert_close((advantages, returns), again)
    assert not (advantages * (1 - mask)).any()
    assert not (returns * (1 - mask)).any()


@given(batches(1, least=2))
def test_whitening_gives_mean_zero_and_variance_one(data: Any) -> None:
    values, mask = data
    spread = values[mask.bool()].std()
    whitened = whiten(values, mask)
    assert not (whitened * (1 - mask)).any()
    inside = whitened[mask.bool()]
    torch.testing.assert_close(inside.mean(), torch.zeros((), dtype=inside.dtype), rtol=0, atol=1e-6)
    if spread > 0.1:  # eps 1e-8 beside it
        torch.testing.assert_close(inside.var(), torch.ones((), dtype=inside.dtype), rtol=1e-5, atol=0)
    torch.testing.assert_close(whiten(garbage(values, mask), mask), whitened)


@given(batches(1), st.lists(NUMBERS, min_size=4, max_size=4))
def test_remax_advantages_are_what_is_still_to_come_less_the_baseline(data: Any, baselines: list[float]) -> None:
    rewards, mask = data
    baseline = torch.tensor(baselines[: len(rewards)], dtype=torch.float64)
    advantages = remax.verl_advantages(rewards, baseline, mask)
    total = (rewards * mask).sum(dim=1)
    torch.testing.assert_close(advantages[:, 0], total - baseline)
    steps = (advantages[:, :-1] - advantages[:, 1:]) * mask[:, 1:]
    torch.testing.assert_close(steps, (rewards[:, :-1] * mask[:, 1:]))
    assert not (advantages * (1 - mask)).any()
    torch.testing.assert_close(remax.verl_advantages(garbage(rewards, mask), baseline, mask), advantages)


@given(batches(1), FRACTIONS)
def test_the_repository_s_advantages_are_the_difference_discounted(data: Any, gamma: float) -> None:
    kl, mask = data
    difference = torch.linspace(-1, 1, len(kl), dtype=torch.float64)
    advantages = remax.repository_advantages(difference, kl, mask, 0.0, gamma)
    last = (mask.sum(1) - 1).long()[:, None]
    torch.testing.assert_close(advantages.gather(1, last).squeeze(1), gamma * difference)
    assert not (advantages * (1 - mask)).any()
    with_kl = remax.repository_advantages(difference, kl, mask, 0.5, gamma)
    torch.testing.assert_close(with_kl, advantages - 0.5 * kl * mask)


@given(batches(2), st.lists(NUMBERS, min_size=4, max_size=4))
def test_token_rewards_add_up_to_the_score_less_the_kl(data: Any, scores: list[float]) -> None:
    logprobs, reference, mask = data
    score = torch.tensor(scores[: len(logprobs)], dtype=torch.float64)
    rewards = token_rewards(score, logprobs, reference, mask, 0.1)
    torch.testing.assert_close(rewards.sum(1), score - 0.1 * ((logprobs - reference) * mask).sum(1))
    assert not (rewards * (1 - mask)).any()


@given(batches(3), st.floats(0.125, 0.5, width=32))
def test_the_clipped_objective_never_promises_more_than_the_plain_one(data: Any, eps: float) -> None:
    logprobs, old, advantages, mask = data
    logprobs = logprobs.clamp(-2, 2)
    old = old.clamp(-2, 2)
    loss = ppo.policy_loss(logprobs, old, advantages, mask, eps)
    plain = -((logprobs - old).exp() * advantages * mask).sum() / mask.sum()
    assert loss >= plain - 1e-9
    same = ppo.policy_loss(old, old, advantages, mask, eps)
    torch.testing.assert_close(same, -(advantages * mask).sum() / mask.sum())
    outside = ppo.policy_loss(garbage(logprobs, mask), garbage(old, mask), garbage(advantages, mask), mask, eps)
    torch.testing.assert_close(outside, loss)


@given(batches(3), st.floats(0.125, 0.5, width=32))
def test_the_clipped_value_loss_is_at_least_the_plain_one(data: Any, eps: float) -> None:
    values, old, returns, mask = data
    loss = ppo.value_loss(values, old, returns, mask, eps)
    plain = 0.5 * ((values - returns).square() * mask).sum() / mask.sum()
    assert loss >= plain - 1e-9
    near = old + (values - old).clamp(-eps, eps)
    expected = 0.5 * ((near - returns).square() * mask).sum() / mask.sum()
    torch.testing.assert_close(ppo.value_loss(near, old, returns, mask, eps), expected)


@given(batches(2))
def test_the_policy_gradient_of_remax_is_minus_the_advantage(data: Any) -> None:
    logprobs, advantages, mask = data
    logprobs.requires_grad_()
    remax.policy_loss(logprobs, advantages * mask, mask).backward()
    torch.testing.assert_close(logprobs.grad, -advantages * mask / mask.sum())


def test_the_dual_clip_bounds_the_loss_of_what_is_unwanted() -> None:
    old, advantages = torch.zeros(1, 4), torch.tensor([[-1.0, -1.0, 1.0, -1.0]])
    ratios, mask = torch.tensor([[5.0, 1.1, 5.0, 0.5]]), torch.ones(1, 4)
    loss = ppo.policy_loss(ratios.log(), old, advantages, mask, 0.2, 3.0)
    torch.testing.assert_close(loss, torch.tensor((3.0 + 1.1 - 1.2 + 0.8) / 4))


@given(batches(1), FRACTIONS)
def test_returns_are_what_is_still_to_come(data: Any, gamma: float) -> None:
    rewards, mask = data
    found = reinforce.returns(rewards, mask, gamma)
    following = torch.cat([found[:, 1:], torch.zeros(len(found), 1, dtype=found.dtype)], dim=1)
    torch.testing.assert_close(found, (rewards + gamma * following) * mask)
    torch.testing.assert_close(reinforce.returns(garbage(rewards, mask), mask, gamma), found)
    torch.testing.assert_close(reinforce.returns(rewards, mask, 1.0), later_sums(rewards * mask) * mask)


@given(st.integers(1, 3), st.lists(NUMBERS, min_size=12, max_size=12))
def test_advantages_in_a_group_add_up_to_nothing(prompts: int, scores: list[float]) -> None:
    score = torch.tensor(scores[: 4 * prompts], dtype=torch.float64)
    none = torch.zeros(prompts, dtype=torch.float64)
    for made in (
        rloo.leave_one_out(score, 4),
        *(grpo.group_advantages(score, 4, s) for s in ("group", "batch", "none")),
    ):
        torch.testing.assert_close(made.view(-1, 4).sum(dim=1), none, rtol=0, atol=1e-6)
    torch.testing.assert_close(rloo.leave_one_out(score, 4) * 3 / 4, grpo.group_advantages(score, 4, "none"))
    shifted = score + torch.arange(prompts).repeat_interleave(4)
    torch.testing.assert_close(grpo.group_advantages(shifted, 4, "none"), grpo.group_advantages(score, 4, "none"))


@given(batches(2))
def test_every_estimate_of_a_divergence_is_near_the_others_where_it_is_small(data: Any) -> None:
    logprobs, difference, _ = data
    reference = logprobs + difference / 1e4
    k1, k2, k3 = (kl_estimates(logprobs, reference, kind) for kind in ("k1", "k2", "k3"))
    torch.testing.assert_close(k1, -difference / 1e4)
    assert (k2 >= 0).all()
    assert (k3 >= -1e-15).all()
    torch.testing.assert_close(k2, k3, rtol=1e-2, atol=1e-12)


LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "bnpo")


@given(batches(2), st.sampled_from(LOSS_TYPES), st.sampled_from(["token", "sequence"]))
def test_the_gradient_of_a_first_group_relative_step_is_minus_the_advantage(data: Any, kind: str, level: str) -> None:
    """Where nothing has been learnt yet, whatever is clipped, each token's weight is one over what its loss is divided by."""
    logprobs, advantages, mask = data
    logprobs.requires_grad_()
    options = grpo.GRPOOptions(loss_type=kind, importance_sampling_level=level)
    losses = grpo.token_losses(logprobs, logprobs.detach(), advantages[:, 0], None, mask, options)
    loss = grpo.mean_loss(losses, mask, kind, mask.sum())
    loss.backward()
    of_all = {
        "dapo": mask.sum(),
        "bnpo": mask.sum(),
        "dr_grpo": mask.numel(),
        "grpo": len(mask) * mask.sum(1, keepdim=True),
    }
    torch.testing.assert_close(logprobs.grad, -advantages[:, :1] * mask / of_all[kind])


@given(batches(3), st.sampled_from(LOSS_TYPES))
def test_group_relative_losses_see_nothing_outside_the_mask(data: Any, kind: str) -> None:
    logprobs, old, reference, mask = data
    options = grpo.GRPOOptions(loss_type=kind, beta=0.1, delta=4.0)
    advantages = logprobs[:, 0]

    def loss(*given: torch.Tensor) -> torch.Tensor:
        new, before, base = (one.clamp(-2, 2) for one in given)
        losses = grpo.token_losses(new, before, advantages, base, mask, options)
        return grpo.mean_loss(losses, mask, kind, mask.sum())

    outside = (garbage(one, mask) for one in (logprobs, old, reference))
    torch.testing.assert_close(loss(*outside), loss(logprobs, old, reference))
