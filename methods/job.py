"""One training job: a cell at work on a device.

    job = Job(cell, get_device("cpu"))
    job.load()
    for index in range(cell.workload.steps):
        metrics = job.step(index)

    job.evaluate(), job.save()                          where the workload says so

`phase` is called with a name whenever the job enters another phase (load, rollout, score, learn, optimizer_step, evaluate, save);
whoever measures listens there. The algorithm asks the job for the roles that it needs, and the job remembers them in `roles`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias, cast

import torch
from torch import nn

from vrambench.methods.algorithms import Evaluating, Metrics, Trainer
from vrambench.methods.batches import Batches
from vrambench.methods.cell import Cell
from vrambench.methods.data import Ahead, Batched, Shapes, open_data
from vrambench.methods.device import Device, get_device
from vrambench.methods.dtypes import DTYPES
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.config import hidden_width, model_config
from vrambench.methods.models.load import load_model, seeded
from vrambench.methods.models.losses import LOSSES, Loss
from vrambench.methods.models.parts import freeze
from vrambench.methods.models.policy import Critic, HeadedCritic, Policy
from vrambench.methods.models.scalar import (
    RewardModel,
    load_classifier,
    load_reward_model,
    load_scalar_model,
)
from vrambench.methods.offload.learner import Learner, LearnerFactory, PhaseMarker
from vrambench.methods.pairs import open_pairs
from vrambench.methods.precision import PRECISIONS
from vrambench.methods.reference import Reference
from vrambench.methods.registry import load_attribute
from vrambench.methods.reviews import trained_classifier
from vrambench.methods.rewards import Reward, checked, token_rule
from vrambench.methods.saving import save, saved
from vrambench.methods.second_adapter import SecondAdapter
from vrambench.methods.tensors import shapes_only
from vrambench.methods.visiting import Visitor
from vrambench.methods.workload import Workload

Context: TypeAlias = Callable[[], AbstractContextManager[None]]

# One random stream for each role, so that no role's weights depend on which others the job holds.
STREAMS = {"policy": 0, "value": 1, "reward": 2, "steps": 3}


@dataclass(frozen=True)
class Role:
    """A model that the job holds. `learner`: what trains it, None if it is frozen. `shares`: the role whose weights it uses.
    `on_host`: it is in the host's memory."""

    module: nn.Module
    learner: Learner | None = None
    shares: str | None = None
    on_host: bool = False


class Job:
    """`cell` on `device`. `roles` is in the order policy, reference, value, reward, as far as the algorithm asked for them.
    `saved`: the folder where the run's cells save what others start from."""

    def __init__(
        self, cell: Cell, device: Device, phase: PhaseMarker = lambda name: None, saved: Path | None = None
    ) -> None:
        self.cell = cell
        self.setup = replace(cell.setup, saved=saved)
        self.device = device
        self.phase = emptying(phase, device) if cell.workload.empty_cache_between_phases else phase
        self.roles: dict[str, Role] = {}
        self.config = model_config(cell.workload.model)

    @property
    def workload(self) -> Workload:
        return self.cell.workload

    def load(self) -> None:
        """Builds the data, the roles and their optimizers. Raises ConfigurationError where the workload does not fit the model."""
        self.phase("load")
        self.data = self._data()
        with self.device.attention(self.workload.attention):  # some compute before they train
            self.trainer: Trainer = self.cell.algorithm_value.trainer(self)
        self.device.empty_cache()  # what loading needed in between would be in the way of what training needs
        torch.manual_seed(self._seed("steps"))

    def prepare(self, index: int) -> None:
        """Makes the sequences of step `index`, so that the step need not. For whoever times it; memory is the same either way."""
        if self.trainer.data_tokens:
            each = self.cell.algorithm_value.sequences_per_prompt(self.workload)
            self.data.prepare(index, self.trainer.samples // each, self.trainer.data_tokens)

    def _data(self) -> Ahead:
        if self.cell.algorithm_value.from_pairs:
            return Ahead(Shapes(self.device.torch), paired=open_pairs(self.workload, self.config, self.device))
        if self.workload.lengths is None:
            return Ahead(open_data(self.workload, self.config, self.device))
        host = self.device if self.device.simulated else get_device("cpu")
        batches = Batches(self.workload, self.device.order)
        source = open_data(self.workload, self.config, host)
        return Ahead(source, Batched(source, batches, self.device))

    def train_tokens(self, index: int) -> int:
        """Tokens trained on in step `index`, padding apart."""
        batched = self.data.batched
        return sum(batch.tokens for batch in batched.batches.of_step(index)) if batched else self.trainer.train_tokens

    def step(self, index: int) -> Metrics:
        """One step of the algorithm: scalars on the device."""
        self._train(True)
        with self.device.attention(self.workload.attention):
            return self.trainer.step(index)

    @property
    def evaluates(self) -> bool:
        return self.workload.eval_batch_size is not None

    @property
    def saves(self) -> bool:
        return self.workload.save != "none"

    def evaluate(self) -> Metrics:
        """One evaluation: scalars on the device."""
        self.phase("evaluate")
        self._train(False)
        with self.device.attention(self.workload.attention):
            return cast(Evaluating, self.trainer).evaluate()

    def save(self) -> None:
        """Saves the policy. Where its adapter is merged, it cannot be trained any more."""
        self.phase("save")
        self._train(False)
        if self.saved_role.on_host and self.device.simulated:
            return
        save(self.saved_module, self.setup, self.device, self.saved_role.learner)

    def _train(self, mode: bool) -> None:
        for role in self.roles.values():
            if role.learner:
                role.learner.train(mode)

    def saved(self) -> Iterator[nn.Parameter]:
        """What `save` will take to the host."""
        return iter(()) if self.saved_role.on_host else saved(self.saved_module, self.setup)

    @property
    def saved_role(self) -> Role:
        """What is saved: the policy, or the reward model that is trained."""
        return self.roles["reward" if self.cell.algorithm_value.trains_reward else "policy"]

    @property
    def saved_module(self) -> nn.Module:
        trained = self.saved_role.module
        assert isinstance(trained, Policy | RewardModel)
        return trained.model

    @property
    def autocast(self) -> bool:
        return self.cell.precision_value.autocast(self.workload) is not None

    def policy(self, value_head: bool = False, learner: LearnerFactory | None = None) -> Learner:
        """The trained model, with a scalar head on its trunk if asked for, trained by `learner`, or else as `offload` says."""
        seed = self._seed("policy")
        model = load_model(self.setup, self.device, seed=seed)
        penalty = self.cell.adapter_value.penalty
        policy = Policy(model, self._value_head() if value_head else None, self._loss, penalty)
        return self._trained("policy", policy, learner)

    def trained_policy(self, *, on_host: bool) -> Policy:
        """The model as another cell has trained it, frozen, on the device or in the host's memory."""
        simulated = on_host and self.device.simulated
        device = get_device("cpu") if on_host and not simulated else self.device
        with shapes_only() if simulated else nullcontext():
            model = freeze(load_model(self.setup, device, seed=self._seed("policy")))
        policy = Policy(model, loss=self._loss)
        self.roles["policy"] = Role(policy, on_host=on_host)
        return policy

    def reference(self, policy: Learner) -> Reference | None:
        """The frozen policy of before, as `reference` says; None for none. Where it is precomputed, it is the policy before it is
        trained, and no role of its own."""
        kind, sequences = self.cell.workload.reference, self.cell.workload.batch_size
        if kind == "none":
            return None
        if self.cell.algorithm_value.from_pairs:
            sequences *= 2
        if kind == "precomputed":
            itself = None if self.cell.adapter_value.can_switch_off else policy.module
            return Reference(policy, itself, sequences, self.device)
        copy: Policy | None = None
        here: Context = nullcontext
        if kind == "copy":
            copy = self.first_policy()
            here = self._visiting(copy)
        else:
            self.roles["reference"] = Role(self.roles["policy"].module, shares="policy")
        cast_whole = self.workload.reference_dtype is not None
        return Reference(policy, copy, sequences, self.device, cast_whole, here)

    def first_policy(self) -> Policy:
        """A frozen copy of the policy as it is at first, without its adapter: the role `reference`."""
        setup, dtype = self.setup, self.workload.reference_dtype
        if dtype is not None:
            setup = replace(setup, precision=PRECISIONS.get(dtype))
        model = load_model(setup, self.device, adapter=False, seed=self._seed("policy"))
        copy = Policy(freeze(model), loss=self._loss)
        self.roles["reference"] = Role(copy)
        return copy

    def critic(self) -> Learner:
        """A value model of the policy's shape, in the cell's precision, trained as the policy is: an adapter of its own on the
        policy's base, or a separate one."""
        if self.workload.value == "adapter":
            return self._critic_on_policy()
        model = load_scalar_model(
            self.setup, self.device, model=self.cell.workload.model, seed=self._seed("value"), trained=True
        )
        return self._trained("value", Critic(model))

    def reward_model(self, learner: LearnerFactory | None = None) -> Learner:
        """A reward model of the policy's shape, trained in its place, by `learner` or else as `offload` says."""
        padding = self.data.paired.filler if self.data.paired else -1
        model = load_reward_model(
            self.setup, self.device, model=self.workload.model, seed=self._seed("reward"), padding=padding
        )
        return self._trained("reward", model, learner)

    def _critic_on_policy(self) -> Learner:
        policy = self.roles["policy"].module
        assert isinstance(policy, Policy)
        with seeded(self.device, self._seed("value")):
            adapter = SecondAdapter(policy.model, "value", self.workload)
        critic = HeadedCritic(policy.model, self._value_head())
        with adapter.active():
            learner = adapter.trained_by(self._trained("value", critic))
        self.roles["value"] = Role(critic, learner, shares="policy")
        return learner

    def reward(self) -> Reward:
        """What the workload's `reward` names, frozen where it is a model."""
        named = self.cell.workload.reward or "tokens"
        if named == "tokens":
            return token_rule(self.config.vocab_size)
        if named == "reviews":
            judge = trained_classifier(self.config.get_text_config().vocab_size, self.device.torch)
            self.roles["reward"] = Role(freeze(judge))
            return lambda prompts, responses: judge(torch.cat([prompts, responses], dim=1))
        if ":" in named:
            return checked(load_attribute(named, field="reward"), named)
        if named == "model":
            assert self.cell.workload.reward_model is not None
            name, seed = self.cell.workload.reward_model, self._seed("reward")
            scorer = load_scalar_model(self.setup, self.device, model=name, seed=seed, trained=False)
            self.roles["reward"] = Role(freeze(scorer))
            return self._frozen(lambda tokens: scorer(tokens)[:, -1], self._visiting(scorer))
        classifier = load_classifier(self.setup, self.device, model=named, dtype=self._dtype)
        self.roles["reward"] = Role(freeze(classifier))
        return self._frozen(classifier, self._visiting(classifier))

    def _visiting(self, module: nn.Module) -> Context:
        """The context in which frozen `module` is on the device."""
        return Visitor(module, self.device).here if self.workload.ref_reward_offload else nullcontext

    def _frozen(self, score: Callable[[torch.Tensor], torch.Tensor], here: Context) -> Reward:
        """`score` of whole sequences, in batches of `batch_size`, in the precision that the policy computes in."""

        def reward(prompts: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
            batches = torch.cat([prompts, responses], dim=1).split(self.cell.workload.batch_size)
            with here(), self.device.autocast(self.cell.precision_value.autocast(self.workload)):
                return torch.cat(self.device.map_alike(score, batches)).float()

        return reward

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter of every role, each once."""
        seen: set[int] = set()
        for role in self.roles.values():
            for parameter in role.module.parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter

    def _trained(self, name: str, module: nn.Module, factory: LearnerFactory | None = None) -> Learner:
        factory = factory or self.cell.offload_value.learner
        self.roles[name] = Role(module)  # before any that its learner needs
        learner = factory(module, self.setup, self.device, self.phase)
        self.roles[name] = Role(module, learner)
        return learner

    def _value_head(self) -> nn.Linear:
        """[hidden -> 1], normal with variance 1 / (hidden + 1) as TRL's, in the type of what is trained."""
        workload, width = self.cell.workload, hidden_width(self.config)
        full = self.cell.adapter_value.trains_base
        dtype = self._dtype if full else DTYPES[workload.adapter_dtype or "fp32"]
        torch.manual_seed(self._seed("value"))
        head = nn.Linear(width, 1, bias=False, device=self.device.torch, dtype=dtype)
        nn.init.normal_(head.weight, std=(width + 1) ** -0.5)
        return head

    @property
    def _loss(self) -> Loss:
        """What the workload's `loss` names. Raises ConfigurationError where a package that it needs on CUDA is not installed."""
        name = self.cell.workload.loss
        loss = LOSSES[name]
        if self.device.kind == "cuda" and loss.package and find_spec(loss.module) is None:
            raise ConfigurationError(
                f"loss: {name!r} needs the package {loss.package}, which is not installed", field="loss"
            )
        return loss

    @property
    def _dtype(self) -> torch.dtype:
        return self.cell.precision_value.dtype(self.cell.workload)

    def _seed(self, stream: str) -> int:
        return self.cell.workload.seed * len(STREAMS) + STREAMS[stream]


def emptying(phase: PhaseMarker, device: Device) -> PhaseMarker:
    """`phase`, with the device's cache emptied before a step's rollout, its scoring and its learning."""
    last = "load"

    def enter(name: str) -> None:
        nonlocal last
        if name in ("rollout", "score") or (name == "learn" and last in ("rollout", "score")):
            device.empty_cache()
        last = name
        phase(name)

    return enter
