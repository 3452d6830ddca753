"""A reward model of pairs of responses (Bradley-Terry; Ouyang et al., arXiv 2203.02155), as TRL's RewardTrainer trains it.

A step is one optimizer step: `gradient_accumulation_steps` micro-batches of `batch_size` pairs, each a prompt with a chosen and a
rejected response, which go through the model at once. The model is a classifier of one label; its score of a sequence is that of
the last token. Roles: reward.

Source: trl 1.12, trainer/reward_trainer.py (compute_loss).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch.nn import functional as F

from vrambench.methods.algorithms import Algorithm, Metrics, Stage
from vrambench.methods.data import EVALUATION, Pairs
from vrambench.methods.evaluation import Predicted, evaluate
from vrambench.methods.registry import Options


class RewardOptions(Options):
    """TRL's name and default (RewardConfig, where null is 0)."""

    namespace: ClassVar[str] = "rm"
    center_rewards_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared sum of a pair's scores, which keeps their mean at zero (arXiv 2312.09244; 0.01 there)."""


class RewardModelling:
    def __init__(self, stage: Stage) -> None:
        work = stage.workload
        self.stage = stage
        self.options: RewardOptions = work.of(RewardOptions)
        self.model = stage.reward_model()
        self.samples = 2 * work.batch_size * work.gradient_accumulation_steps
        self.train_tokens = self.samples * work.sequence_tokens
        self.generated_tokens = 0
        self.data_tokens = work.sequence_tokens

    def step(self, index: int) -> Metrics:
        stage, work = self.stage, self.stage.workload
        stage.phase("learn")
        batches = stage.data.pairs(index, self.samples // 2).split(work.batch_size)
        steps = []
        for pairs in stage.device.micro_batches(batches, work.gradient_accumulation_steps):
            stage.phase("learn")
            metrics = self._metrics(pairs)
            self.model.backward(metrics["loss"])
            steps.append({name: value.detach() for name, value in metrics.items()})
        return {name: torch.stack([step[name] for step in steps]).mean() for name in steps[0]}

    def evaluate(self) -> Metrics:
        """The loss over `max_eval_samples` pairs that are not trained on."""
        stage, work = self.stage, self.stage.workload
        assert work.eval_batch_size is not None
        assert work.max_eval_samples is not None
        batches = stage.data.pairs(EVALUATION, work.max_eval_samples).split(work.eval_batch_size)
        with torch.no_grad():
            loss = evaluate(
                self.model.module,
                stage.device.alike(batches),
                lambda pairs: Predicted(self._metrics(pairs)["loss"]),
                None,
                stage.device,
                rows=lambda pairs: len(pairs.tokens) // 2,
            )
        return {"eval_loss": loss}

    def _metrics(self, pairs: Pairs) -> Metrics:
        """`loss`; `margin` and `accuracy` of the scores."""
        with self.model.forward():
            chosen, rejected = self.model.module(pairs.tokens).chunk(2)
            loss = pair_losses(chosen, rejected, self.options.center_rewards_coefficient).mean()
        with torch.no_grad():
            ahead = chosen - rejected
        return {"loss": loss, "margin": ahead.mean(), "accuracy": (ahead > 0).float().mean()}


def pair_losses(chosen: torch.Tensor, rejected: torch.Tensor, center_rewards_coefficient: float) -> torch.Tensor:
    """[N]: -logsigmoid(r_c - r_r), and the coefficient times (r_c + r_r)^2, of scores [N]."""
    losses = -F.logsigmoid(chosen - rejected)
    if center_rewards_coefficient:
        losses = losses + center_rewards_coefficient * (chosen + rejected).square()
    return losses


REWARD = Algorithm(
    summary="a reward model of pairs of responses",
    trainer=RewardModelling,
    learning_rate=1e-4,
    from_pairs=True,
    from_logprobs=False,
    trains_reward=True,
    options=RewardOptions,
    fields=("max_length", "eval_batch_size", "max_eval_samples"),
)
