"""Axis `algorithm`: what one training step does. Each algorithm is one file that can be read alone, beside its paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from vrambench.methods.registry import AxisValue, Registry

if TYPE_CHECKING:
    import torch

    from vrambench.methods.algorithms.foreign import Foreign
    from vrambench.methods.data import Ahead
    from vrambench.methods.device import Device
    from vrambench.methods.models.policy import Policy
    from vrambench.methods.offload.learner import Learner, LearnerFactory, PhaseMarker
    from vrambench.methods.reference import Reference
    from vrambench.methods.rewards import Reward
    from vrambench.methods.workload import Workload

Metrics: TypeAlias = "dict[str, torch.Tensor]"
ReferenceUse: TypeAlias = Literal["needed", "optional", "unused"]

EVALUATION_FIELDS = ("eval_batch_size", "max_eval_samples", "prediction_loss_only", "eval_accumulation_steps")
"""Of algorithms whose trainers evaluate (Evaluating)."""
REFERENCE_FIELDS = ("reference", "reference_dtype")
ROLLOUT_FIELDS = (
    "rollout_batch",
    "micro_rollout_batch_size",
    *REFERENCE_FIELDS,
    "reward",
    "reward_model",
    "ref_reward_offload",
    "empty_cache_between_phases",
)


class Stage(Protocol):
    """What an algorithm may ask of its job: the data, the device, and the models that it needs, each made when it is asked for.
    `phase` is called with a name whenever the algorithm enters another phase."""

    data: Ahead
    device: Device
    phase: PhaseMarker

    @property
    def workload(self) -> Workload: ...

    @property
    def autocast(self) -> bool:
        """Whether forward passes run under autocast."""

    def policy(self, value_head: bool = False, learner: LearnerFactory | None = None) -> Learner:
        """The trained model, with a scalar head on its trunk if asked for, trained by `learner`, or else as `offload` says."""

    def first_policy(self) -> Policy:
        """A frozen copy of the policy as it is at first, without its adapter."""

    def trained_policy(self, *, on_host: bool) -> Policy:
        """The model as another cell has trained it, frozen, on the device or in the host's memory."""

    def reference(self, policy: Learner) -> Reference | None:
        """The frozen policy of before, as `reference` says; None for none."""

    def critic(self) -> Learner:
        """A separate value model, trained as the policy is."""

    def reward(self) -> Reward:
        """Scores of responses, as `reward` says."""

    def reward_model(self, learner: LearnerFactory | None = None) -> Learner:
        """A model that is trained to give one score for each sequence, by `learner` or else as `offload` says."""


class Trainer(Protocol):
    """One algorithm at work on its job's roles."""

    train_tokens: int
    """Tokens trained on in one step, counted once whatever the number of epochs; of several lengths, padding included."""
    generated_tokens: int
    """Tokens sampled in one step."""
    samples: int
    """Sequences trained on in one step."""
    data_tokens: int
    """Length of the sequences that a step takes from the data: whole ones, or prompts, each of which has
    `sequences_per_prompt` of the samples; 0 where all are taken at the beginning."""

    def step(self, index: int) -> Metrics:
        """Does step number `index`; gives scalars on the device, finite ones: `loss`, `reward` and `kl` where there is a rollout,
        and whatever else the algorithm tells of its steps, by names of its own."""


class Evaluating(Trainer, Protocol):
    """A trainer that can evaluate as well."""

    def evaluate(self) -> Metrics:
        """Evaluates once as the workload says: `eval_loss`, and whatever else, scalars on the device."""


@dataclass(frozen=True, kw_only=True)
class Algorithm(AxisValue):
    """`trainer`: sets the algorithm up on a stage (it asks for the roles that it needs). `learning_rate`: its usual one, used
    where the workload names none. `group_size`: its usual number of responses to each prompt, likewise, of one that compares them.
    `sequences_per_prompt`: how many responses to each of a rollout's prompts it trains on. `takes_lengths`: it trains on sequences
    of several `lengths`. `from_logprobs`: its loss is made of tokens' log-probabilities, and not their mean cross-entropy.
    `from_pairs`: it trains on pairs of responses, which `batch_size` counts. `uses_reference`: what the frozen policy of before is
    to it, under a workload. `trains_reward`: what it trains is a reward model, and no policy. `trains`: not where it only works on
    what others have trained. `foreign`: the trainer is another library's, which is measured and not predicted."""

    trainer: Callable[[Stage], Trainer]
    learning_rate: float
    group_size: int | None = None
    sequences_per_prompt: Callable[[Workload], int] = lambda workload: workload.group_size or 1
    from_logprobs: bool = True
    takes_lengths: bool = False
    trains: bool = True
    from_pairs: bool = False
    uses_reference: Callable[[Workload], ReferenceUse] = lambda workload: "optional"
    trains_reward: bool = False
    foreign: Foreign | None = None


ALGORITHMS = Registry(
    "algorithm",
    Algorithm,
    {
        "sft": "vrambench.methods.algorithms.sft:SFT",
        "ppo": "vrambench.methods.algorithms.ppo:PPO",
        "remax": "vrambench.methods.algorithms.remax:REMAX",
        "merge": "vrambench.methods.algorithms.merge:MERGE",
        "dpo": "vrambench.methods.algorithms.dpo:DPO",
        "reward": "vrambench.methods.algorithms.reward:REWARD",
        "reinforce": "vrambench.methods.algorithms.reinforce:REINFORCE",
        "rloo": "vrambench.methods.algorithms.rloo:RLOO",
        "grpo": "vrambench.methods.algorithms.grpo:GRPO",
        "trl_sft": "vrambench.methods.algorithms.trl:TRL_SFT",
        "trl_dpo": "vrambench.methods.algorithms.trl:TRL_DPO",
        "trl_reward": "vrambench.methods.algorithms.trl:TRL_REWARD",
        "trl_grpo": "vrambench.methods.algorithms.trl:TRL_GRPO",
        "trl_rloo": "vrambench.methods.algorithms.trl:TRL_RLOO",
    },
)
