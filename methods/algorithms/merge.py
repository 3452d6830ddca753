"""An adapter that another cell has trained, put into its base's 16-bit weights (`save: merged`): W + scale B A.

A step is the loss of the policy with its adapter over `batch_size` sequences, nothing is trained; saving merges. Merging into a
quantised base would round most of the adapter away, so the base is loaded in 16 bit, by default on the host, where a model that
fills the device quantised has room. Role: policy.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from vrambench.methods.algorithms import Algorithm, Metrics, Stage
from vrambench.methods.models.parts import Inputs
from vrambench.methods.registry import Options


class MergeOptions(Options):
    """Where it is done."""

    namespace: ClassVar[str] = "merge"
    on_host: bool = True
    """Whether the 16-bit weights are in the host's memory meanwhile, and not on the device."""


class Merge:
    def __init__(self, stage: Stage) -> None:
        work = stage.workload
        self.stage = stage
        self.on_host = work.of(MergeOptions).on_host
        self.policy = stage.trained_policy(on_host=self.on_host)
        self.samples = work.batch_size
        self.train_tokens = 0
        self.generated_tokens = 0
        self.data_tokens = work.sequence_tokens

    def step(self, index: int) -> Metrics:
        """`loss`: that of the policy which is merged."""
        stage = self.stage
        stage.phase("score")
        tokens = stage.data.sequences(index, self.samples, self.data_tokens)
        if self.on_host:
            if stage.device.simulated:  # nothing is done there
                return {"loss": torch.zeros((), device=tokens.device)}
            tokens = tokens.cpu()
        with torch.no_grad():
            loss: torch.Tensor = self.policy(Inputs(tokens))
        return {"loss": loss.float()}


MERGE = Algorithm(
    summary="a trained adapter, put into its base's 16-bit weights",
    trainer=Merge,
    learning_rate=1e-4,
    options=MergeOptions,
    trains=False,
    from_logprobs=False,
)
