"""A transformers Trainer as the learner of what it trains, and a cell's optimizer in the words of its arguments."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from vrambench.methods.offload.learner import skipped_by, tensors_in
from vrambench.methods.optimizers import OPTIMIZERS, Optimizer, trainable
from vrambench.methods.setup import Setup

ADAM = {"eps": "adam_epsilon", "weight_decay": "weight_decay"}
"""TrainingArguments' names of an optimizer's options; `betas` are two of them."""


READ_ADAM = ("adamw", "torchao", "lion", "ademamix", "stable_adamw", "schedule_free_adamw")
"""The options of optimizers that transformers makes of those arguments."""


class TrainerLearner:
    """What a measurement asks of a learner. Backward passes and optimizer steps are the trainer's own."""

    def __init__(self, module: Any, trainer: Any) -> None:
        self.module = module
        self.trainer = trainer
        self._scale: float | None = None

    def forward(self) -> AbstractContextManager[Any]:
        raise NotImplementedError("the trainer calls its model itself")

    def backward(self, loss: torch.Tensor) -> None:
        raise NotImplementedError("the trainer calls backward itself")

    def gradients(self) -> Iterator[torch.Tensor]:
        return (parameter.grad for parameter in trainable(self.module) if parameter.grad is not None)

    def optimizer_state(self) -> Iterator[torch.Tensor]:
        return tensors_in(self.trainer.optimizer.state)

    def train(self, mode: bool = True) -> None:
        """Nothing: the trainer says so to its optimizer itself."""

    def optimizer_steps(self) -> int:
        steps: int = self.trainer.state.global_step
        return steps

    def skipped_steps(self) -> int:
        scaler = self.trainer.accelerator.scaler
        return skipped_by(scaler, scaler._init_scale) if scaler is not None else 0


def optimizer_name(optimizer: Optimizer) -> str | None:
    """transformers' name of the optimizer, which is ours; None where it is not one of ours."""
    return next((name for name, value in OPTIMIZERS.values().items() if value is optimizer), None)


@functools.cache
def names_of_transformers() -> frozenset[str]:
    """The values of transformers' OptimizerNames, read and not imported: the file imports PEFT and bitsandbytes, which takes a plan
    a third of its time."""
    spec = find_spec("transformers.training_args")
    assert spec is not None
    parts = ast.parse(Path(str(spec.origin)).read_bytes()).body
    (enum,) = (part for part in parts if isinstance(part, ast.ClassDef) and part.name == "OptimizerNames")
    return frozenset(ast.literal_eval(part.value) for part in enum.body if isinstance(part, ast.Assign))


def optimizer_arguments(setup: Setup) -> dict[str, Any]:
    """TrainingArguments that make the cell's optimizer."""
    arguments: dict[str, Any] = {"optim": optimizer_name(setup.optimizer)}
    options = dict(setup.workload.of(setup.optimizer.options)) if setup.optimizer.options else {}
    for name, value in options.items():
        if name == "betas" and len(value) == 2:
            arguments |= {"adam_beta1": value[0], "adam_beta2": value[1]}
        elif name in ADAM:
            arguments[ADAM[name]] = value
    return arguments


def unable_to_make(optimizer: Optimizer, options: dict[str, Any]) -> str | None:
    """Why a Trainer that is told `optimizer_arguments` would not make this optimizer with these options; None where it would."""
    if optimizer_name(optimizer) not in names_of_transformers():
        return "transformers has no such optimizer"
    if optimizer.layerwise:
        return "whether it steps inside the backward pass is not told to it"
    if optimizer.projects_gradients:
        return "which of its layers are projected, and how, is not told to it"
    usual = optimizer.options().model_dump(mode="json") if optimizer.options else {}
    told: tuple[str, ...] = ("weight_decay",)
    if optimizer.options and optimizer.options.namespace in READ_ADAM:
        told += ("eps", "betas") if len(usual.get("betas", ())) == 2 else ("eps",)
    for option, value in options.items():
        if value != usual.get(option) and option not in told:
            return f"{option} is not told to it"
    return None
