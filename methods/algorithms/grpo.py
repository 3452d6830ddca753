"""Group relative policy optimisation (arXiv 2402.03300), as TRL's GRPOTrainer has it, with the losses of DAPO (2503.14476),
Dr. GRPO (2503.20783) and GSPO (2507.18071).

A step: sample `group_size` responses for each of `rollout_batch` prompts (rollout); score each against the others to its prompt
(score); then `num_iterations` passes over them in minibatches of `batch_size` (learn). Log-probabilities of before are computed
only where there is more than one optimizer step to a rollout: until the first one, they are those of the policy itself. Roles:
policy, reward, and with `beta` the reference.
"""

from __future__ import annotations

import functools
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field

from vrambench.methods.algorithms import ROLLOUT_FIELDS, Algorithm, Metrics, Stage
from vrambench.methods.registry import Options
from vrambench.methods.rewards import kl_estimates
from vrambench.methods.rollout import Sampling, generate


class GRPOOptions(Options):
    """TRL's names and defaults (GRPOConfig)."""

    namespace: ClassVar[str] = "grpo"
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = "dapo"
    """What a token's loss is divided by: the tokens of the optimizer step (dapo), of its response (grpo), the longest response's
    (dr_grpo), those of its minibatch (bnpo)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """By which standard deviation advantages are divided: the group's, that of the whole rollout, or none (Dr. GRPO)."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL term in the loss; with 0 there is no reference."""
    use_bias_correction_kl: bool = True
    """Whether the KL term is weighted with the ratio of probabilities, as in DeepSeek-V3.2."""
    epsilon: Annotated[float, Field(gt=0)] = 0.2
    """How far the ratio of probabilities may leave 1 before it is clipped."""
    epsilon_high: Annotated[float, Field(gt=0)] | None = None
    """How far it may be above 1; null is `epsilon`."""
    delta: Annotated[float, Field(gt=1)] | None = None
    """The largest ratio, of advantages below 0 too; null has no such bound."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Whether the ratio is each token's, or the geometric mean of its response's (GSPO)."""
    num_iterations: Annotated[int, Field(ge=1)] = 1
    """Passes over each rollout."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampling; log-probabilities are those of the same distribution."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the distribution that is sampled from, the likeliest tokens first."""


class Rollout(NamedTuple):
    """N responses: `tokens` [N, T], prompts too; `advantages` [N]; [N, R]: `mask`, and log-probabilities of before, None where they
    are the policy's own, and of the reference, None without one. `items`: see `mean_loss`."""

    tokens: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    old_logprobs: torch.Tensor | None
    reference: torch.Tensor | None
    items: torch.Tensor


class GroupRelative:
    def __init__(self, stage: Stage) -> None:
        work = stage.workload
        assert work.rollout_batch is not None
        assert work.group_size is not None
        self.stage = stage
        self.options: GRPOOptions = stage.workload.of(GRPOOptions)
        self.policy = stage.policy()
        self.reference = stage.reference(self.policy)
        self.reward = stage.reward()
        self.prompts = work.rollout_batch
        self.group_size = work.group_size
        self.samples = work.rollout_batch * work.group_size
        self.train_tokens = self.samples * work.sequence_tokens
        self.generated_tokens = self.samples * work.response_tokens
        self.data_tokens = work.prompt_tokens

    @property
    def one_update(self) -> bool:
        """Whether a rollout is one optimizer step, so that all of it is trained on as it was sampled."""
        work = self.stage.workload
        return self.samples * self.options.num_iterations == work.batch_size * work.gradient_accumulation_steps

    def step(self, index: int) -> Metrics:
        stage, work, options = self.stage, self.stage.workload, self.options
        start, size, temperature = work.prompt_tokens, work.batch_size, options.temperature

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
            old_logprobs = None if self.one_update else self.logprobs(tokens)
            reference = self.reference.logprobs(tokens, start, temperature) if self.reference else None
            score = self.reward(prompts, tokens[:, start:])
            advantages = group_advantages(score, self.group_size, options.scale_rewards)
            items = mask.sum() * (size / self.samples)
            rollout = Rollout(tokens, advantages, mask, old_logprobs, reference, items)

        losses, kls = [], []
        minibatches = torch.randperm(self.samples, device=tokens.device).split(size) * options.num_iterations
        for rows in stage.device.micro_batches(minibatches, work.gradient_accumulation_steps):
            stage.phase("learn")
            loss, kl = self.loss(rollout, rows)
            self.policy.backward(loss)
            losses.append(loss.detach())
            if kl is not None:
                kls.append(kl)
        mean_kl = torch.stack(kls).mean() if kls else torch.zeros_like(score.mean())
        return {"loss": torch.stack(losses).mean(), "reward": score.mean(), "kl": mean_kl}

    def loss(self, rollout: Rollout, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Of the minibatch `rows`, and its KL divergence from the reference, if there is one. Only its graph holds what it made."""
        start, options = self.stage.workload.prompt_tokens, self.options
        tokens, advantages, mask, old_logprobs, reference, items = rollout
        with self.policy.forward():
            logprobs = self.policy.module(tokens[rows], start, options.temperature).logprobs
            old = logprobs.detach() if old_logprobs is None else old_logprobs[rows]
            base = None if reference is None else reference[rows]
            parts = token_losses(logprobs, old, advantages[rows], base, mask[rows], options)
            loss = mean_loss(parts, mask[rows], options.loss_type, items)
        return loss, None if base is None else (logprobs.detach() - base).sum(dim=1).mean()

    def logprobs(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of the responses [N, R], before any update."""
        stage, start = self.stage, self.stage.workload.prompt_tokens
        with self.policy.forward():
            score_batch = functools.partial(self.policy.module, start=start, temperature=self.options.temperature)
            scored = stage.device.map_alike(score_batch, tokens.split(stage.workload.batch_size))
        return torch.cat([scores.logprobs for scores in scored])


def group_advantages(score: torch.Tensor, group_size: int, scale: str, eps: float = 1e-4) -> torch.Tensor:
    """Advantages [N] of N responses, `group_size` to each prompt one after the other: (score - the group's mean) / (std + eps). The
    standard deviation, unbiased, is that of the `group`, of the whole `batch`, or there is `none`."""
    groups = score.view(-1, group_size)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if scale == "group":
        advantages = advantages / (groups.std(dim=1, keepdim=True) + eps)
    elif scale == "batch":
        advantages = advantages / (score.std() + eps)
    return advantages.flatten()


def token_losses(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    reference: torch.Tensor | None,
    mask: torch.Tensor,
    options: GRPOOptions,
) -> torch.Tensor:
    """[B, R], from log-probabilities [B, R] and advantages [B]: -min(rho A, clip(rho, 1 - eps, 1 + eps_high) A), rho at most
    `delta`, and beta times k3 of the KL divergence from the reference. Of whole responses' ratios [B, 1], where beta is 0."""
    difference = logprobs - old
    if options.importance_sampling_level == "sequence":
        difference = ((difference * mask).sum(dim=1) / mask.sum(dim=1)).unsqueeze(1)
    weight = ratio = difference.exp()
    high = options.epsilon if options.epsilon_high is None else options.epsilon_high
    clipped = ratio.clamp(1 - options.epsilon, 1 + high)
    if options.delta is not None:
        ratio = ratio.clamp(max=options.delta)
    losses = -torch.min(ratio * advantages[:, None], clipped * advantages[:, None])
    if reference is None or not options.beta:
        return losses
    kl = kl_estimates(logprobs, reference, "k3")
    return losses + options.beta * (kl * weight if options.use_bias_correction_kl else kl)


def mean_loss(losses: torch.Tensor, mask: torch.Tensor, kind: str, items: torch.Tensor | float) -> torch.Tensor:
    """One number from `losses` [B, R] or [B, 1]. `items`: how many tokens a minibatch of the rollout has in the mean."""
    losses = losses * mask
    if kind == "grpo":
        return (losses.sum(dim=1) / mask.sum(dim=1)).mean()
    if kind == "bnpo":
        return losses.sum() / mask.sum()
    return losses.sum() / (mask.numel() if kind == "dr_grpo" else items)


GRPO = Algorithm(
    summary="advantages from the other responses to the same prompt, no value model (DAPO, Dr. GRPO and GSPO too)",
    trainer=GroupRelative,
    learning_rate=1e-6,
    group_size=8,
    uses_reference=lambda workload: "optional" if workload.of(GRPOOptions).beta else "unused",
    options=GRPOOptions,
    fields=(*ROLLOUT_FIELDS, "group_size"),
)
