"""TRL's own trainers in the harness: they train, are measured as ours are, and do what our algorithm of the same name does.

Long, since the five of them are held against the same jobs.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from vrambench.bench.measure.measurement import Measurement
from vrambench.bench.measure.meters.cpu import CpuMeter
from vrambench.bench.predict import NotPredicted
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.results.records import Sample
from vrambench.methods.algorithms import ALGORITHMS
from vrambench.methods.algorithms.paused import FRAMES, Paused, hand_over
from vrambench.methods.cell import Cell
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job

MakeCell = Callable[..., Cell]
MakeJob = Callable[..., Job]

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning",
    "ignore:Paged optimizers are not supported on CPU",
)

TRLS = [name for name, value in ALGORITHMS.values().items() if value.foreign is not None]
WORK: dict[str, Any] = {"steps": 2, "warmup_steps": 1, "prompt_tokens": 6, "response_tokens": 6, "batch_size": 4}
OF: dict[str, dict[str, Any]] = {
    "trl_sft": {"loss": "nll"},
    "trl_grpo": {"rollout_batch": 2, "group_size": 2},
    "trl_rloo": {"rollout_batch": 2, "group_size": 2},
}
LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 4, "lora_target_modules": "all-linear"}


def measured(cell: Cell) -> Sample:
    return Measurement(cell, get_device("cpu"), CpuMeter()).run()


def losses(sample: Sample) -> tuple[float, ...]:
    assert sample.status == "ok", sample.reason
    assert sample.learning is not None
    return tuple(value for value in sample.learning.loss if value is not None)


@pytest.fixture(scope="module", autouse=True)
def nothing_to_collect() -> None:
    """What exists once the library is there is left out of collections, of which every step takes one."""
    ALGORITHMS.get("trl_grpo").foreign.load("GRPOTrainer")  # type: ignore[union-attr]
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own, into which nothing is written, and nothing sent."""
    monkeypatch.chdir(tmp_path)
    with mock.patch("trl.trainer.base_trainer.send_telemetry", side_effect=_send):
        yield
    assert list(tmp_path.iterdir()) == []


def _send(*args: Any, **kwargs: Any) -> None:
    from huggingface_hub import constants

    assert constants.HF_HUB_DISABLE_TELEMETRY


@pytest.mark.parametrize("algorithm", TRLS)
def test_each_trains_and_is_measured(cell: MakeCell, algorithm: str) -> None:
    made = cell(algorithm=algorithm, **WORK, **OF.get(algorithm, {}))
    sample = measured(made)
    assert sample.status == "ok", sample.reason
    learning, rates = sample.learning, sample.throughput
    assert learning is not None
    assert len(learning.loss) == 3
    assert len(set(learning.reward or learning.loss)) == 3
    phases = {(phase.name, phase.step) for phase in sample.phases}
    generates = made.workload.rollout_batch is not None
    names = ("rollout", "score", "learn", "optimizer_step") if generates else ("learn", "optimizer_step")
    assert phases == {("load", None), *((name, step) for name in names for step in range(4))}
    assert bool(learning.reward) == generates
    assert rates.step_seconds is not None
    assert len(rates.step_seconds) == 2
    assert rates.train_tokens_per_second is not None
    assert (rates.generated_tokens_per_second is not None) == generates
    peaks = [phase.allocated_bytes for phase in sample.phases if phase.step == 3]
    assert sample.memory.allocated_bytes == max(peak for peak in peaks if peak is not None)
    policy = sample.roles["reward" if algorithm == "trl_reward" else "policy"]
    assert policy.gradients_bytes > 0
    assert policy.optimizer_bytes is not None
    assert policy.optimizer_bytes >= 2 * policy.gradients_bytes
    assert ("reference" in sample.roles) == (algorithm in ("trl_dpo", "trl_rloo"))


@pytest.mark.parametrize(
    ("algorithm", "settings", "each"),
    [
        ("trl_sft", {}, 1),
        ("trl_sft", {"gradient_accumulation_steps": 3}, 1),
        ("trl_grpo", {"rollout_batch": 4}, 2),
        ("trl_grpo", {"rollout_batch": 4, "gradient_accumulation_steps": 2}, 1),
        ("trl_grpo", {"trl": {"num_iterations": 3}}, 3),
    ],
)
def test_a_step_has_so_many_optimizer_steps(job: MakeJob, algorithm: str, settings: dict[str, Any], each: int) -> None:
    entered: list[str] = []
    made = job(algorithm=algorithm, phase=entered.append, **WORK | OF[algorithm] | settings)
    learner: Any = made.roles["policy"].learner
    assert learner.optimizer_steps() == 0
    for index in range(3):
        entered.clear()
        made.step(index)
        assert learner.optimizer_steps() == (index + 1) * each
        assert entered.count("optimizer_step") == each
        assert entered.count("rollout") == (2 if algorithm == "trl_grpo" else 0)


SAME: dict[str, dict[str, Any]] = {
    "full": {"precision": "bf16", "loss": "nll"},
    "accumulated": {"loss": "nll", "gradient_accumulation_steps": 2},
    "chunked, under autocast": {"precision": "bf16_amp", "loss": "chunked_nll", "optimizer": "adamw_torch_fused"},
    "lora, checkpointed": {**LORA, "precision": "bf16", "loss": "nll", "gradient_checkpointing": True},
    "nf4": {**LORA, "precision": "nf4", "adapter_dtype": "bf16", "loss": "nll", "optimizer": "paged_adamw_8bit"},
    "int8": {**LORA, "precision": "int8", "adapter_dtype": "bf16", "loss": "nll"},
    "adafactor": {"loss": "nll", "optimizer": "adafactor"},
    "adamw's options": {"loss": "nll", "adamw": {"betas": [0.5, 0.9], "eps": 1e-3}, "max_grad_norm": 0.1},
    "not clipped": {"loss": "nll", "max_grad_norm": 0},
    "torchao": {"loss": "nll", "optimizer": "adamw_torch_8bit"},
}


@pytest.mark.parametrize("settings", SAME.values(), ids=SAME)
def test_sft_learns_as_ours_does(cell: MakeCell, settings: dict[str, Any]) -> None:
    """The same model, sequences and optimizer: the same losses."""
    ours, theirs = (measured(cell(algorithm=name, **WORK, **settings)) for name in ("sft", "trl_sft"))
    rounded = settings.get("precision") in (
        "bf16",
        "nf4",
        "int8",
    )  # what is clipped, in bf16, is multiplied in another order
    assert losses(theirs) == pytest.approx(losses(ours), rel=1e-4 if rounded else 2e-6)
    assert theirs.parameters == ours.parameters
    assert theirs.roles == ours.roles


def test_nothing_is_compiled_on_the_cpu(job: MakeJob) -> None:
    """torchao's optimizers have their step compiled, once for each shape of a weight."""
    from torch._dynamo.utils import counters

    counters.clear()
    job(algorithm="trl_sft", optimizer="adamw_torch_8bit", **WORK | OF["trl_sft"]).step(0)
    assert not counters["frames"]


PAIRED: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {}),
    "dpo, accumulated": ("dpo", {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}),
    "dpo, hinge": ("dpo", {"dpo": {"loss_type": "hinge", "beta": 0.3}, "trl": {"loss_type": ["hinge"], "beta": 0.3}}),
    "reward": ("reward", {}),
    "reward, centred": (
        "reward",
        {"rm": {"center_rewards_coefficient": 0.01}, "trl": {"center_rewards_coefficient": 0.01}},
    ),
    "reward with lora": ("reward", LORA),
}


@pytest.mark.parametrize(("algorithm", "settings"), PAIRED.values(), ids=PAIRED)
def test_pairs_are_learnt_as_ours_are(job: MakeJob, algorithm: str, settings: dict[str, Any]) -> None:
    ours, theirs = (job(algorithm=name, **WORK | settings) for name in (algorithm, f"trl_{algorithm}"))
    assert (ours.trainer.samples, ours.trainer.train_tokens) == (theirs.trainer.samples, theirs.trainer.train_tokens)
    for index in range(3):
        found, expected = theirs.step(index), ours.step(index)
        for name in ("loss", "margin", "accuracy"):
            assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-4, abs=2e-6), name


def test_pairs_of_a_file_are_learnt_as_ours_are(job: MakeJob, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of several lengths: what fills responses up is none of them."""
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    pairs = [("ab", "cd", "e"), ("a longer one", "xy", "much longer"), ("c", "a", "bcd")]
    file.write_text(
        "\n".join(json.dumps(dict(zip(("prompt", "chosen", "rejected"), one, strict=True))) for one in pairs)
    )
    for algorithm in ("dpo", "reward"):
        settings = WORK | {"data": str(file), "adapter": "none"}
        ours, theirs = (job(algorithm=name, **settings) for name in (algorithm, f"trl_{algorithm}"))
        for index in range(2):
            expected = float(ours.step(index)["loss"])
            assert float(theirs.step(index)["loss"]) == pytest.approx(expected, rel=1e-4)


def test_a_reward_is_learnt(job: MakeJob) -> None:
    settings = WORK | {
        "prompt_tokens": 8,
        "response_tokens": 8,
        "batch_size": 32,
        "rollout_batch": 8,
        "learning_rate": 5e-3,
    }
    made = job(algorithm="trl_grpo", **settings, group_size=8)
    rewards = [float(made.step(index)["reward"]) for index in range(12)]
    assert rewards[0] < 0.4
    assert sum(rewards[-4:]) / 4 > rewards[0] + 0.1, rewards  # three seeds of these settings rose by 0.43 to 0.51


def test_settings_reach_the_trainer(job: MakeJob) -> None:
    made = job(algorithm="trl_grpo", **WORK | OF["trl_grpo"] | {"trl": {"beta": 0.3, "epsilon": 0.5}})
    trainer: Any = made.roles["policy"].learner
    assert (trainer.trainer.args.beta, trainer.trainer.args.epsilon) == (0.3, 0.5)
    assert float(made.step(0)["kl"]) == pytest.approx(0, abs=1e-6)
    made.step(1)
    assert float(made.step(2)["kl"]) > 0
    assert "reference" in made.roles


def test_prompts_and_responses_are_whole(job: MakeJob) -> None:
    """Each prompt comes as our own algorithms have it, and each response has all its tokens, whichever they are."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def reward(prompts: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        seen.append((prompts, responses))
        return responses.float().mean(dim=1)

    made = job(algorithm="trl_rloo", **WORK | OF["trl_rloo"])
    trainer: Any = made.trainer
    trainer._reward = reward
    made.step(0)
    made.step(1)
    for index, (prompts, responses) in enumerate(seen):
        expected = made.data.source.sequences(index, 2, 6)
        assert prompts.tolist() == expected.repeat_interleave(2, dim=0).tolist()
        assert responses.shape == (4, 6)


@pytest.mark.parametrize("algorithm", ["trl_dpo", "trl_reward"])
def test_pairs_have_all_their_tokens(job: MakeJob, algorithm: str) -> None:
    made = job(algorithm=algorithm, **WORK)
    learner: Any = made.roles["reward" if algorithm == "trl_reward" else "policy"].learner
    seen: list[torch.Size] = []
    learner.trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    made.step(0)
    assert seen == [(8, 12)]
    assert made.trainer.train_tokens == 8 * 12


def test_what_raises_in_a_reward_is_the_cells_error(cell: MakeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    module = mock.MagicMock()
    module.score = mock.Mock(side_effect=KeyError("no such word"))
    monkeypatch.setitem(importlib.sys.modules, "own_rewards", module)  # type: ignore[attr-defined]
    sample = measured(cell(algorithm="trl_grpo", **WORK | OF["trl_grpo"], reward="own_rewards:score"))
    assert sample.status == "error"
    assert sample.reason == "reward 'own_rewards:score' raised KeyError: 'no such word'"
    assert sample.phase == "score"


def test_what_raises_inside_the_trainer_is_the_cells_error(cell: MakeCell) -> None:
    with mock.patch("trl.DPOTrainer.training_step", side_effect=RuntimeError("out of luck")):
        sample = measured(cell(algorithm="trl_dpo", **WORK))
    assert (sample.status, sample.reason, sample.phase) == ("error", "RuntimeError: out of luck", "learn")


def test_a_loss_that_is_not_finite_is_told(cell: MakeCell) -> None:
    sample = measured(cell(algorithm="trl_sft", **WORK | {"learning_rate": 1e30}, loss="nll", max_grad_norm=0))
    assert sample.status == "error"
    assert sample.reason is not None
    assert sample.reason.startswith("the loss of step")


def test_a_dropped_job_leaves_nothing(job: MakeJob) -> None:
    made = job(algorithm="trl_dpo", **WORK)
    made.step(0)
    learner: Any = made.roles["policy"].learner
    held = [weakref.ref(one) for one in (learner.trainer, learner.module, made)]
    del made, learner
    gc.collect()  # ends the greenlet
    gc.collect()
    assert [one() for one in held] == [None] * 3


def test_two_jobs_do_not_disturb_each_other(cell: MakeCell, job: MakeJob) -> None:
    plain = cell(algorithm="trl_sft", **WORK, loss="nll")
    alone = losses(measured(plain))
    half = measured(cell(algorithm="trl_sft", **WORK, loss="chunked_nll", precision="bf16_amp"))
    assert half.status == "ok"
    held = job(algorithm="trl_reward", **WORK)
    held.step(0)
    assert losses(measured(plain)) == alone
    held.step(1)


def test_the_same_cell_gives_the_same_numbers(job: MakeJob) -> None:
    def ran(seed: int) -> list[dict[str, float]]:
        made = job(algorithm="trl_rloo", seed=seed, **WORK | OF["trl_rloo"])
        return [{name: float(value) for name, value in made.step(index).items()} for index in range(2)]

    first = ran(0)
    torch.manual_seed(999)  # whatever the process did before
    assert ran(0) == first
    assert ran(1) != first


def test_a_loss_of_another_kind_is_refused(job: MakeJob) -> None:
    told = r"^loss: 'scored' is none of the trainer's own: SFTTrainer takes nll or chunked_nll or liger, as in --set loss=nll$"
    with pytest.raises(ConfigurationError, match=told):
        job(algorithm="trl_sft", **WORK)


OURS = "what predicts it is ours:"
SAYS = " (docs/recipes.md says what trl.* is there)"


@pytest.mark.parametrize(
    ("settings", "trainer", "ours"),
    [
        ({"algorithm": "trl_dpo", "loss": "liger"}, "DPOTrainer", "our dpo, which is predicted, has no loss liger"),
        ({"algorithm": "trl_sft", "loss": "nll"}, "SFTTrainer", f"{OURS} --algorithm sft --set loss=nll"),
        (
            {"algorithm": "trl_sft", "loss": "chunked_nll"},
            "SFTTrainer",
            f"{OURS} --algorithm sft --set loss=chunked_nll",
        ),
        ({"algorithm": "trl_dpo"}, "DPOTrainer", f"{OURS} --algorithm dpo --set loss=nll"),
        ({"algorithm": "trl_reward"}, "RewardTrainer", f"{OURS} --algorithm reward --set loss=scored"),
        (
            {"algorithm": "trl_grpo", "trl": {"beta": 0.1}},
            "GRPOTrainer",
            f"{OURS} --algorithm grpo --set loss=selective{SAYS}",
        ),
        ({"algorithm": "trl_rloo"}, "RLOOTrainer", f"{OURS} --algorithm rloo --set loss=selective"),
    ],
)
def test_it_is_measured_and_what_predicts_it_is_named(
    settings: dict[str, Any], trainer: str, ours: str, cell: MakeCell
) -> None:
    made = cell(**settings)
    with pytest.raises(NotPredicted) as caught:
        Predictor().forecast(made)
    told = f"{made.name}: TRL's own {trainer} can be measured (`vrambench run`), and not predicted; {ours}"
    assert str(caught.value) == told


# --- a function that waits ---


def test_a_function_hands_over_and_goes_on() -> None:
    def work() -> None:
        given = [hand_over("first")]
        given.append(hand_over(given[0] + 1))
        hand_over(given)

    run = Paused(work)
    assert run.resume() == "first"
    assert run.resume(4) == 5
    assert run.resume(6) == [4, 6]
    with pytest.raises(RuntimeError, match="ended by itself"):
        run.resume()


def test_torch_walks_back_through_no_other_stack() -> None:
    """For every error it makes, torch walks back as many frames; those of the greenlet itself are the last that are its own."""
    found = (ctypes.c_size_t * FRAMES)()
    walked = Paused(lambda: hand_over(ctypes.CDLL(None).backtrace(found, FRAMES))).resume()
    assert walked == FRAMES
    library = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/_greenlet" in line]
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in library]
    assert ranges
    assert not [address for address in found for begin, end in ranges if begin <= address < end]


def test_what_the_function_raises_is_raised() -> None:
    def work() -> None:
        hand_over(1)
        raise ValueError("no")

    run = Paused(work)
    run.resume()
    with pytest.raises(ValueError, match="no"):
        run.resume()


def test_a_function_ends_with_whoever_holds_it() -> None:
    ended = []

    def work() -> None:
        try:
            hand_over(1)
        finally:
            ended.append(True)

    run = Paused(work)
    run.resume()
    del run
    assert ended == [True]


def test_dispatch_modes_hold_inside() -> None:
    from vrambench.bench.measure.meters.storages import StorageTrace

    def work() -> None:
        hand_over(None)
        made = torch.empty(1000)
        hand_over(made)

    run = Paused(work)
    run.resume()
    with StorageTrace("cpu") as trace:
        before = trace.live_bytes
        assert run.resume().shape == (1000,)
        assert trace.peak_bytes - before >= 4000
