"""Rewards: what a response is worth, and how that reaches its tokens.

`tokens` is a rule over token ids, which works on every device and with random weights; `model` a scalar model of a size of
its own; a hub id or a folder a sequence classifier; `module:attribute` a user's own function of (prompts, responses).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from vrambench.methods.errors import ConfigurationError, brief, printable

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


def token_rewards(
    scores: torch.Tensor, logprobs: torch.Tensor, reference: torch.Tensor | None, mask: torch.Tensor, kl_coef: float
) -> torch.Tensor:
    """Rewards [B, R] per token: -kl_coef * (logprob - reference), and the score [B] added at each response's last token.

    `mask` [B, R] is 1 on a response's tokens (a prefix of each row), 0 after it; rewards are 0 there. Without a reference
    there is no KL term. The per-token estimate is k1 of Schulman's "Approximating KL Divergence".
    """
    rewards = torch.zeros_like(logprobs) if reference is None else -kl_coef * (logprobs - reference) * mask
    last = (mask.sum(dim=1, keepdim=True) - 1).long()
    return rewards.scatter_add(1, last, scores.to(rewards.dtype)[:, None])
