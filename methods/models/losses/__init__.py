"""How a policy's loss comes from hidden states: for which positions logits are made, in which type, and what is kept of them.

LOSSES["nll"].mean(model, Inputs(tokens))               the mean cross-entropy of all tokens but the first, to train on
LOSSES["nll"].logprobs                                   log-probabilities of a response's tokens, for algorithms that need those

Every value gives the same numbers, but for rounding. They differ in memory and time alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import nn

from vrambench.methods.models.losses import chunked, cut, fused, pieces, scored, selective, whole
from vrambench.methods.models.parts import Inputs

MeanLoss: TypeAlias = Callable[[nn.Module, Inputs], torch.Tensor]
Prepare: TypeAlias = Callable[[nn.Module, torch.Tensor, int], torch.Tensor]
LogProbs: TypeAlias = Callable[[nn.Module, torch.Tensor, torch.Tensor, int, float], torch.Tensor]
Plain: TypeAlias = Callable[[nn.Module, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Log-probabilities [B, R] fp32 of tokens[:, start:] in two parts, between which a value head has its turn.

    `prepare(model, states, start)`: from hidden states [B, T, hidden], the logits; or the states themselves, where logits are made
    later. `logprobs(model, prepared, tokens, start, temperature)`: the log-probabilities. `keeps`: whether what was prepared
    stays as long as the scores do. `frees`: whether hidden states are let go of before log-probabilities are computed.
    `plain(model, tokens, start)`: where there is no temperature and no value head, the log-probabilities, and the logits that are
    kept as long as they are; None where that is done as with a temperature of 1.
    """

    prepare: Prepare
    logprobs: LogProbs
    keeps: bool = False
    frees: bool = False
    plain: Plain | None = None


@dataclass(frozen=True, kw_only=True)
class Loss:
    """`mean(model, inputs)`: the mean cross-entropy of labels[:, 1:] that are learnt, for inputs [B, T]. `scorer`: how
    log-probabilities are computed; None where there are none, and then `why_none` says why. `cuda_only`: it cannot run on the
    CPU, with the reason. `package`: what has to be installed for it, beside torch and transformers; `module`: what that is
    imported as."""

    mean: MeanLoss
    scorer: Scorer | None = None
    why_none: str = ""
    cuda_only: str | None = None
    package: str | None = None
    module: str = ""


ON_LABELS = "it is a form of the loss on labels alone"
LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "scored": Loss(mean=scored.mean, scorer=Scorer(prepare=scored.logits, logprobs=scored.logprobs)),
        "nll": Loss(
            mean=whole.mean, scorer=Scorer(prepare=whole.logits, logprobs=whole.logprobs, keeps=True, plain=whole.plain)
        ),
        "nll_4_46": Loss(mean=whole.mean_4_46, why_none=ON_LABELS),
        "nll_4_45": Loss(mean=whole.mean_4_45, why_none=ON_LABELS),
        "selective": Loss(
            mean=selective.mean, scorer=Scorer(prepare=selective.logits, logprobs=selective.logprobs, frees=True)
        ),
        "chunked_nll": Loss(mean=chunked.mean, scorer=Scorer(prepare=chunked.states, logprobs=chunked.logprobs)),
        "linear_cross_entropy": Loss(mean=pieces.mean, why_none=ON_LABELS),
        "chunked_output": Loss(mean=pieces.mean_of_outputs, why_none=ON_LABELS),
        "liger": Loss(
            mean=fused.mean,
            why_none="Liger's fused kernel gives one sum over all tokens, and no token's log-probability",
            cuda_only="Liger's kernels are Triton's, for GPUs",
            package="liger-kernel",
            module="liger_kernel",
        ),
        "cut_cross_entropy": Loss(
            mean=cut.mean,
            why_none="its kernels are used for the loss on labels alone",
            cuda_only="its kernels are Triton's, for GPUs",
            package="cut-cross-entropy",
            module="cut_cross_entropy",
        ),
    }
)
"""By the workload's field `loss`."""
