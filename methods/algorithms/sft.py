"""Supervised fine-tuning: cross-entropy of every token of a sequence given those before it.

A step is one optimizer step: `gradient_accumulation_steps` micro-batches of `batch_size` sequences of prompt and response length
together, or of several `lengths`. Roles: the policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from vrambench.methods.algorithms import EVALUATION_FIELDS, Algorithm, Metrics, Stage
from vrambench.methods.batches import Batch
from vrambench.methods.data import EVALUATION
from vrambench.methods.evaluation import Predicted, evaluate
from vrambench.methods.models import parts
from vrambench.methods.models.parts import Inputs

Some = tuple[Batch | None, Inputs]
"""A micro-batch; of which lengths, where there are several."""


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
        stage = self.stage
        stage.phase("learn")
        batches = self._batches(index)
        predicted = sum(inputs.predicted for _, inputs in batches)
        losses = []
        for batch, inputs in stage.device.micro_batches(batches, stage.workload.gradient_accumulation_steps):
            stage.phase("learn")
            with stage.device.working_on(batch):
                with self.policy.forward():
                    loss = self._loss(inputs)
                    if batch is not None and len(batches) > 1:  # so that every token of the step counts as much
                        loss = loss * (len(batches) * inputs.predicted / predicted)
                self.policy.backward(loss)
            losses.append(loss.detach())
        return {"loss": torch.stack(losses).mean()}

    def _batches(self, index: int) -> Sequence[Some]:
        """The micro-batches of a step, all of which are held until its end."""
        stage, work = self.stage, self.stage.workload
        if work.lengths is not None:
            return stage.data.inputs(index)
        tokens = stage.data.sequences(index, self.samples, self.data_tokens)
        return [(None, Inputs(batch)) for batch in tokens.split(work.batch_size)]

    def evaluate(self) -> Metrics:
        """The loss over `max_eval_samples` sequences that are not trained on."""
        stage, work = self.stage, self.stage.workload
        batches = self._evaluated()
        with torch.no_grad():
            loss = evaluate(
                self.policy.module,
                batches,
                self._predicted,
                work.eval_accumulation_steps,
                stage.device,
                rows=lambda some: len(some[1].tokens),
            )
        return {"eval_loss": loss}

    def _evaluated(self) -> Sequence[Some]:
        stage, work = self.stage, self.stage.workload
        assert work.eval_batch_size is not None
        assert work.max_eval_samples is not None
        accumulation = work.eval_accumulation_steps
        group = accumulation or 1
        # What is kept does not grow with the batches, or not beyond a group.
        repeats = bool(work.prediction_loss_only or accumulation)
        if work.lengths is not None:
            most = 2 * group * work.eval_batch_size if repeats and stage.device.simulated else work.max_eval_samples
            return stage.data.evaluated(min(most, work.max_eval_samples), work.eval_batch_size)
        tokens = stage.data.sequences(EVALUATION, work.max_eval_samples, self.data_tokens)
        batches = tokens.split(work.eval_batch_size)
        return [(None, Inputs(batch)) for batch in (stage.device.alike(batches, group) if repeats else batches)]

    def _loss(self, inputs: Inputs) -> torch.Tensor:
        loss: torch.Tensor = self.policy.module(inputs)
        return loss

    def _predicted(self, some: Some) -> Predicted:
        batch, inputs = some
        with self.stage.device.working_on(batch), self.policy.forward():
            if self.stage.workload.prediction_loss_only:
                return Predicted(self._loss(inputs))
            model = self.policy.module.model
            logits = parts.logits(model, parts.hidden_states(model, inputs))
            if self.stage.autocast:  # accelerate (utils/operations.py: convert_outputs_to_fp32) gives fp32 then
                logits = logits.float()
            # transformers 5.23, loss/loss_utils.py (ForCausalLMLoss): labels are shifted, and logits taken to fp32 whole.
            following = F.pad(inputs.wanted, (0, 1), value=parts.IGNORED)[:, 1:].flatten()
            loss = F.cross_entropy(logits.float().flatten(0, 1), following, ignore_index=parts.IGNORED)
        return Predicted(loss, logits, inputs.wanted)


SFT = Algorithm(
    summary="supervised fine-tuning",
    trainer=SupervisedFineTuning,
    learning_rate=2e-5,
    from_logprobs=False,
    takes_lengths=True,
    fields=("max_length", *EVALUATION_FIELDS),
)
