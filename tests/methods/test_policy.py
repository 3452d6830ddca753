"""Scores of a policy against the whole model's logits, and what may depend on what."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vrambench.methods.job import Job
from vrambench.methods.models.losses.scored import token_logprobs
from vrambench.methods.models.parts import Inputs, hidden_states
from vrambench.methods.models.policy import Critic, Policy, scalar
from vrambench.methods.models.scalar import ScalarModel

MakeJob = Callable[..., Job]
ARCHITECTURES = ("tiny", "tiny-gpt2", "tiny-opt", "tiny-neox", "tiny-mistral")
TOKENS = torch.randint(0, 256, (3, 10), generator=torch.Generator().manual_seed(0))


def policy(made: Job) -> Any:
    return made.roles["policy"].module


def reference(logits: torch.Tensor, start: int, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities the long way: log_softmax of all logits, then gathered."""
    logprobs = (logits.double() / temperature).log_softmax(-1)
    return logprobs[:, start - 1 : -1].gather(-1, TOKENS[:, start:, None]).squeeze(-1)


@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_logprobs_are_the_models(job: MakeJob, model: str, adapter: str) -> None:
    scored = policy(job(model=model, adapter=adapter))
    with torch.no_grad():
        logits = scored.model(TOKENS).logits
        for start, temperature in ((1, 1.0), (4, 0.7), (9, 2.0)):
            scores = scored(TOKENS, start, temperature)
            assert scores.logprobs.shape == (3, 10 - start)
            assert scores.logprobs.dtype == torch.float32
            assert scores.values is None
            torch.testing.assert_close(
                scores.logprobs.double(), reference(logits, start, temperature), rtol=1e-5, atol=2e-6
            )


def test_a_logprob_depends_on_its_token_and_those_before_it(job: MakeJob) -> None:
    scored = policy(job(algorithm="ppo"))
    changed = TOKENS.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 256
    with torch.no_grad():
        before, after = scored(TOKENS, 4), scored(changed, 4)
    assert torch.equal(before.logprobs[:, :2], after.logprobs[:, :2])
    assert (before.logprobs[:, 2:] != after.logprobs[:, 2:]).all()
    # A value is the expected return before its token: it may not see that token.
    assert torch.equal(before.values[:, :3], after.values[:, :3])
    assert (before.values[:, 3:] != after.values[:, 3:]).all()


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_values_are_the_head_on_the_states_before_each_token(job: MakeJob, model: str) -> None:
    scored = policy(job(model=model, algorithm="ppo"))
    with torch.no_grad():
        scores = scored(TOKENS, 4)
        states = hidden_states(scored.model, Inputs(TOKENS))
        expected = states[:, 3:-1] @ scored.value_head.weight[0]
    assert scores.values.shape == scores.logprobs.shape == (3, 6)
    torch.testing.assert_close(scores.values, expected)


def test_a_critic_sees_what_a_value_head_sees(job: MakeJob) -> None:
    """The same trunk and the same head, apart from the policy: the same values."""
    scored = policy(job(algorithm="ppo"))
    trunk = scored.model.base_model
    apart = Critic(ScalarModel(trunk, scored.value_head))
    with torch.no_grad():
        torch.testing.assert_close(apart(TOKENS, 4), scored(TOKENS, 4).values)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_logits_give_fp32_logprobs(job: MakeJob, precision: str) -> None:
    scored = policy(job(precision=precision, model="tiny-gpt2"))
    with torch.no_grad():
        logits = scored.model(TOKENS).logits
        scores = scored(TOKENS, 4)
    assert logits.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert scores.logprobs.dtype == torch.float32
    # The head may round its product on fewer rows differently; the softmax after it may not round to half again.
    own = token_logprobs(logits[:, 3:-1], TOKENS[:, 4:])
    torch.testing.assert_close(own.double(), reference(logits, 4), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scores.logprobs, own, rtol=0, atol=2e-2)
    assert not torch.equal(own, own.to(logits.dtype).float())


def test_token_logprobs_of_large_logits_stay_finite() -> None:
    logits = torch.tensor([[[3e4, 0.0, -3e4]]], dtype=torch.bfloat16)
    assert token_logprobs(logits, torch.tensor([[0]])).item() == 0.0
    assert token_logprobs(logits, torch.tensor([[2]])).item() == pytest.approx(-6e4, rel=1e-2)


def test_gradients_reach_the_trunk_and_both_heads(job: MakeJob) -> None:
    scored = policy(job(algorithm="ppo"))
    scores = scored(TOKENS, 4)
    (scores.logprobs.sum() + scores.values.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in scored.parameters())


def test_a_scalar_head_works_in_its_own_type() -> None:
    head = nn.Linear(4, 1, bias=False)
    states = torch.randn(2, 3, 4).to(torch.bfloat16)
    values = scalar(head, states)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, F.linear(states.float(), head.weight).squeeze(-1))


def test_logits_are_kept_where_trls_trainer_keeps_them_and_are_trained_on(job: MakeJob) -> None:
    scored, whole = (policy(job(algorithm="ppo", loss=loss)) for loss in ("scored", "nll"))
    assert scored(TOKENS, 4).logits is None
    assert whole(TOKENS, 4).logits.shape == (3, 10, 256)
    with torch.no_grad():
        assert whole(TOKENS, 4).logits is None


def test_hidden_states_are_gone_where_trls_trainer_lets_go_of_them(job: MakeJob) -> None:
    """GRPO's and RLOO's take entropies of logits alone; a frozen head keeps no states for a backward pass."""
    made = job(algorithm="grpo", loss="selective", adapter="lora", rollout_batch=4, group_size=2)
    scorer = policy(made).loss.scorer
    states: list[weakref.ref[torch.Tensor]] = []

    def prepare(model: nn.Module, given: torch.Tensor, start: int) -> torch.Tensor:
        states.append(weakref.ref(given))
        return scorer.prepare(model, given, start)

    def logprobs(*given: Any) -> torch.Tensor:
        assert states[0]() is None
        return scorer.logprobs(*given)

    watched = dataclasses.replace(scorer, prepare=prepare, logprobs=logprobs)
    watching = Policy(policy(made).model, None, dataclasses.replace(policy(made).loss, scorer=watched))
    assert watching(TOKENS, start=4).logprobs.shape == (len(TOKENS), TOKENS.shape[1] - 4)


def test_ppo_drops_kept_logits_with_each_optimizer_step(job: MakeJob) -> None:
    """Not earlier: TRL's trainer has those of a micro-batch while it computes the next one's."""
    made = job(algorithm="ppo", loss="nll", gradient_accumulation_steps=2, batch_size=1)
    module = policy(made)
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def before(module: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled():
            alive.append(sum(ref() is not None for ref in held))

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        if output.logits is not None:
            held.append(weakref.ref(output.logits))

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)
    made.step(0)
    assert alive[:4] == [0, 1, 0, 1]


def test_no_logits_are_made_for_the_prompt(job: MakeJob) -> None:
    scored: Policy = policy(job())
    seen: list[torch.Size] = []
    scored.model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))  # type: ignore[union-attr,operator]
    scored(TOKENS, 7)
    assert seen == [torch.Size([3, 3, 256])]
