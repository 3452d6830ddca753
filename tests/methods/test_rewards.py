"""Rewards: what each kind gives, that none is trained, and how a score reaches its tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from vrambench.methods.device import Device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.models.presets import PRESETS
from vrambench.methods.rewards import RewardError, checked, token_rewards, token_rule

MakeJob = Callable[..., Job]
PROMPTS = torch.randint(0, 256, (5, 4), generator=torch.Generator().manual_seed(0))
RESPONSES = torch.randint(0, 256, (5, 4), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    """A folder as the hub has them: a sequence classifier with one label, weights and all."""
    torch.manual_seed(0)
    config = PRESETS["tiny-gpt2"].config()
    config.num_labels = 1
    folder = tmp_path / "classifier"
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


def reward_of(made: Job) -> Any:
    return made.trainer.reward  # type: ignore[attr-defined]


def test_the_rule_counts_tokens_of_the_first_quarter() -> None:
    score = token_rule(8)
    responses = torch.tensor([[0, 1, 2, 7], [1, 1, 0, 0], [2, 3, 4, 5]])
    scores = score(PROMPTS, responses)
    assert scores.tolist() == [0.5, 1.0, 0.0]
    assert scores.dtype == torch.float32
    assert token_rule(2)(PROMPTS, torch.tensor([[0, 1]])).tolist() == [0.5]


def test_a_random_policy_gets_about_a_quarter() -> None:
    responses = torch.randint(0, 256, (1000, 16), generator=torch.Generator().manual_seed(0))
    assert float(token_rule(256)(PROMPTS, responses).mean()) == pytest.approx(0.25, abs=0.02)


def test_a_score_lands_on_the_last_token_of_its_response() -> None:
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    logprobs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    rewards = token_rewards(torch.tensor([5.0, 6.0, 7.0]), logprobs, None, mask, 0.1)
    assert rewards.tolist() == [[0, 0, 0, 5], [0, 6, 0, 0], [7, 0, 0, 0]]
    reference = torch.zeros(3, 4)
    with_kl = token_rewards(torch.tensor([5.0, 6.0, 7.0]), logprobs, reference, mask, 0.1)
    torch.testing.assert_close(with_kl, (rewards - 0.1 * logprobs) * mask)


def frozen(made: Job) -> bool:
    role = made.roles["reward"]
    return role.learner is None and not any(parameter.requires_grad for parameter in role.module.parameters())


def test_a_reward_model_scores_the_last_token_and_is_frozen(job: MakeJob) -> None:
    made = job(algorithm="remax", reward="model", reward_model="tiny-gpt2")
    scores = reward_of(made)(PROMPTS, RESPONSES)
    assert frozen(made)
    assert scores.shape == (5,)
    assert scores.dtype == torch.float32
    whole = made.roles["reward"].module(torch.cat([PROMPTS, RESPONSES], dim=1))
    torch.testing.assert_close(scores, whole[:, -1])
    before = [parameter.clone() for parameter in made.roles["reward"].module.parameters()]
    made.step(0)
    assert all(map(torch.equal, before, made.roles["reward"].module.parameters()))


def test_a_classifier_of_a_folder(job: MakeJob, classifier: str) -> None:
    made = job(algorithm="ppo", reward=classifier, ppo={"epochs": 1})
    assert frozen(made)
    original = AutoModelForSequenceClassification.from_pretrained(classifier)
    original.config.pad_token_id = 0
    tokens = torch.cat([PROMPTS, RESPONSES], dim=1).clamp(min=1)  # to the original, token 0 is padding now
    expected = original(tokens).logits.squeeze(-1)
    torch.testing.assert_close(reward_of(made)(tokens[:, :4], tokens[:, 4:]), expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(made.step(0)["reward"])


@pytest.mark.parametrize("kind", ["model", "classifier"])
def test_reward_models_see_batch_size_sequences_at_a_time(job: MakeJob, classifier: str, kind: str) -> None:
    settings = {"reward": "model", "reward_model": "tiny-gpt2"} if kind == "model" else {"reward": classifier}
    made = job(algorithm="remax", batch_size=2, **settings)
    seen: list[int] = []
    made.roles["reward"].module.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    scores = reward_of(made)(PROMPTS, RESPONSES)
    assert seen == [2, 2, 1]
    assert scores.shape == (5,)


@pytest.mark.parametrize("precision", ["bf16_amp", "fp16_amp"])
def test_reward_models_compute_as_the_policy_does(
    job: MakeJob, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast attention is pinned to flash, which on CUDA takes half precision only."""
    made = job(algorithm="remax", precision=precision, reward="model")
    seen: list[torch.dtype] = []
    linear = next(part for part in made.roles["reward"].module.modules() if isinstance(part, torch.nn.Linear))
    linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    assert reward_of(made)(PROMPTS, RESPONSES).dtype == torch.float32
    assert set(seen) == {made.cell.precision_value.autocast(made.workload)}


OWN = """
import torch
def length(prompts, responses):
    assert prompts.shape[1] == 4 and responses.shape[1] == 4
    return (responses == prompts[:, :1]).float().sum(dim=1)
"""


def test_a_user_s_own_function(job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_reward.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    made = job(algorithm="remax", reward="own_reward:length")
    prompts, responses = torch.tensor([[3, 0, 0, 0]]), torch.tensor([[3, 3, 0, 3]])
    assert reward_of(made)(prompts, responses).tolist() == [3.0]
    assert "reward" not in made.roles
    assert torch.isfinite(made.step(0)["loss"])
    with pytest.raises(ConfigurationError, match=r"^reward: 'own_reward:lenght': there is no 'lenght'; did you mean"):
        job(algorithm="remax", reward="own_reward:lenght")


def test_the_token_rule_needs_no_model(job: MakeJob) -> None:
    made = job(algorithm="remax")
    assert "reward" not in made.roles
    torch.testing.assert_close(reward_of(made)(PROMPTS, RESPONSES), (RESPONSES < 64).float().mean(dim=1))


def test_devices_without_values_have_shapes(job: MakeJob, classifier: str) -> None:
    made = job(algorithm="remax", reward=classifier, device="meta")
    assert isinstance(made.device, Device)
    scores = reward_of(made)(PROMPTS.to("meta"), RESPONSES.to("meta"))
    assert (scores.shape, scores.device.type) == ((5,), "meta")


@pytest.mark.parametrize(
    ("given", "said"),
    [("text", "a str"), (torch.zeros(2, 3), r"a tensor \[2, 3\]"), (torch.zeros(3), r"a tensor \[3\]")],
)
def test_a_users_reward_that_gives_something_else_is_named(given: object, said: str) -> None:
    reward = checked(lambda prompts, responses: given, "mine:reward")  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigurationError, match=rf"^reward: 'mine:reward' gave {said}, not a tensor \[2\]"):
        reward(torch.zeros(2, 4), torch.zeros(2, 3))


class Unprintable(Exception):
    pass


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ValueError("\x1b[31mred"), "ValueError: \\x1b[31mred"),
        (ValueError("x" * 5000), f"ValueError: {'x' * 150}...{'x' * 75} (5,000 characters)"),
        (KeyError("user bug"), "KeyError: 'user bug'"),
        (SystemExit(3), "SystemExit: 3"),
        (ValueError("one\ntwo"), "ValueError: one"),
        (Unprintable(), "Unprintable"),
        (MemoryError("no more"), "MemoryError: no more"),
    ],
)
def test_a_users_reward_that_raises_is_named(raised: BaseException, said: str) -> None:
    def score(prompts: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        raise raised

    with pytest.raises(RewardError) as caught:
        checked(score, "ok:boom")(PROMPTS, RESPONSES)
    assert str(caught.value) == f"reward 'ok:boom' raised {said}"
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [ConfigurationError("reward: mine"), KeyboardInterrupt()])
def test_what_says_enough_by_itself_is_handed_on(raised: BaseException) -> None:
    def score(prompts: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        raise raised

    with pytest.raises(type(raised)) as caught:
        checked(score, "ok:boom")(PROMPTS, RESPONSES)
    assert caught.value is raised


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([1.0, float("nan")], "gave a score that is not a finite number in fp32"),
        ([1.0, float("inf")], "gave a score that is not a finite number in fp32"),
        ([float("-inf"), float("inf")], "gave a score that is not a finite number in fp32"),
        ([1.0, 1e300], "gave a score that is not a finite number in fp32"),
        ([3e38, 3e38], "gave finite scores that are too large: their mean is not finite in fp32"),
    ],
)
def test_scores_that_are_not_finite_are_named(scores: list[float], said: str) -> None:
    reward = checked(lambda prompts, responses: torch.tensor(scores, dtype=torch.float64), "mine:reward")
    with pytest.raises(RewardError) as caught:
        reward(torch.zeros(2, 4), torch.zeros(2, 3))
    assert str(caught.value) == f"reward 'mine:reward' {said}"


def test_a_users_reward_has_shapes_on_a_device_without_values() -> None:
    reward = checked(lambda prompts, responses: responses.float().mean(dim=1), "mine:reward")
    scores = reward(PROMPTS.to("meta"), RESPONSES.to("meta"))
    assert (scores.shape, scores.device.type) == ((5,), "meta")


def test_a_users_reward_may_be_of_any_number_type() -> None:
    reward = checked(lambda prompts, responses: torch.tensor([1, 2]), "mine:reward")
    assert torch.equal(reward(torch.zeros(2, 4), torch.zeros(2, 3)), torch.tensor([1.0, 2.0]))
