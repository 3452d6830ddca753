"""GRPO and RLOO against TRL's own trainers, which score the same responses and compute the loss on the same model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.trainers.trained import AXES, VOCABULARY, write_model
from vrambench.methods.algorithms import grpo, rloo
from vrambench.methods.cell import resolve
from vrambench.methods.device import get_device
from vrambench.methods.job import Job

pytest.importorskip("trl")

PROMPTS, GROUP, MICRO = 2, 4, 4
LENGTHS = (6, 3, 5, 6, 1, 2, 6, 4)
"""Tokens of the responses; the longest have as many as may be generated."""
REWARDS = (0.5, 1.0, -0.25, 0.125, 2.0, 2.0, 2.0, -1.0)
GRPO_SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"loss_type": "grpo"},
    {"loss_type": "dr_grpo", "scale_rewards": "none"},
    {"loss_type": "bnpo", "scale_rewards": "batch"},
    {"beta": 0.04},
    {"beta": 0.04, "use_bias_correction_kl": False, "loss_type": "grpo"},
    {"epsilon": 0.1, "epsilon_high": 0.28, "delta": 1.2},
    {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    {"importance_sampling_level": "sequence", "beta": 0.1, "loss_type": "dr_grpo"},
)
RLOO_SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"beta": 0.0},
    {"normalize_advantages": True, "reward_clip_range": (-0.5, 1.0), "epsilon_high": 0.3},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    write_model(made, tied=False)
    return made


@pytest.fixture
def trainer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, list[list[int]], list[list[int]], list[float], dict[str, Any]], Any]:
    """TRL's trainer, which is given prompts, responses and rewards. It needs `requests` to be imported, for a client of vLLM's
    server, whom nobody asks here."""
    if find_spec("requests") is None and "trl.generation.vllm_client" not in sys.modules:
        client = ModuleType("trl.generation.vllm_client")
        client.VLLMClient = object  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, client.__name__, client)
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    def made(
        kind: str, prompts: list[list[int]], responses: list[list[int]], rewards: list[float], settings: dict[str, Any]
    ) -> Any:
        arguments = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False} | settings
        config = getattr(trl, f"{kind}Config")(
            output_dir=str(tmp_path), per_device_train_batch_size=MICRO, gradient_accumulation_steps=len(responses) // MICRO,
            num_generations=GROUP, max_completion_length=max(map(len, responses)), **arguments,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
        one = getattr(trl, f"{kind}Trainer")(
            model=model,
            reward_funcs=lambda completions, **kwargs: rewards,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["<eos>"]}),
            processing_class=_tokenizer(),
        )
        if one.ref_model is not None:
            one.ref_model.double()
            _move(one.ref_model, 1)
        one.current_gradient_accumulation_steps = len(responses) // MICRO
        one._tokenize_prompts = lambda texts: (prompts, None, {})
        sampled = (responses, None) if kind == "GRPO" else responses
        one._generate_single_turn = lambda *arguments: sampled
        one.model.train()
        return one

    return made


def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(VOCABULARY - 2)} | {"<eos>": VOCABULARY - 2, "<pad>": VOCABULARY - 1}
    made = Tokenizer(WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def _move(model: Any, seed: int) -> None:
    """Away from where it is, so that ratios are some distance from 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def _sampled() -> tuple[list[list[int]], list[list[int]]]:
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(VOCABULARY - 2, (PROMPTS, 5), generator=generator).repeat_interleave(GROUP, dim=0)
    return prompts.tolist(), [torch.randint(VOCABULARY - 2, (n,), generator=generator).tolist() for n in LENGTHS]


def _logprobs(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """[B, R] of the responses, the long way, 0 after each."""
    tokens = torch.cat([given["prompt_ids"], given["completion_ids"]], dim=1)
    mask = torch.cat([given["prompt_mask"], given["completion_mask"]], dim=1)
    found = model(input_ids=tokens, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    found = found.gather(-1, tokens[:, 1:, None]).squeeze(-1)[:, given["prompt_ids"].shape[1] - 1 :]
    return found * given["completion_mask"]


def _gradients(model: Any, losses: list[torch.Tensor]) -> list[torch.Tensor]:
    model.zero_grad()
    sum(losses[1:], losses[0]).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def _scored(one: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the trainer has of its responses, whole and in micro-batches."""
    whole = one._generate_and_score_completions([{"prompt": "<eos>"}] * len(LENGTHS))
    parts = [
        {name: value[start : start + MICRO] if value.dim() else value for name, value in whole.items()}
        for start in range(0, len(LENGTHS), MICRO)
    ]
    return whole, parts


@pytest.mark.parametrize("settings", GRPO_SETTINGS, ids=str)
@pytest.mark.parametrize("iterations", [1, 2])
def test_grpo_is_trls(trainer: Any, settings: dict[str, Any], iterations: int) -> None:
    """With two iterations the old log-probabilities are there, and the model has moved since."""
    one = trainer("GRPO", *_sampled(), list(REWARDS), settings | {"num_iterations": iterations})
    options = grpo.GRPOOptions(**settings)
    with torch.no_grad():
        whole, parts = _scored(one)
        assert ("old_per_token_logps" in whole) == (iterations > 1)
        old = _logprobs(one.model, whole).split(MICRO)
        base = _logprobs(one.ref_model, whole).split(MICRO) if options.beta else (None, None)
    assert (one.ref_model is not None) == (grpo.GRPO.uses_reference(_workload("grpo", settings)) == "optional")
    advantages = grpo.group_advantages(torch.tensor(REWARDS), GROUP, options.scale_rewards)
    torch.testing.assert_close(advantages, whole["advantages"], rtol=1e-6, atol=1e-6)
    if iterations > 1:
        _move(one.model, 2)
    theirs = [one._compute_loss(one.model, part) for part in parts]
    ours, items = [], whole["completion_mask"].sum() / len(parts)
    for part, before, reference, given in zip(parts, old, base, advantages.split(MICRO), strict=True):
        logprobs, mask = _logprobs(one.model, part), part["completion_mask"].double()
        losses = grpo.token_losses(
            logprobs, before if iterations > 1 else logprobs.detach(), given, reference, mask, options
        )
        ours.append(grpo.mean_loss(losses, mask, options.loss_type, items) / len(parts))
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=1e-6, atol=1e-9)
    for mine, other in zip(_gradients(one.model, ours), _gradients(one.model, theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("settings", RLOO_SETTINGS, ids=str)
def test_rloo_is_trls(trainer: Any, settings: dict[str, Any]) -> None:
    one = trainer("RLOO", *_sampled(), list(REWARDS), settings)
    options = rloo.RLOOOptions(**settings)
    with torch.no_grad():
        whole, parts = _scored(one)
        old = _logprobs(one.model, whole)
        kl = (old - _logprobs(one.ref_model, whole)).sum(dim=1) if options.beta else torch.zeros(len(old))
    assert (one.ref_model is not None) == (rloo.RLOO.uses_reference(_workload("rloo", settings)) == "optional")
    advantages = rloo.advantages_of(torch.tensor(REWARDS), kl, GROUP, options)
    torch.testing.assert_close(advantages, whole["advantages"].to(advantages.dtype), rtol=1e-6, atol=1e-6)
    _move(one.model, 2)
    theirs = [one._compute_loss(one.model, part) for part in parts]
    ours = [
        rloo.policy_loss(_logprobs(one.model, part).sum(dim=1), before.sum(dim=1), given, options.epsilon, options.epsilon_high)
        for part, before, given in zip(parts, old.split(MICRO), advantages.split(MICRO), strict=True)
    ]  # fmt: skip
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=1e-6, atol=1e-9)
    for mine, other in zip(_gradients(one.model, ours), _gradients(one.model, theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)  # TRL corrects its variance in fp32


def _workload(algorithm: str, settings: dict[str, Any]) -> Any:
    axes = dict(zip(AXES, ("fp32", "none", "adamw_torch", "none", algorithm), strict=True))
    return resolve(axes, {algorithm: settings}).workload


STEPS: tuple[tuple[str, dict[str, Any]], ...] = (("grpo", {}), ("grpo", {"beta": 0.1}), ("rloo", {}))


@pytest.mark.parametrize(("algorithm", "settings"), STEPS, ids=str)
def test_a_step_has_the_gradients_of_trls(trainer: Any, folder: Path, algorithm: str, settings: dict[str, Any]) -> None:
    """Of a whole rollout, in two micro-batches; the reference is another model."""
    axes = dict(zip(AXES, ("fp32", "none", "adamw_torch", "none", algorithm), strict=True))
    work = {
        "model": str(folder), "weights": "pretrained", "batch_size": MICRO, "gradient_accumulation_steps": 2,
        "prompt_tokens": 5, "response_tokens": 6, "rollout_batch": PROMPTS, "group_size": GROUP, "max_grad_norm": 0,
    }  # fmt: skip
    job = Job(resolve(axes, work | {algorithm: settings}), get_device("cpu"))
    job.load()
    if "reference" in job.roles:
        job.roles["reference"].module.double()
        _move(job.roles["reference"].module, 1)
        job.roles["reference"].module.float()
    seen: dict[str, Any] = {}
    policy: Any = job.roles["policy"]
    reward = job.trainer.reward  # type: ignore[attr-defined]

    def listening(prompts: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
        seen["prompts"], seen["responses"] = prompts.tolist(), responses.tolist()
        seen["scores"] = reward(prompts, responses)
        return seen["scores"]

    def look(*_: Any) -> None:
        seen["gradients"] = [parameter.grad.clone() for parameter in policy.module.parameters()]

    job.trainer.reward = listening  # type: ignore[attr-defined]
    policy.learner._optimizer.register_step_pre_hook(look)
    told = job.step(0)
    one = trainer(algorithm.upper(), seen["prompts"], seen["responses"], seen["scores"].tolist(), settings)
    with torch.no_grad():
        _, parts = _scored(one)
    losses = [one._compute_loss(one.model, part) for part in parts]
    if algorithm == "rloo":  # the Trainer does
        losses = [loss / len(parts) for loss in losses]
    theirs = _gradients(one.model, losses)
    assert float(told["loss"]) == pytest.approx(sum(float(loss.detach()) for loss in losses), abs=1e-6)
    for mine, other in zip(seen["gradients"], theirs, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-3, atol=1e-6)
