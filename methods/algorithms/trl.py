"""TRL's own trainers as they are, on this harness' models, data and meters: what they take and give beside our algorithms.

`trainer.train()` runs in a greenlet of the job's thread (paused.py). A step is what it does from one optimizer step's end to the
next one's, or to that of a rollout's last one, what it logs included. A callback hands over where it is, and rewards are computed
where the step was asked for. The model is the job's, adapter and all. The reference is what TRL makes of it: an adapter `ref`
beside the trained one, else a copy, which is loaded as the job loads it, since a preset has no weights that TRL could read.
Sequences are the job's token ids, with a tokenizer of as many words, and each response has all its tokens.

Source: TRL 1.12, trainer/*_trainer.py; transformers 5.23, trainer.py (Trainer._run_epoch).
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from unittest import mock

import torch
from pydantic import ConfigDict

from vrambench.methods.algorithms import Algorithm, Metrics, Stage
from vrambench.methods.algorithms.foreign import Foreign
from vrambench.methods.algorithms.paused import Paused, hand_over
from vrambench.methods.algorithms.trainer_learner import TrainerLearner, optimizer_arguments
from vrambench.methods.algorithms.trl_rows import padding_of, pairs, prompts, sequences, tokenizer
from vrambench.methods.algorithms.trl_settings import KEPT, TOLD
from vrambench.methods.device import Device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.parts import unwrapped
from vrambench.methods.registry import Options
from vrambench.methods.rewards import Reward
from vrambench.methods.setup import Setup

if TYPE_CHECKING:
    from vrambench.methods.offload.learner import PhaseMarker

ENDLESS = 10**9
"""Optimizer steps: the job takes as many as it wants."""
METRICS = {
    "loss": "loss",
    "reward": "reward",
    "kl": "kl",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "mean_token_accuracy": "mean_token_accuracy",
    "accuracy": "accuracy",
    "margin": "margin",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
}
"""Of what TRL logs, by its names, what is told."""


class TRLOptions(Options):
    """Whatever SFTConfig, DPOConfig, RewardConfig, GRPOConfig or RLOOConfig has, by its own name (`trl: {beta: 0.1}`), where no
    field says it."""

    model_config = ConfigDict(extra="allow")
    namespace: ClassVar[str] = "trl"


class Score(NamedTuple):
    """What TRL wants scored: texts of prompts, tokens of responses."""

    prompts: list[str]
    responses: list[list[int]]


@dataclass(frozen=True)
class Kind:
    """`rows`: the training set of a step, of so many sequences, pairs or prompts. `each`: sequences of a row. `scores`: what it
    trains is a reward model. `group_size`: its usual number of responses to each prompt, where it samples some."""

    foreign: Foreign
    rows: Callable[[Stage, int, int], dict[str, list[Any]]]
    each: int = 1
    scores: bool = False
    group_size: int | None = None

    @property
    def generates(self) -> bool:
        return self.group_size is not None


class TRLTrainer:
    """One of TRL's trainers at work."""

    data_tokens = 0

    def __init__(self, kind: Kind, stage: Stage) -> None:
        work = stage.workload
        self.stage = stage
        self._kind = kind
        step = work.batch_size * work.gradient_accumulation_steps
        self._rows = (work.rollout_batch or 0) * (work.group_size or 1) or step
        self.samples = self._rows * kind.each
        self.train_tokens = self.samples * work.sequence_tokens
        self.generated_tokens = self.samples * work.response_tokens if kind.generates else 0
        iterations = int(kind.foreign.said(work).get("num_iterations", 1))
        self._optimizer_steps = self._rows * iterations // step
        self._reward: Reward | None = stage.reward() if kind.generates else None
        learner: Any = (stage.reward_model if kind.scores else stage.policy)(learner=self._learner)
        self._run = Paused(learner.trainer.train)
        self._resume()  # until all is there that training needs

    def step(self, index: int) -> Metrics:
        """`loss` is the mean over the step's optimizer steps of what TRL logs for each."""
        self.stage.phase("rollout" if self._kind.generates else "learn")
        logs: list[dict[str, float]] = []
        answer = None
        while len(logs) < self._optimizer_steps:
            message = self._resume(answer)
            answer = None
            if isinstance(message, Score):
                self.stage.phase("score")
                answer = self._scores(message)
            elif isinstance(message, str):
                self.stage.phase(message)
            else:
                logs.append(message)
        return _metrics(logs)

    def _resume(self, answer: Any = None) -> Any:
        """What the trainer hands over next. On the CPU it compiles nothing (torchao's optimizers would compile their step), which
        takes tens of seconds for each shape of a weight."""
        eager = (
            torch.compiler.set_stance("force_eager") if self.stage.device.kind == "cpu" else contextlib.nullcontext()
        )
        with eager:
            return self._run.resume(answer)

    def _scores(self, asked: Score) -> list[float]:
        assert self._reward is not None
        device = self.stage.device.torch
        prompts = torch.tensor([[int(word[1:]) for word in text.split()] for text in asked.prompts], device=device)
        scores: list[float] = self._reward(prompts, torch.tensor(asked.responses, device=device)).tolist()
        return scores

    def _learner(self, module: Any, setup: Setup, device: Device, phase: PhaseMarker) -> TrainerLearner:
        """TRL's trainer of `module`'s model."""
        from datasets import Dataset

        kind, work = self._kind, setup.workload
        model = module.model
        vocabulary = unwrapped(model).config.get_text_config().vocab_size
        rows: dict[str, list[Any]] = {}
        for index in range(work.warmup_steps + work.steps + 1):  # the last is the one in which bytes are counted
            for name, values in kind.rows(self.stage, index, self._rows // (work.group_size or 1)).items():
                rows.setdefault(name, []).extend(values)
        more: dict[str, Any] = {}
        if kind.generates:
            more["reward_funcs"] = _score
            model.generate = partial(_sampled, model.generate)
        with tempfile.TemporaryDirectory() as folder, self._aside():
            arguments = _arguments(kind, setup, device) | {"output_dir": folder}
            config = kind.foreign.load(kind.foreign.config)(**arguments)
            config._n_gpu = min(config.n_gpu, 1)  # the Trainer would spread a batch over all that it sees
            trainer = kind.foreign.load(kind.foreign.trainer)(
                model=model,
                args=config,
                train_dataset=Dataset.from_dict(rows),
                processing_class=tokenizer(vocabulary, padding_of(self.stage), ends=kind.generates),
                **more,
            )
        trainer.add_callback(_callback(device))
        trainer.remove_callback(importlib.import_module("transformers").PrinterCallback)
        trainer.compute_loss = partial(_learning, trainer.compute_loss)
        return TrainerLearner(module, trainer)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Nothing is sent, no bars are drawn, the environment stays as it was, and where TRL would read a reference by its name, it
        is given the job's copy."""
        import datasets
        from huggingface_hub import constants

        module = importlib.import_module(self._kind.foreign.load(self._kind.foreign.trainer).__module__)
        drawn = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ))
            stack.enter_context(mock.patch.object(constants, "HF_HUB_DISABLE_TELEMETRY", True))
            if hasattr(module, "create_model_from_path"):
                stack.enter_context(mock.patch.object(module, "create_model_from_path", self._first_policy))
            try:
                yield
            finally:
                if drawn:
                    datasets.enable_progress_bars()

    def _first_policy(self, *args: Any, **kwargs: Any) -> Any:
        return self.stage.first_policy().model


def _arguments(kind: Kind, setup: Setup, device: Device) -> dict[str, Any]:
    """What the trainer's configuration is told: what the cell says, and what a measurement needs."""
    work = setup.workload
    autocast = setup.precision.autocast(work)
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": work.batch_size,
        "gradient_accumulation_steps": work.gradient_accumulation_steps,
        "gradient_checkpointing": work.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": work.use_reentrant},
        "learning_rate": work.learning_rate,
        "max_grad_norm": work.max_grad_norm,
        "torch_empty_cache_steps": work.torch_empty_cache_steps or None,
        "bf16": autocast == torch.bfloat16,
        "fp16": autocast == torch.float16,
        "seed": work.seed,
        "lr_scheduler_type": "constant",
        "max_steps": ENDLESS,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device.kind == "cpu",
        "dataloader_pin_memory": device.kind != "cpu",
    }
    if work.activation_offloading:
        arguments["activation_offloading"] = True
    if kind.generates:
        group, prompts = work.group_size or 1, work.rollout_batch or 1
        arguments |= {"num_generations": group, "generation_batch_size": prompts * group}
        arguments |= {"shuffle_dataset": False, "max_completion_length": work.response_tokens}
    else:
        arguments |= {"train_sampling_strategy": "sequential", "max_length": work.sequence_tokens}
    arguments |= optimizer_arguments(setup)
    if work.loss not in kind.foreign.losses:
        raise ConfigurationError(
            f"loss: {work.loss!r} is none of the trainer's own: {kind.foreign.takes}", field="loss"
        )
    arguments |= kind.foreign.losses[work.loss]
    return arguments | dict(kind.foreign.said(work))


def _callback(device: Device) -> Any:
    """Hands over where the trainer is. It holds nothing, so that nothing is held by it."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if device.kind == "cpu":  # as torch itself takes it on CUDA
                for group in filter(lambda one: one["params"], kwargs["optimizer"].param_groups):
                    if group.get("foreach", False) is None and not group.get("fused"):
                        group["foreach"] = True
            hand_over("begun")

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            hand_over("optimizer_step")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                hand_over(dict(logs))

    return Callback()


def _sampled(generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """transformers' generate."""
    hand_over("rollout")
    tokens = generate(*args, **kwargs)
    hand_over("score")
    return tokens


def _learning(compute_loss: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The trainer's own compute_loss."""
    hand_over("learn")
    return compute_loss(*args, **kwargs)


def _score(prompts: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """A reward function as TRL wants it."""
    scores: list[float] = hand_over(Score(prompts, completion_ids))
    return scores


def _metrics(logs: list[dict[str, float]]) -> Metrics:
    """The means of what was logged; `loss`, `reward` and `kl` even where they are not finite."""
    found: Metrics = {}
    for name, ours in METRICS.items():
        values = [float(one[name]) for one in logs if name in one]
        if values and (ours in ("loss", "reward", "kl") or all(map(math.isfinite, values))):
            found[ours] = torch.tensor(sum(values) / len(values))
    return found


def _foreign(
    name: str,
    losses: Mapping[str, Mapping[str, Any]],
    predicted: Mapping[str, str | None],
    told: Mapping[str, str] = TOLD,
    *,
    offloads_activations: bool = True,
    takes_virtual_tokens: bool = False,
) -> Foreign:
    return Foreign(
        "TRL",
        "trl",
        f"{name}Trainer",
        f"{name}Config",
        name.lower(),
        "trl",
        losses,
        predicted,
        told,
        KEPT,
        offloads_activations,
        takes_virtual_tokens,
    )


OWN_LOSSES: dict[str, dict[str, Any]] = {"scored": {}, "liger": {"use_liger_kernel": True}}
SELECTIVE: dict[str, str | None] = {"scored": "selective", "liger": None}
SFT = Kind(
    _foreign(
        "SFT",
        {
            "nll": {"loss_type": "nll"},
            "chunked_nll": {"loss_type": "chunked_nll"},
            "liger": {"loss_type": "nll", "use_liger_kernel": True},
        },
        {},
        TOLD | {"loss_type": "loss", "pad_to_multiple_of": "lengths"},
        takes_virtual_tokens=True,
    ),
    sequences,
)
DPO = Kind(_foreign("DPO", OWN_LOSSES, {"scored": "nll", "liger": None}), pairs, each=2)
REWARD = Kind(
    _foreign(
        "Reward",
        {"scored": {}},
        {},
        takes_virtual_tokens=True,
    ),
    pairs,
    each=2,
    scores=True,
)
GRPO = Kind(_foreign("GRPO", OWN_LOSSES, SELECTIVE, offloads_activations=False), prompts, group_size=8)
RLOO = Kind(_foreign("RLOO", {"scored": {}}, SELECTIVE, offloads_activations=False), prompts, group_size=2)


def _algorithm(kind: Kind, summary: str, learning_rate: float) -> Algorithm:
    fields = ("rollout_batch", "group_size", "reward", "reward_model") if kind.generates else ("max_length",)
    return Algorithm(
        summary=summary,
        trainer=partial(TRLTrainer, kind),
        learning_rate=learning_rate,
        group_size=kind.group_size,
        from_logprobs=False,
        from_pairs=kind.each > 1,
        trains_reward=kind.scores,
        foreign=kind.foreign,
        options=TRLOptions,
        fields=fields,
        requires=("trl", "datasets", "greenlet", *(("requests",) if kind.generates else ())),
        extra="trl",
    )


TRL_SFT = _algorithm(SFT, "TRL's SFTTrainer as it is", 2e-5)
TRL_DPO = _algorithm(DPO, "TRL's DPOTrainer as it is", 1e-6)
TRL_REWARD = _algorithm(REWARD, "TRL's RewardTrainer as it is", 1e-4)
TRL_GRPO = _algorithm(GRPO, "TRL's GRPOTrainer as it is", 1e-6)
TRL_RLOO = _algorithm(RLOO, "TRL's RLOOTrainer as it is", 1e-6)
