"""ReMax (arXiv 2310.10505): REINFORCE whose baseline is the score of the policy's own greedy response.

A step: sample one response for each of `rollout_batch` prompts and decode one greedily (rollout); score both (score); then one pass
over the sampled responses in minibatches of `batch_size` (learn). There is no value model. Roles: policy, reference, reward.
"""

from __future__ import annotations

import functools
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from vrambench.methods.algorithms import ROLLOUT_FIELDS, Algorithm, Metrics, Stage
from vrambench.methods.registry import Options
from vrambench.methods.rewards import KLEstimator, kl_estimates, token_rewards, whiten
from vrambench.methods.rollout import GREEDY, Sampling, generate


class ReMaxOptions(Options):
    """Two published forms of one method."""

    namespace: ClassVar[str] = "remax"
    advantage: Literal["verl", "repository"] = "verl"
    """verl's form (token rewards summed to the end, less the baseline) or the authors' repository's (the discounted difference of
    scores, with each token's own KL term alone)."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the KL term."""
    kl_estimator: KLEstimator = "k1"
    """How the KL divergence is estimated from each token, by Schulman's names."""
    use_kl_loss: bool = False
    """Whether the KL term is added to the loss; else it is taken from each token's reward."""
    whiten_advantages: bool = False
    """Whether advantages are whitened over the rollout."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Discount of the score from token to token, in the repository's form only."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Of sampling; log-probabilities are those of the same distribution."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the distribution that is sampled from, the likeliest tokens first."""


class ReMax:
    def __init__(self, stage: Stage) -> None:
        work = stage.workload
        assert work.rollout_batch is not None
        self.stage = stage
        self.options: ReMaxOptions = stage.workload.of(ReMaxOptions)
        self.policy = stage.policy()
        self.reference = stage.reference(self.policy)
        self.reward = stage.reward()
        self.samples = work.rollout_batch
        self.train_tokens = work.rollout_batch * work.sequence_tokens
        self.generated_tokens = 2 * work.rollout_batch * work.response_tokens
        self.data_tokens = work.prompt_tokens

    def step(self, index: int) -> Metrics:
        stage, work, options = self.stage, self.stage.workload, self.options
        start, size = work.prompt_tokens, work.batch_size

        stage.phase("rollout")
        prompts = stage.data.sequences(index, self.samples, self.data_tokens)
        temperature = options.temperature
        sampling = Sampling(temperature=temperature, top_p=options.top_p)
        model, at_a_time = self.policy.module.model, work.micro_rollout_batch_size
        with torch.no_grad(), self.policy.forward():
            tokens = generate(model, prompts, work.response_tokens, sampling, stage.device, at_a_time)
            greedy = generate(model, prompts, work.response_tokens, GREEDY, stage.device, at_a_time)

        stage.phase("score")
        with torch.no_grad():
            score = self.reward(prompts, tokens[:, start:])
            baseline = self.reward(prompts, greedy[:, start:])
            mask = torch.ones_like(tokens[:, start:], dtype=torch.float32)
            reference = self.reference.logprobs(tokens, start, temperature) if self.reference else None
            if reference is None:
                old_logprobs = torch.zeros_like(mask)
            else:
                with self.policy.forward():
                    score_batch = functools.partial(self.policy.module, start=start, temperature=temperature)
                    old = stage.device.map_alike(score_batch, tokens.split(size))
                old_logprobs = torch.cat([scores.logprobs for scores in old])
            in_reward, in_loss = (None, reference) if options.use_kl_loss else (reference, None)
            if options.advantage == "verl":
                rewards = token_rewards(score, old_logprobs, in_reward, mask, options.kl_coef, options.kl_estimator)
                advantages = verl_advantages(rewards, baseline, mask)
            else:
                estimator = options.kl_estimator
                kl = torch.zeros_like(mask) if in_reward is None else kl_estimates(old_logprobs, in_reward, estimator)
                advantages = repository_advantages(score - baseline, kl, mask, options.kl_coef, options.gamma)
            if options.whiten_advantages:
                advantages = whiten(advantages, mask)

        losses = []
        bases = [None] * len(tokens.split(size)) if in_loss is None else in_loss.split(size)
        minibatches = list(zip(tokens.split(size), advantages.split(size), mask.split(size), bases, strict=True))
        for minibatch in stage.device.micro_batches(minibatches, work.gradient_accumulation_steps):
            stage.phase("learn")
            with self.policy.forward():
                loss = self.loss(*minibatch)
            self.policy.backward(loss)
            losses.append(loss.detach())
        kl = torch.zeros_like(score) if reference is None else (old_logprobs - reference).sum(dim=1)
        return {"loss": torch.stack(losses).mean(), "reward": score.mean(), "kl": kl.mean()}

    def loss(
        self, tokens: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, reference: torch.Tensor | None
    ) -> torch.Tensor:
        """Of a minibatch; with the KL term, where the reference's log-probabilities are given."""
        options, start = self.options, self.stage.workload.prompt_tokens
        logprobs = self.policy.module(tokens, start, options.temperature).logprobs
        loss = policy_loss(logprobs, advantages, mask)
        if reference is None:
            return loss
        kl = kl_estimates(logprobs, reference, options.kl_estimator)
        return loss + options.kl_coef * (kl * mask).sum() / mask.sum()


def verl_advantages(rewards: torch.Tensor, baseline: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, R]: the sum of this and all later token rewards [B, R], less the greedy response's score [B] (verl, gamma 1)."""
    later = (rewards * mask).flip(1).cumsum(1).flip(1)
    return (later - baseline[:, None]) * mask


def repository_advantages(
    advantage: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, kl_coef: float, gamma: float
) -> torch.Tensor:
    """[B, R]: gamma^k (score - baseline) - kl_coef kl_t, with k = 1 at a response's last token (the authors' repository).

    `advantage` [B] is the sampled response's score less the greedy one's, `kl` [B, R] the log-probability less the reference's.
    """
    distance = mask.flip(1).cumsum(1).flip(1)
    return (gamma**distance * advantage[:, None] - kl_coef * kl) * mask


def policy_loss(logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Minus the mean over the mask of A log p."""
    return -(advantages * logprobs * mask).sum() / mask.sum()


REMAX = Algorithm(
    summary="REINFORCE with the greedy response's score as baseline, no value model",
    trainer=ReMax,
    learning_rate=1e-6,
    options=ReMaxOptions,
    fields=ROLLOUT_FIELDS,
)
