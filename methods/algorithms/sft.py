"""Supervised fine-tuning: cross-entropy of every token of a sequence given those before it.

A step is one optimizer step: `gradient_accumulation_steps` micro-batches of `batch_size` sequences of prompt and response length
together. Roles: the policy.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from vrambench.methods.algorithms import EVALUATION_FIELDS, Algorithm, Metrics, Stage
from vrambench.methods.data import EVALUATION
from vrambench.methods.evaluation import Predicted, evaluate
from vrambench.methods.models import parts


class SupervisedFineTuning:
    def __init__(self, stage: Stage) -> None:
        work = stage.workload
        self.stage = stage
        self.policy = stage.policy()
        self.samples = work.batch_size * work.gradient_accumulation_steps
        self.train_tokens = self.samples * work.sequence_tokens
        self.generated_tokens = 0
        self.data_tokens = work.sequence_tokens

    def step(self, index: int) -> Metrics:
        stage, work = self.stage, self.stage.workload
        stage.phase("learn")
        tokens = stage.data.sequences(index, self.samples, self.data_tokens)
        losses = []
        for batch in stage.device.alike(tokens.split(work.batch_size), work.gradient_accumulation_steps):
            stage.phase("learn")
            with self.policy.forward():
                loss = self._loss(batch)
            self.policy.backward(loss)
            losses.append(loss.detach())
        return {"loss": torch.stack(losses).mean()}

    def evaluate(self) -> Metrics:
        """The loss over `max_eval_samples` sequences that are not trained on."""
        stage, work = self.stage, self.stage.workload
        assert work.eval_batch_size is not None
        assert work.max_eval_samples is not None
        batches = stage.data.sequences(EVALUATION, work.max_eval_samples, self.data_tokens).split(work.eval_batch_size)
        accumulation = work.eval_accumulation_steps
        if work.prediction_loss_only or accumulation:  # what is kept does not grow with the batches
            batches = tuple(stage.device.alike(batches, accumulation or 1))
        with torch.no_grad():
            loss = evaluate(self.policy.module, batches, self._predicted, accumulation, stage.device)
        return {"eval_loss": loss}

    def _loss(self, tokens: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.policy.module(tokens)
        return loss

    def _predicted(self, tokens: torch.Tensor) -> Predicted:
        if self.stage.workload.prediction_loss_only:
            with self.policy.forward():
                return Predicted(self._loss(tokens))
        model = self.policy.module.model
        with self.policy.forward():
            logits = parts.logits(model, parts.hidden_states(model, tokens))
            if self.stage.autocast:  # accelerate (utils/operations.py: convert_outputs_to_fp32) gives fp32 then
                logits = logits.float()
            # transformers 5.23, loss/loss_utils.py (ForCausalLMLoss): labels are shifted, and logits taken to fp32 whole.
            following = F.pad(tokens, (0, 1), value=parts.IGNORED)[:, 1:].flatten()
            loss = F.cross_entropy(logits.float().flatten(0, 1), following, ignore_index=parts.IGNORED)
        return Predicted(loss, logits, tokens)


SFT = Algorithm(
    summary="supervised fine-tuning",
    trainer=SupervisedFineTuning,
    learning_rate=2e-5,
    from_logprobs=False,
    fields=("max_length", *EVALUATION_FIELDS),
)
