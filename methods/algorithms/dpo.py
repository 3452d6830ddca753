"""Direct preference optimisation (arXiv 2305.18290) and its kin, with TRL's names and defaults.

A step is one optimizer step: `gradient_accumulation_steps` micro-batches of `batch_size` pairs, each a prompt with a chosen and a
rejected response. The loss wants the chosen response to have gained more on the reference than the rejected one has. As in TRL both
halves go through the policy at once, and the reference follows while the policy's graph is held. Roles: policy, reference.

Losses are those of trl 1.12, trainer/dpo_trainer.py (_compute_loss); without a reference, of experimental/cpo (cpo_loss) and
experimental/orpo (odds_ratio_loss).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch.nn import functional as F

from vrambench.methods.algorithms import REFERENCE_FIELDS, Algorithm, Metrics, ReferenceUse, Stage
from vrambench.methods.data import EVALUATION, Pairs
from vrambench.methods.evaluation import Predicted, evaluate
from vrambench.methods.models.losses import whole
from vrambench.methods.models.policy import Scores
from vrambench.methods.registry import Options
from vrambench.methods.workload import Workload

REFERENCE_FREE = ("cpo", "simpo", "orpo")
SMOOTHED = ("sigmoid", "robust", "exo_pair", "cpo", "simpo")
"""Losses that label_smoothing changes."""


class DPOOptions(Options):
    """TRL's names and defaults (DPOConfig; simpo_gamma and cpo_alpha of CPOConfig)."""

    namespace: ClassVar[str] = "dpo"
    loss_type: Literal[
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
        "sigmoid_norm", "cpo", "simpo", "orpo",
    ] = "sigmoid"  # fmt: skip
    """What is made of the two responses' log-probabilities. `cpo`, `simpo` and `orpo` compare with no reference."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How closely the policy stays to the reference: the factor of log-probabilities that are compared."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """How likely a pair's responses are the wrong way round, in the losses sigmoid, robust, exo_pair, cpo and simpo."""
    simpo_gamma: Annotated[float, Field(ge=0)] = 0.5
    """In simpo, by how much the chosen response must be ahead."""
    cpo_alpha: Annotated[float, Field(ge=0)] = 1.0
    """In cpo and simpo, the weight of the chosen response's cross-entropy; simpo's own paper has 0."""
    concatenated: bool = True
    """Whether both halves of a batch go through the model at once; else the rejected after the chosen."""

    @model_validator(mode="after")
    def _smooths(self) -> DPOOptions:
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            raise ValueError(
                f"label_smoothing changes {', '.join(SMOOTHED)}, and loss_type is {self.loss_type}: take 0, not "
                f"{self.label_smoothing:g}"
            )
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss_type exo_pair needs a label_smoothing above 0; its paper has 1e-3")
        return self


class Compared(NamedTuple):
    """Of N pairs, each [N] fp32: `chosen` and `rejected`, log-probabilities of whole responses, less the reference's where there is
    one; `chosen_tokens` and `rejected_tokens`, how many they are sums of."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor

    @property
    def ahead(self) -> torch.Tensor:
        """By how much the chosen response is ahead."""
        return self.chosen - self.rejected

    @property
    def means(self) -> Compared:
        """The same per token."""
        chosen, rejected = self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens
        return self._replace(chosen=chosen, rejected=rejected)


class DirectPreferenceOptimisation:
    def __init__(self, stage: Stage) -> None:
        work = stage.workload
        self.stage = stage
        self.options: DPOOptions = work.of(DPOOptions)
        self.policy = stage.policy()
        self.reference = stage.reference(self.policy)
        self.samples = 2 * work.batch_size * work.gradient_accumulation_steps
        self.train_tokens = self.samples * work.sequence_tokens
        self.generated_tokens = 0
        self.data_tokens = work.sequence_tokens
        self.precomputed = self._precomputed() if work.reference == "precomputed" else {}

    def step(self, index: int) -> Metrics:
        stage, work = self.stage, self.stage.workload
        stage.phase("learn")
        batches = self._batches(index, self.samples // 2, work.batch_size)
        steps = []
        for pairs, known in stage.device.micro_batches(batches, work.gradient_accumulation_steps):
            stage.phase("learn")
            metrics = self._metrics(pairs, known)
            self.policy.backward(metrics["loss"])
            steps.append({name: value.detach() for name, value in metrics.items()})
        return {name: torch.stack([step[name] for step in steps]).mean() for name in steps[0]}

    def evaluate(self) -> Metrics:
        """The loss over `max_eval_samples` pairs that are not trained on."""
        stage, work = self.stage, self.stage.workload
        assert work.eval_batch_size is not None
        assert work.max_eval_samples is not None
        batches = stage.device.alike(self._batches(EVALUATION, work.max_eval_samples, work.eval_batch_size))
        with torch.no_grad():
            loss = evaluate(
                self.policy.module,
                batches,
                lambda batch: Predicted(self._metrics(*batch)["loss"]),
                None,
                stage.device,
                rows=lambda batch: len(batch[0].tokens) // 2,
            )
        return {"eval_loss": loss}

    def _batches(self, index: int, count: int, size: int) -> list[tuple[Pairs, torch.Tensor | None]]:
        """`count` pairs of a step, `size` at a time, and what was precomputed of each; then steps beyond the workload's have the
        pairs of its first ones again, as in another epoch."""
        device, work = self.stage.device, self.stage.workload
        if not self.precomputed:
            return [(pairs, None) for pairs in self.stage.data.pairs(index, count).split(size)]
        index = index if index == EVALUATION else index % (work.warmup_steps + work.steps)
        known = self.precomputed[index if not device.simulated or index in self.precomputed else 0]
        return list(zip(self.stage.data.pairs(index, count).split(size), known, strict=True))

    def _precomputed(self) -> dict[int, list[torch.Tensor]]:
        """The reference's log-probabilities [2N] of each batch of every step, and of the evaluation, before anything is trained; on
        the simulated device of the first step alone, and of the evaluation."""
        stage, work = self.stage, self.stage.workload
        stage.phase("precompute")
        steps = 1 if stage.device.simulated else work.warmup_steps + work.steps
        asked = [(step, self.samples // 2, work.batch_size) for step in range(steps)]
        if work.eval_batch_size is not None:
            asked.append((EVALUATION, work.max_eval_samples or 0, work.eval_batch_size))
        found = {}
        for index, count, size in asked:
            batches = stage.data.pairs(index, count).split(size)
            found[index] = stage.device.map_alike(
                lambda pairs: response_sums(self._of_reference(pairs), pairs), batches
            )
        return found

    def _of_reference(self, pairs: Pairs) -> Scores:
        assert self.reference is not None
        reference = self.reference
        with torch.no_grad():
            return self._by_halves(reference.scores, pairs.tokens)

    def _by_halves(self, score: Callable[[torch.Tensor, int], Scores], tokens: torch.Tensor) -> Scores:
        """Scores of responses, in orpo of prompts too, by one forward pass or two."""
        start = 1 if self.options.loss_type == "orpo" else self.stage.workload.prompt_tokens
        if self.options.concatenated:
            return score(tokens, start)
        halves = [score(half, start) for half in tokens.chunk(2)]
        logits = [half.logits for half in halves if half.logits is not None]
        return Scores(torch.cat([half.logprobs for half in halves]), None, torch.cat(logits) if logits else None)

    def _metrics(self, pairs: Pairs, known: torch.Tensor | None) -> Metrics:
        """`loss`; `margin` and `accuracy` of what the policy rewards a response with, beta times what is compared; where logits
        are held, responses' `entropy`. `known`: what was precomputed."""
        with self.policy.forward():
            scores = self._by_halves(lambda tokens, start: self.policy.module(tokens, start, None), pairs.tokens)
        sums = response_sums(scores, pairs)
        if self.reference is not None:
            if known is None:
                before = self._of_reference(pairs)  # held with its logits until the end, as in TRL
                known = response_sums(before, pairs)
            sums = sums - known
        compared = Compared(*sums.chunk(2), *pairs.mask.sum(dim=1).chunk(2))
        loss = preference_losses(compared, self.options).mean()
        weight = 1.0 if self.options.loss_type == "orpo" else self.options.cpo_alpha
        if self.options.loss_type in REFERENCE_FREE and weight:
            loss = loss + weight * cross_entropy(*(part.chunk(2)[0] for part in (scores.logprobs, pairs.mask)))
        with torch.no_grad():
            ahead = self.options.beta * rewarded(compared, self.options).ahead
            told = {"loss": loss, "margin": ahead.mean(), "accuracy": (ahead > 0).float().mean()}
            if scores.logits is not None:
                entropies = whole.entropies(scores.logits[:, :-1])[:, -pairs.mask.shape[1] :]
                told["entropy"] = (entropies * pairs.mask).sum() / pairs.mask.sum()
        return told


def response_sums(scores: Scores, pairs: Pairs) -> torch.Tensor:
    """[2N]: the log-probability of each whole response."""
    return (scores.logprobs[:, -pairs.mask.shape[1] :] * pairs.mask).sum(dim=1)


def cross_entropy(logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Of tokens' log-probabilities [N, R], or [N, T - 1] where prompts come first; `mask` [N, R] is responses'."""
    prompt = logprobs[:, : -mask.shape[1]]
    total = prompt.sum() + (logprobs[:, -mask.shape[1] :] * mask).sum()
    return -total / (prompt.numel() + mask.sum())


def rewarded(compared: Compared, options: DPOOptions) -> Compared:
    """What a response is rewarded with, without beta: simpo and orpo take the mean of its tokens."""
    return compared.means if options.loss_type in ("simpo", "orpo") else compared


def preference_losses(compared: Compared, options: DPOOptions) -> torch.Tensor:
    """[N]: the loss of each pair."""
    return LOSSES[options.loss_type](compared, options)


def sigmoid(ahead: torch.Tensor, options: DPOOptions) -> torch.Tensor:
    """Cross-entropy of which response was chosen, which is the wrong one with label_smoothing's probability (conservative DPO)."""
    right, wrong = -F.logsigmoid(options.beta * ahead), -F.logsigmoid(-options.beta * ahead)
    return right * (1 - options.label_smoothing) + wrong * options.label_smoothing


def ipo(compared: Compared, options: DPOOptions) -> torch.Tensor:
    """arXiv 2310.12036, equation 17, per token; beta is its tau."""
    return (compared.means.ahead - 1 / (2 * options.beta)).square()


def robust(compared: Compared, options: DPOOptions) -> torch.Tensor:
    """arXiv 2403.00409: unbiased where labels are wrong with label_smoothing's probability."""
    right, wrong = F.logsigmoid(options.beta * compared.ahead), F.logsigmoid(-options.beta * compared.ahead)
    share = options.label_smoothing
    return (share * wrong - (1 - share) * right) / (1 - 2 * share)


def exo_pair(compared: Compared, options: DPOOptions) -> torch.Tensor:
    """arXiv 2402.00856, equation 16."""
    ahead, share = options.beta * compared.ahead, options.label_smoothing
    right = ahead.sigmoid() * (F.logsigmoid(ahead) - math.log1p(-share))
    return right + (-ahead).sigmoid() * (F.logsigmoid(-ahead) - math.log(share))


def nca_pair(compared: Compared, options: DPOOptions) -> torch.Tensor:
    """arXiv 2402.05369."""
    chosen, rejected = options.beta * compared.chosen, options.beta * compared.rejected
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair(compared: Compared, options: DPOOptions) -> torch.Tensor:
    """arXiv 2404.04656, of pairs."""
    return -F.logsigmoid(options.beta * compared.chosen) - F.logsigmoid(-options.beta * compared.rejected)


def sppo_hard(compared: Compared, options: DPOOptions) -> torch.Tensor:
    """arXiv 2405.00675, where the chosen response wins for certain."""
    goal = 0.5 / options.beta
    return (compared.chosen - goal).square() + (compared.rejected + goal).square()


def apo_zero(compared: Compared, options: DPOOptions) -> torch.Tensor:
    """arXiv 2408.06266, equation 7."""
    return 1 - (options.beta * compared.chosen).sigmoid() + (options.beta * compared.rejected).sigmoid()


def apo_down(compared: Compared, options: DPOOptions) -> torch.Tensor:
    """arXiv 2408.06266, equation 8."""
    return (options.beta * compared.chosen).sigmoid() + 1 - (options.beta * compared.ahead).sigmoid()


def orpo(compared: Compared, options: DPOOptions) -> torch.Tensor:
    """arXiv 2403.07691, equations 4 and 7, without the cross-entropy: the logarithm of the ratio of odds, of responses' mean
    log-probabilities."""
    means = compared.means
    odds = means.ahead - (-means.chosen.expm1()).log() + (-means.rejected.expm1()).log()
    return -options.beta * F.logsigmoid(odds)


LOSSES: Mapping[str, Callable[[Compared, DPOOptions], torch.Tensor]] = {
    "sigmoid": lambda compared, options: sigmoid(compared.ahead, options),
    "hinge": lambda compared, options: torch.relu(1 - options.beta * compared.ahead),
    "ipo": ipo,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "robust": robust,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "sigmoid_norm": lambda compared, options: sigmoid(compared.means.ahead, options),
    "cpo": lambda compared, options: sigmoid(compared.ahead, options),
    "simpo": lambda compared, options: sigmoid(compared.means.ahead - options.simpo_gamma / options.beta, options),
    "orpo": orpo,
}


def uses_reference(workload: Workload) -> ReferenceUse:
    return "unused" if workload.of(DPOOptions).loss_type in REFERENCE_FREE else "needed"


DPO = Algorithm(
    summary="direct preference optimisation, and losses like it",
    trainer=DirectPreferenceOptimisation,
    learning_rate=1e-6,
    from_pairs=True,
    uses_reference=uses_reference,
    options=DPOOptions,
    fields=(*REFERENCE_FIELDS, "ref_reward_offload", "max_length", "eval_batch_size", "max_eval_samples"),
)
