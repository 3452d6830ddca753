"""Proximal policy optimisation for language models (arXiv 1707.06347, 2203.02155), with TRL's defaults.

A step: sample one response for each of `rollout_batch` prompts (rollout); score it with the policy as it is, the reference, the
value model and the reward (score); then `epochs` passes over the batch in minibatches of `batch_size` (learn). Roles: policy,
reference, value (a head on the policy's trunk, or a separate model with its own optimizer), reward.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field

from vrambench.methods.algorithms import ROLLOUT_FIELDS, Algorithm, Metrics, Stage
from vrambench.methods.models.policy import Scores
from vrambench.methods.registry import Options
from vrambench.methods.rewards import KLEstimator, kl_estimates, token_rewards, whiten
from vrambench.methods.rollout import Sampling, generate


class PPOOptions(Options):
    """TRL's names and defaults (PPOConfig), `epochs` for its num_ppo_epochs."""

    namespace: ClassVar[str] = "ppo"
    epochs: Annotated[int, Field(ge=1)] = 4
    """Passes over each rollout."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the KL term."""
    kl_estimator: KLEstimator = "k1"
    """How the KL divergence is estimated from each token, by Schulman's names."""
    use_kl_loss: bool = False
    """Whether the KL term is added to the loss, as verl can; else it is taken from each token's reward."""
    whiten_rewards: bool = False
    """Whether rewards are brought to unit variance over the rollout."""
    cliprange: Annotated[float, Field(gt=0)] = 0.2
    """How far the ratio of probabilities may leave 1 before it is clipped."""
    clip_ratio_c: Annotated[float, Field(gt=1)] | None = None
    """Dual clip (arXiv 1912.09729): of advantages below 0, the largest ratio. verl's name; 3.0 there, null does not clip."""
    cliprange_value: Annotated[float, Field(gt=0)] = 0.2
    """How far a value may leave its old one before it is clipped."""
    vf_coef: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the value loss."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount of rewards from token to token."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Lambda of generalised advantage estimation."""
    temperature: Annotated[float, Field(gt=0)] = 0.7
    """Of sampling; log-probabilities are those of the same distribution."""


class Experience(NamedTuple):
    """What a step learns from: `tokens` [B, T] int64; [B, R] fp32 the rest, of the policy before any update and, of the reference,
    log-probabilities."""

    tokens: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    reference: torch.Tensor | None


class ProximalPolicyOptimisation:
    def __init__(self, stage: Stage) -> None:
        work = stage.workload
        assert work.rollout_batch is not None
        self.stage = stage
        self.options: PPOOptions = stage.workload.of(PPOOptions)
        self.policy = stage.policy(value_head=work.value == "head")
        self.reference = stage.reference(self.policy)
        self.critic = None if work.value == "head" else stage.critic()
        self.reward = stage.reward()
        self.samples = work.rollout_batch
        self.train_tokens = work.rollout_batch * work.sequence_tokens
        self.generated_tokens = work.rollout_batch * work.response_tokens
        self.data_tokens = work.prompt_tokens

    def step(self, index: int) -> Metrics:
        """`loss` is the policy's and `vf_coef` times the value's, wherever the value comes from."""
        stage, work, options = self.stage, self.stage.workload, self.options
        start = work.prompt_tokens

        stage.phase("rollout")
        prompts = stage.data.sequences(index, self.samples, self.data_tokens)
        model, at_a_time = self.policy.module.model, work.micro_rollout_batch_size
        with torch.no_grad(), self.policy.forward():
            sampling = Sampling(temperature=options.temperature)
            tokens = generate(model, prompts, work.response_tokens, sampling, stage.device, at_a_time)

        stage.phase("score")
        with torch.no_grad():
            score = self.reward(prompts, tokens[:, start:])
            old = stage.device.map_alike(self.evaluate, tokens.split(work.batch_size))
            old_logprobs = torch.cat([scores.logprobs for scores in old])
            old_values = torch.cat([scores.values for scores in old if scores.values is not None])
            reference = self.reference.logprobs(tokens, start, options.temperature) if self.reference else None
            mask = torch.ones_like(old_logprobs)
            in_reward = None if options.use_kl_loss else reference
            rewards = token_rewards(score, old_logprobs, in_reward, mask, options.kl_coef, options.kl_estimator)
            if options.whiten_rewards:
                rewards = whiten(rewards, mask, shift_mean=False)
            positions = stage.device.alike(range(work.response_tokens - 1, -1, -1))
            raw, returns = gae(rewards, old_values, mask, options.gamma, options.lam, positions)
            advantages = whiten(raw, mask)

        had = Experience(tokens, mask, old_logprobs, old_values, advantages, returns, reference)
        losses = []
        epochs = [torch.randperm(self.samples, device=tokens.device) for _ in range(options.epochs)]
        minibatches = [rows for epoch in epochs for rows in epoch.split(work.batch_size)]
        for number, rows in enumerate(stage.device.micro_batches(minibatches, work.gradient_accumulation_steps), 1):
            stage.phase("learn")
            with self.policy.forward():
                loss, logits = self._policy_loss(had, rows)
            self.policy.backward(loss)
            losses.append(loss.detach())
            if number % stage.device.passes(work.gradient_accumulation_steps) == 0:
                del logits  # after each optimizer step, as TRL's trainer
            if self.critic is not None:
                stage.phase("learn")
                with self.critic.forward():
                    loss = options.vf_coef * self._value_loss(had, rows, self.critic.module(tokens[rows], start))
                self.critic.backward(loss)
                losses[-1] = losses[-1] + loss.detach()
        kl = torch.zeros_like(score) if reference is None else (old_logprobs - reference).sum(dim=1)
        return {"loss": torch.stack(losses).mean(), "reward": score.mean(), "kl": kl.mean()}

    def _policy_loss(self, had: Experience, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Of a minibatch, with the value's where the policy has its head; and the logits, which TRL's trainer holds on to. Of all
        else the graph alone is left."""
        options = self.options
        new = self.policy.module(had.tokens[rows], self.stage.workload.prompt_tokens, options.temperature)
        clips = options.cliprange, options.clip_ratio_c
        loss = policy_loss(new.logprobs, had.logprobs[rows], had.advantages[rows], had.mask[rows], *clips)
        if had.reference is not None and options.use_kl_loss:
            kl = kl_estimates(new.logprobs, had.reference[rows], options.kl_estimator)
            loss = loss + options.kl_coef * (kl * had.mask[rows]).sum() / had.mask[rows].sum()
        if new.values is not None:
            loss = loss + options.vf_coef * self._value_loss(had, rows, new.values)
        return loss, new.logits

    def _value_loss(self, had: Experience, rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        old, returns, mask = had.values[rows], had.returns[rows], had.mask[rows]
        return value_loss(values, old, returns, mask, self.options.cliprange_value)

    def evaluate(self, batch: torch.Tensor) -> Scores:
        """The policy's log-probabilities and the values, before any update."""
        start = self.stage.workload.prompt_tokens
        with self.policy.forward():
            scores: Scores = self.policy.module(batch, start, self.options.temperature)
        if self.critic is None:
            return scores
        with self.critic.forward():
            return Scores(scores.logprobs, self.critic.module(batch, start))


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    gamma: float,
    lam: float,
    positions: Iterable[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438) over [B, R] fp32: advantages before whitening, and returns.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  returns = A + V. All zero outside the mask.
    `positions`: all of them, from the last to the first; fewer where nothing is computed.
    """
    values = values * mask
    advantages = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(later)
    for t in reversed(range(rewards.shape[1])) if positions is None else positions:
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        later = (delta + gamma * lam * later) * mask[:, t]
        advantages[:, t] = later
        next_value = values[:, t]
    return advantages, (advantages + values) * mask


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    cliprange: float,
    dual: float | None = None,
) -> torch.Tensor:
    """The clipped objective: mean over the mask of max(-A rho, -A clip(rho, 1 - eps, 1 + eps)), rho = exp(new - old). With `dual`,
    it is at most -A dual where A is below 0."""
    ratio = ((logprobs - old_logprobs) * mask).exp()
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange))
    if dual is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * dual), losses)
    return (losses * mask).sum() / mask.sum()


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, cliprange: float
) -> torch.Tensor:
    """Half the mean over the mask of max((v - R)^2, (clip(v, v_old +- eps) - R)^2)."""
    clipped = values.clamp(old_values - cliprange, old_values + cliprange)
    losses = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * (losses * mask).sum() / mask.sum()


PPO = Algorithm(
    summary="proximal policy optimisation, with a value model",
    trainer=ProximalPolicyOptimisation,
    learning_rate=3e-6,
    options=PPOOptions,
    fields=(*ROLLOUT_FIELDS, "value"),
)
