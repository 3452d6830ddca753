"""REINFORCE for language models: every token's log-probability times what is rewarded from there on (Williams 1992); plain, or with
whitened returns, which is REINFORCE++ (arXiv 2501.03262).

A step: sample one response for each of `rollout_batch` prompts (rollout); score it (score); then one pass over the responses in
minibatches of `batch_size` (learn). There is no value model and no baseline. Roles: policy, reference, reward.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from vrambench.methods.algorithms import ROLLOUT_FIELDS, Algorithm, Metrics, Stage
from vrambench.methods.registry import Options
from vrambench.methods.rewards import KLEstimator, kl_estimates, token_rewards, whiten
from vrambench.methods.rollout import Sampling, generate


class ReinforceOptions(Options):
    """OpenRLHF's names, where it has them."""

    namespace: ClassVar[str] = "reinforce"
    whiten_advantages: bool = False
    """Whether returns are whitened over the rollout, as in REINFORCE++."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount of rewards from token to token."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the KL term."""
    kl_estimator: KLEstimator = "k1"
    """How the KL divergence is estimated from each token, by Schulman's names."""
    use_kl_loss: bool = False
    """Whether the KL term is added to the loss; else it is taken from each token's reward."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampling; log-probabilities are those of the same distribution."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the distribution that is sampled from, the likeliest tokens first."""


class Reinforce:
    def __init__(self, stage: Stage) -> None:
        work = stage.workload
        assert work.rollout_batch is not None
        self.stage = stage
        self.options: ReinforceOptions = stage.workload.of(ReinforceOptions)
        self.policy = stage.policy()
        self.reference = stage.reference(self.policy)
        self.reward = stage.reward()
        self.samples = work.rollout_batch
        self.train_tokens = work.rollout_batch * work.sequence_tokens
        self.generated_tokens = work.rollout_batch * work.response_tokens
        self.data_tokens = work.prompt_tokens

    def step(self, index: int) -> Metrics:
        stage, work, options = self.stage, self.stage.workload, self.options
        start, size, temperature = work.prompt_tokens, work.batch_size, self.options.temperature

        stage.phase("rollout")
        prompts = stage.data.sequences(index, self.samples, self.data_tokens)
        sampling = Sampling(temperature=temperature, top_p=options.top_p)
        model, at_a_time = self.policy.module.model, work.micro_rollout_batch_size
        with torch.no_grad(), self.policy.forward():
            tokens = generate(model, prompts, work.response_tokens, sampling, stage.device, at_a_time)

        stage.phase("score")
        with torch.no_grad():
            score = self.reward(prompts, tokens[:, start:])
            mask = torch.ones_like(tokens[:, start:], dtype=torch.float32)
            reference = self.reference.logprobs(tokens, start, temperature) if self.reference else None
            if reference is None:
                old_logprobs = torch.zeros_like(mask)
            else:
                with self.policy.forward():
                    score_batch = functools.partial(self.policy.module, start=start, temperature=temperature)
                    old = stage.device.map_alike(score_batch, tokens.split(size))
                old_logprobs = torch.cat([scores.logprobs for scores in old])
            in_reward = None if options.use_kl_loss else reference
            rewards = token_rewards(score, old_logprobs, in_reward, mask, options.kl_coef, options.kl_estimator)
            positions = stage.device.alike(range(work.response_tokens - 1, -1, -1))
            advantages = returns(rewards, mask, options.gamma, positions)
            if options.whiten_advantages:
                advantages = whiten(advantages, mask)

        losses = []
        minibatches = torch.arange(self.samples, device=tokens.device).split(size)
        for rows in stage.device.micro_batches(minibatches, work.gradient_accumulation_steps):
            stage.phase("learn")
            with self.policy.forward():
                logprobs = self.policy.module(tokens[rows], start, temperature).logprobs
                loss = policy_loss(logprobs, advantages[rows], mask[rows])
                if reference is not None and options.use_kl_loss:
                    kl = kl_estimates(logprobs, reference[rows], options.kl_estimator)
                    loss = loss + options.kl_coef * (kl * mask[rows]).sum() / mask[rows].sum()
                    del kl
                del logprobs  # all but the graph
            self.policy.backward(loss)
            losses.append(loss.detach())
        kl = torch.zeros_like(score) if reference is None else (old_logprobs - reference).sum(dim=1)
        return {"loss": torch.stack(losses).mean(), "reward": score.mean(), "kl": kl.mean()}


def returns(
    rewards: torch.Tensor, mask: torch.Tensor, gamma: float, positions: Iterable[int] | None = None
) -> torch.Tensor:
    """G_t = r_t + gamma G_{t+1} over [B, R] fp32; 0 outside the mask.

    `positions`: all of them, from the last to the first; fewer where nothing is computed.
    """
    found = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])) if positions is None else positions:
        later = (rewards[:, t] + gamma * later) * mask[:, t]
        found[:, t] = later
    return found


def policy_loss(logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Minus the mean over the mask of A log p."""
    return -(advantages * logprobs * mask).sum() / mask.sum()


REINFORCE = Algorithm(
    summary="REINFORCE, plain or with whitened returns (REINFORCE++), no value model",
    trainer=Reinforce,
    learning_rate=1e-6,
    options=ReinforceOptions,
    fields=ROLLOUT_FIELDS,
)
