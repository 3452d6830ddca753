"""Every formula against vectors that the named reference implementations gave when they were executed (golden.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vrambench.methods.algorithms import dpo, grpo, ppo, reinforce, remax, reward, rloo
from vrambench.methods.rewards import kl_estimates, token_rewards, whiten

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("golden.json").read_text())
INPUTS = {name: torch.tensor(values, dtype=torch.float64) for name, values in GOLDEN["inputs"].items()}
MASK = INPUTS["mask"]


def golden(*path: str) -> torch.Tensor:
    value = GOLDEN
    for key in path:
        value = value[key]
    return torch.tensor(value, dtype=torch.float64)


def rewards() -> torch.Tensor:
    return token_rewards(INPUTS["score"], INPUTS["logprobs"], INPUTS["ref_logprobs"], MASK, 0.05)


def near(actual: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """Equal to the digits that the file holds; under the mask, where there is one (verl leaves numbers on padding)."""
    if mask is not None:
        assert torch.equal(actual * (1 - mask), torch.zeros_like(actual)), "something stands outside the mask"
        actual, expected = actual * mask, expected * mask
    torch.testing.assert_close(actual, expected, rtol=0, atol=4e-8)


def test_token_rewards() -> None:
    near(rewards(), golden("token_rewards_beta0.05_k1"), MASK)


def test_token_rewards_without_a_reference_are_the_score_alone() -> None:
    expected = torch.zeros_like(MASK)
    expected[0, 3], expected[1, 2] = INPUTS["score"]
    near(token_rewards(INPUTS["score"], INPUTS["logprobs"], None, MASK, 0.05), expected)


@pytest.mark.parametrize(
    ("key", "gamma", "lam"),
    [
        ("gae_openrlhf_g1.0_l0.95", 1.0, 0.95),
        ("gae_openrlhf_g0.99_l0.95", 0.99, 0.95),
        ("gae_dschat_g1_l.95", 1.0, 0.95),
    ],
)
def test_advantages_before_whitening(key: str, gamma: float, lam: float) -> None:
    advantages, returns = ppo.gae(rewards(), INPUTS["values"], MASK, gamma, lam)
    near(advantages, golden(key, "adv_raw"), MASK)
    near(returns, golden(key, "returns"), MASK)


@pytest.mark.parametrize("gamma", [1.0, 0.99])
def test_whitened_advantages(gamma: float) -> None:
    raw, _ = ppo.gae(rewards(), INPUTS["values"], MASK, gamma, 0.95)
    whitened = whiten(raw, MASK)
    near(whitened, golden(f"gae_trl_whiten_of_raw_g{gamma}_l0.95"), MASK)
    near(whitened, golden(f"gae_verl_g{gamma}_l0.95", "adv_whitened"), MASK)


def test_ppo_policy_loss() -> None:
    raw, _ = ppo.gae(rewards(), INPUTS["values"], MASK, 1.0, 0.95)
    loss = ppo.policy_loss(golden("new_logprobs"), INPUTS["logprobs"], raw, MASK, 0.2)
    near(loss, golden("ppo_policy_loss_dschat_clip.2_rawadv"))


def test_value_loss() -> None:
    _, returns = ppo.gae(rewards(), INPUTS["values"], MASK, 1.0, 0.95)
    loss = ppo.value_loss(golden("new_values"), INPUTS["values"], returns, MASK, 0.2)
    near(loss, golden("value_loss_dschat_clip.2"))


def test_remax_as_verl_has_it() -> None:
    near(remax.verl_advantages(rewards(), INPUTS["greedy_score"], MASK), golden("remax_verl", "adv"), MASK)


@pytest.mark.parametrize("gamma", ["1.0", "0.99"])
def test_remax_as_its_authors_have_it(gamma: str) -> None:
    kl = INPUTS["logprobs"] - INPUTS["ref_logprobs"]
    difference = INPUTS["score"] - INPUTS["greedy_score"]
    advantages = remax.repository_advantages(difference, kl, MASK, 0.05, float(gamma))
    near(advantages, golden(f"remax_repo_g{gamma}_kl.05"), MASK)


def test_remax_loss() -> None:
    kl = INPUTS["logprobs"] - INPUTS["ref_logprobs"]
    difference = INPUTS["score"] - INPUTS["greedy_score"]
    advantages = remax.repository_advantages(difference, kl, MASK, 0.05, 0.99)
    near(remax.policy_loss(golden("new_logprobs"), advantages, MASK), golden("remax_loss_repo"))


def test_dpo() -> None:
    pairs = {name: golden("dpo_sigmoid_beta.1", name) for name in ("pc", "pr", "rc", "rr", "loss")}
    ones = torch.ones_like(pairs["pc"])
    compared = dpo.Compared(pairs["pc"] - pairs["rc"], pairs["pr"] - pairs["rr"], ones, ones)
    near(dpo.preference_losses(compared, dpo.DPOOptions(beta=0.1)).mean(), pairs["loss"])


@pytest.mark.parametrize(("key", "coefficient"), [("loss", 0.0), ("loss_center_001", 0.01)])
def test_reward_model(key: str, coefficient: float) -> None:
    losses = reward.pair_losses(golden("rm_bt", "chosen"), golden("rm_bt", "rejected"), coefficient)
    near(losses.mean(), golden("rm_bt", key))


def test_k3() -> None:
    near(kl_estimates(INPUTS["logprobs"], INPUTS["ref_logprobs"], "k3") * MASK, golden("k3"), MASK)


@pytest.mark.parametrize(("key", "gamma"), [("g1", 1.0), ("g.99", 0.99)])
def test_what_is_rewarded_later(key: str, gamma: float) -> None:
    near(reinforce.returns(rewards(), MASK, gamma), golden(f"reinforce_openrlhf_returns_{key}"), MASK)


def test_reinforce_plus_plus() -> None:
    returns = reinforce.returns(rewards(), MASK, 1.0)
    near(returns, golden("reinforce_pp_verl_g1", "returns"), MASK)
    near(whiten(returns, MASK), golden("reinforce_pp_verl_g1", "adv"), MASK)


@pytest.mark.parametrize(
    ("key", "scale", "eps"),
    [
        ("grpo_trl_eps1e-4_unbiased_std", "group", 1e-4),
        ("grpo_verl_eps1e-6", "group", 1e-6),
        ("dr_grpo_verl_nostd", "none", 1e-4),
    ],
)
def test_advantages_in_a_group(key: str, scale: str, eps: float) -> None:
    near(grpo.group_advantages(golden("group_rewards"), 4, scale, eps), golden(key))


@pytest.mark.parametrize("key", ["rloo_trl", "rloo_verl"])
def test_advantages_over_the_others(key: str) -> None:
    near(rloo.leave_one_out(golden("group_rewards"), 4), golden(key))
