"""Rewards: what a response is worth, and how that reaches its tokens.

`tokens` is a rule over token ids, which works on every device and with random weights; `model` a scalar model of a size of
its own; a hub id or a folder a sequence classifier; `module:attribute` a user's own function of (prompts, responses).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch

from vrambench.methods.errors import ConfigurationError, brief, printable

KLEstimator = Literal["k1", "k2", "k3"]

Reward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of prompts [B, P] and responses [B, R], both int64, the scores [B] fp32."""


def token_rule(vocabulary: int) -> Reward:
    """The share of a response's tokens whose id lies in the first quarter of the vocabulary: about 0.25 for a random policy."""
    limit = max(1, vocabulary // 4)

    def score(prompts: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        return (responses < limit).float().mean(dim=1)

    return score


class RewardError(RuntimeError):
    """A user's reward failed: its name, and what it raised or gave. What it raised is the cause."""


def checked(function: Reward, name: str) -> Reward:
    """`function`, a user's own, held to what it must give: ConfigurationError where that is not one score for each
    response, RewardError where it raises, wants to end the process, or gives what is not finite.

    To see that, the scores are waited for: once in a step, and only with a user's own function.
    """

    def score(prompts: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        try:
            scores = function(prompts, responses)
        except ConfigurationError:
            raise
        except (Exception, SystemExit) as error:
            text = brief(printable((str(error).splitlines() or [""])[0]), 300)
            raised = type(error).__name__ + (f": {text}" if text else "")
            raise RewardError(f"reward {name!r} raised {raised}") from error
        if not isinstance(scores, torch.Tensor) or scores.shape != (len(responses),):
            kind = (
                f"a tensor {list(scores.shape)}" if isinstance(scores, torch.Tensor) else f"a {type(scores).__name__}"
            )
            raise ConfigurationError(
                f"reward: {name!r} gave {kind}, not a tensor [{len(responses)}] with one score for each response",
                field="reward",
            )
        scores = scores.float()
        mean = scores.detach().mean()  # not finite as soon as one score is not
        if mean.device.type != "meta" and not math.isfinite(mean):
            if bool(torch.isfinite(scores).all()):
                raise RewardError(
                    f"reward {name!r} gave finite scores that are too large: their mean is not finite in fp32"
                )
            raise RewardError(f"reward {name!r} gave a score that is not a finite number in fp32")
        return scores

    return score


def kl_estimates(logprobs: torch.Tensor, reference: torch.Tensor, estimator: KLEstimator = "k1") -> torch.Tensor:
    """Of the KL divergence from the reference, per token [B, R]; Schulman's "Approximating KL Divergence", with r = ref - logprob:
    k1 = -r, k2 = r^2 / 2, k3 = exp(r) - 1 - r."""
    if estimator == "k1":
        return logprobs - reference
    difference = reference - logprobs
    return difference.square() / 2 if estimator == "k2" else difference.exp() - 1 - difference


def token_rewards(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    reference: torch.Tensor | None,
    mask: torch.Tensor,
    kl_coef: float,
    estimator: KLEstimator = "k1",
) -> torch.Tensor:
    """Rewards [B, R] per token: -kl_coef times the estimate of its KL, and the score [B] added at each response's last token.

    `mask` [B, R] is 1 on a response's tokens (a prefix of each row), 0 after it; rewards are 0 there. Without a reference
    there is no KL term.
    """
    kl = None if reference is None else kl_estimates(logprobs, reference, estimator)
    rewards = torch.zeros_like(logprobs) if kl is None else -kl_coef * kl * mask
    last = (mask.sum(dim=1, keepdim=True) - 1).long()
    return rewards.scatter_add(1, last, scores.to(rewards.dtype)[:, None])


def whiten(values: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Unit variance (unbiased, eps 1e-8) and, with `shift_mean`, zero mean over the mask, 0 outside it, as TRL's masked_whiten."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / (count - 1)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8) * mask
    return whitened if shift_mean else (whitened + mean) * mask
