"""Supervised fine-tuning: cross-entropy of every token of a sequence given those before it.

A step is one optimizer step: `gradient_accumulation_steps` micro-batches of `batch_size` sequences of prompt and response length
together. Roles: the policy.
"""

from __future__ import annotations

import torch

from vrambench.methods.algorithms import Algorithm, Metrics, Stage


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
                loss = self.policy.module(batch)
            self.policy.backward(loss)
            losses.append(loss.detach())
        return {"loss": torch.stack(losses).mean()}


SFT = Algorithm(
    summary="supervised fine-tuning",
    trainer=SupervisedFineTuning,
    learning_rate=2e-5,
    from_logprobs=False,
    fields=("max_length",),
)
