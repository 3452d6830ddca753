"""REINFORCE leave-one-out (arXiv 2402.14740), as TRL's RLOOTrainer has it: each response's baseline is the mean reward of the
others to its prompt.

A step: sample `group_size` responses for each of `rollout_batch` prompts (rollout); score them with the policy as it is, the
reference and the reward, from which the KL divergence of the whole response is taken (score); then `num_iterations` passes over
them in minibatches of `batch_size`, with the ratio of whole responses' probabilities clipped (learn). Roles: policy, reference,
reward.
"""

from __future__ import annotations

import functools
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from vrambench.methods.algorithms import ROLLOUT_FIELDS, Algorithm, Metrics, Stage
from vrambench.methods.registry import Options
from vrambench.methods.rollout import Sampling, generate


class RLOOOptions(Options):
    """TRL's names and defaults (RLOOConfig)."""

    namespace: ClassVar[str] = "rloo"
    beta: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the KL term in each response's reward; with 0 there is no reference."""
    epsilon: Annotated[float, Field(gt=0)] = 0.2
    """How far the ratio of a response's probabilities may leave 1 before it is clipped."""
    epsilon_high: Annotated[float, Field(gt=0)] | None = None
    """How far it may be above 1; null is `epsilon`."""
    normalize_advantages: bool = False
    """Whether advantages are brought to mean 0 and standard deviation 1 over the rollout."""
    reward_clip_range: tuple[float, float] | None = None
    """Least and largest reward, before the KL term."""
    num_iterations: Annotated[int, Field(ge=1)] = 1
    """Passes over each rollout."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampling; log-probabilities are those of the same distribution."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the distribution that is sampled from, the likeliest tokens first."""


class LeaveOneOut:
    def __init__(self, stage: Stage) -> None:
        work = stage.workload
        assert work.rollout_batch is not None
        assert work.group_size is not None
        self.stage = stage
        self.options: RLOOOptions = stage.workload.of(RLOOOptions)
        self.policy = stage.policy()
        self.reference = stage.reference(self.policy)
        self.reward = stage.reward()
        self.prompts = work.rollout_batch
        self.group_size = work.group_size
        self.samples = work.rollout_batch * work.group_size
        self.train_tokens = self.samples * work.sequence_tokens
        self.generated_tokens = self.samples * work.response_tokens
        self.data_tokens = work.prompt_tokens

    def step(self, index: int) -> Metrics:
        stage, work, options = self.stage, self.stage.workload, self.options
        start, size, temperature = work.prompt_tokens, work.batch_size, self.options.temperature

        stage.phase("rollout")
        prompts = stage.data.sequences(index, self.prompts, self.data_tokens)
        prompts = prompts.repeat_interleave(self.group_size, dim=0)
        sampling = Sampling(temperature=temperature, top_p=options.top_p)
        model, at_a_time = self.policy.module.model, work.micro_rollout_batch_size
        with torch.no_grad(), self.policy.forward():
            tokens = generate(model, prompts, work.response_tokens, sampling, stage.device, at_a_time)

        stage.phase("score")
        with torch.no_grad():
            mask = torch.ones_like(tokens[:, start:], dtype=torch.float32)
            with self.policy.forward():
                score_batch = functools.partial(self.policy.module, start=start, temperature=temperature)
                old = stage.device.map_alike(score_batch, tokens.split(size))
            old_logprobs = torch.cat([scores.logprobs for scores in old])
            reference = self.reference.logprobs(tokens, start, temperature) if self.reference else None
            score = self.reward(prompts, tokens[:, start:])
            kl = torch.zeros_like(score) if reference is None else ((old_logprobs - reference) * mask).sum(dim=1)
            advantages = advantages_of(score, kl, self.group_size, options)
            old_sums = (old_logprobs * mask).sum(dim=1)

        losses = []
        minibatches = torch.randperm(self.samples, device=tokens.device).split(size) * options.num_iterations
        for rows in stage.device.micro_batches(minibatches, work.gradient_accumulation_steps):
            stage.phase("learn")
            with self.policy.forward():
                sums = (self.policy.module(tokens[rows], start, temperature).logprobs * mask[rows]).sum(dim=1)
                loss = policy_loss(sums, old_sums[rows], advantages[rows], options.epsilon, options.epsilon_high)
                del sums  # all but the graph
            self.policy.backward(loss)
            losses.append(loss.detach())
        return {"loss": torch.stack(losses).mean(), "reward": score.mean(), "kl": kl.mean()}


def advantages_of(score: torch.Tensor, kl: torch.Tensor, group_size: int, options: RLOOOptions) -> torch.Tensor:
    """[N], from the scores [N] and the KL divergences [N] of N responses, `group_size` to each prompt one after the other."""
    rewards = score if options.reward_clip_range is None else score.clamp(*options.reward_clip_range)
    advantages = leave_one_out(rewards - options.beta * kl, group_size)
    if options.normalize_advantages:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-4)
    return advantages


def leave_one_out(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """Advantages [N] of N responses, `group_size` to each prompt one after the other: the reward less the mean of the others'."""
    groups = rewards.view(-1, group_size)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).flatten()


def policy_loss(
    sums: torch.Tensor, old_sums: torch.Tensor, advantages: torch.Tensor, low: float, high: float | None
) -> torch.Tensor:
    """Minus the mean of min(rho A, clip(rho, 1 - low, 1 + high) A) over responses [B], rho = exp(new - old) of whole responses'
    log-probabilities."""
    ratio = (sums - old_sums).exp()
    clipped = ratio.clamp(1 - low, 1 + (low if high is None else high))
    return -torch.min(ratio * advantages, clipped * advantages).mean()


RLOO = Algorithm(
    summary="REINFORCE with the other responses' mean reward as baseline (leave one out)",
    trainer=LeaveOneOut,
    learning_rate=1e-6,
    group_size=2,
    uses_reference=lambda workload: "optional" if workload.of(RLOOOptions).beta else "unused",
    options=RLOOOptions,
    fields=(*ROLLOUT_FIELDS, "group_size"),
)
