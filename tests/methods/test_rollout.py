"""Rollouts against decoding without a cache, and sampling against the distribution that it must follow."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import Cache

from vrambench.methods.device import Device, get_device
from vrambench.methods.job import Job
from vrambench.methods.kv_cache import FilledLayer
from vrambench.methods.models.parts import trunk
from vrambench.methods.rollout import GREEDY, Sampling, generate, next_tokens

CPU = get_device("cpu")
MakeJob = Callable[..., Job]
ARCHITECTURES = ("tiny", "tiny-gpt2", "tiny-opt", "tiny-neox", "tiny-mistral")
PROMPTS = torch.randint(0, 256, (3, 5), generator=torch.Generator().manual_seed(0))


def model_of(made: Job) -> Any:
    return made.roles["policy"].module.model


@torch.no_grad()
def decode_without_cache(model: Any, prompts: torch.Tensor, count: int) -> torch.Tensor:
    tokens = prompts
    for _ in range(count):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return tokens


def sharpened(made: Job) -> Any:
    """The model with larger weights: random ones of their usual size barely prefer one token to another."""
    model = model_of(made)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_greedy_is_the_argmax_of_whole_forward_passes(
    job: MakeJob, model: str, adapter: str, checkpointing: bool
) -> None:
    made = sharpened(job(model=model, adapter=adapter, gradient_checkpointing=checkpointing))
    tokens = generate(made, PROMPTS, 7, GREEDY, CPU)
    assert tokens.shape == (3, 12)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens[:, :5], PROMPTS)
    assert len({tuple(row) for row in tokens[:, 5:].tolist()}) == 3  # each prompt has an answer of its own
    assert torch.equal(tokens, decode_without_cache(made, PROMPTS, 7))


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_checkpointing_is_on_again_afterwards(job: MakeJob, model: str) -> None:
    made = model_of(job(model=model, gradient_checkpointing=True))
    before = {name: getattr(part, "gradient_checkpointing", None) for name, part in made.named_modules()}
    assert True in before.values()
    generate(made, PROMPTS, 2, GREEDY, CPU)
    assert before == {name: getattr(part, "gradient_checkpointing", None) for name, part in made.named_modules()}
    assert made.training


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8", "nf4"])
def test_other_precisions_generate_as_many(job: MakeJob, precision: str) -> None:
    made = model_of(job(precision=precision, adapter="lora"))
    tokens = generate(made, PROMPTS, 3, Sampling(), CPU)
    assert tokens.shape == (3, 8)
    assert torch.equal(tokens[:, :5], PROMPTS)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 256


def test_a_trained_adapter_takes_part(job: MakeJob) -> None:
    made = sharpened(job(adapter="lora"))
    without = generate(made, PROMPTS, 7, GREEDY, CPU)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted = generate(made, PROMPTS, 7, GREEDY, CPU)
    assert not torch.equal(without, adapted)
    assert torch.equal(adapted, decode_without_cache(made, PROMPTS, 7))
    with made.disable_adapter():
        assert torch.equal(generate(made, PROMPTS, 7, GREEDY, CPU), without)


def test_end_of_sequence_does_not_stop_a_response(job: MakeJob) -> None:
    made = model_of(job())
    made.config.eos_token_id = int(generate(made, PROMPTS, 1, GREEDY, CPU)[0, -1])
    assert generate(made, PROMPTS, 6, GREEDY, CPU).shape == (3, 11)


def test_rollouts_keep_no_graph(job: MakeJob) -> None:
    made = model_of(job())
    assert not generate(made, PROMPTS, 2, Sampling(), CPU).requires_grad
    assert all(parameter.grad is None for parameter in made.parameters())


def test_sampling_repeats_with_its_seed(job: MakeJob) -> None:
    made = model_of(job())
    rollouts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        rollouts.append(generate(made, PROMPTS, 8, Sampling(top_p=0.9), CPU))
    assert torch.equal(rollouts[0], rollouts[1])
    assert not torch.equal(rollouts[0], rollouts[2])


def test_the_cache_gives_back_what_is_filled() -> None:
    cache = Cache(layers=[FilledLayer(6), FilledLayer(6)])
    keys, values = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    first = cache.update(keys, values, 0)
    assert torch.equal(first[0], keys)
    assert torch.equal(first[1], values)
    more = torch.randn(2, 3, 1, 5)
    second = cache.update(more, more, 0)
    assert torch.equal(second[0], torch.cat([keys, more], dim=2))
    assert second[0].untyped_storage().data_ptr() == first[0].untyped_storage().data_ptr()
    assert (cache.get_seq_length(0), cache.get_seq_length(1)) == (5, 0)


# --- drawing one token ---

DRAWS = 20_000


def frequencies(logits: torch.Tensor, sampling: Sampling, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    drawn = next_tokens(logits.expand(DRAWS, -1), sampling)
    return torch.bincount(drawn, minlength=logits.shape[-1]).double() / DRAWS


def chi_square(seen: torch.Tensor, expected: torch.Tensor) -> float:
    return float(DRAWS * ((seen - expected).square() / expected).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_drawn_tokens_follow_the_softmax(temperature: float, dtype: torch.dtype) -> None:
    logits = torch.linspace(-2, 2, 16).to(dtype)
    expected = (logits.double() / temperature).softmax(-1)
    # 15 degrees of freedom: more than 44.3 in one case of ten thousand.
    assert chi_square(frequencies(logits, Sampling(temperature)), expected) < 44.3
    assert chi_square(frequencies(logits, Sampling(temperature * 1.2)), expected) > 44.3


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.3, [3]), (0.4, [3]), (0.5, [3, 1]), (0.7, [3, 1]), (0.75, [3, 1, 0]), (0.9, [3, 1, 0, 4]), (1.0, range(5))],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: list[int]) -> None:
    probabilities = torch.tensor([0.15, 0.3, 0.05, 0.4, 0.1])
    seen = frequencies(probabilities.log(), Sampling(top_p=top_p))
    assert seen.nonzero().flatten().tolist() == sorted(kept)
    expected = probabilities.double()[sorted(kept)]
    # At most four degrees of freedom: more than 23.5 in one case of ten thousand.
    assert chi_square(seen[sorted(kept)], expected / expected.sum()) < 23.5


def test_top_p_goes_by_the_tempered_distribution() -> None:
    logits = torch.tensor([0.4, 0.3, 0.3]).log()
    assert frequencies(logits, Sampling(temperature=0.01, top_p=0.9)).tolist() == [1.0, 0.0, 0.0]
    assert frequencies(logits, Sampling(temperature=10.0, top_p=0.9)).min() > 0.3


def test_temperature_zero_takes_the_largest() -> None:
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    assert torch.equal(next_tokens(logits, Sampling(temperature=0.0, top_p=0.5)), logits.argmax(-1))
    assert torch.equal(torch.get_rng_state(), state)


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((8,), float("-inf"))
    logits[[2, 5]] = 0.0
    for sampling in (Sampling(), Sampling(top_p=0.9)):
        seen = frequencies(logits, sampling)
        assert seen.nonzero().flatten().tolist() == [2, 5]


# --- what a rollout allocates ---


class Allocations(TorchDispatchMode):
    """Bytes of the storages that operators have made since `take` was last called, on devices of one type."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type
        self.bytes = 0
        self.alive: list[torch.Tensor] = []  # so that no address is used twice
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._see((args, kwargs), new=False)
        result = func(*args, **(kwargs or {}))
        self._see(result, new=True)
        return result

    def _see(self, tree: Any, new: bool) -> None:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self.device_type:
                storage = leaf.untyped_storage()
                if storage._cdata not in self.seen:
                    self.seen.add(storage._cdata)
                    self.alive.append(leaf)
                    self.bytes += storage.nbytes() if new else 0

    def take(self) -> int:
        taken, self.bytes = self.bytes, 0
        return taken


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("model", ["tiny", "tiny-gpt2", "tiny-neox"])
def test_after_the_first_step_every_step_allocates_alike(job: MakeJob, model: str, device: str, top_p: float) -> None:
    made = job(model=model, precision="bf16", device=device)
    decoder = trunk(model_of(made))
    steps: list[int] = []
    with Allocations(device) as allocations:
        decoder.register_forward_pre_hook(lambda module, inputs: steps.append(allocations.take()))
        tokens = generate(model_of(made), PROMPTS.to(device), 6, Sampling(top_p=top_p), get_device(device))
    steps.append(allocations.take())
    assert tokens.shape == (3, 11)
    assert tokens.device.type == device
    _, first, *later = steps  # what comes before the prompt's own pass, that pass, one step for each token after
    assert len(later) == (5 if device == "cpu" else 2), "the simulated device shows the first and the last"
    assert set(later) == {later[0]}
    assert 0 < later[0] < first


def test_the_steps_that_meta_shows_are_the_first_and_the_last(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 the attention kernel copies the keys for grouped heads, so a step's bytes grow with what is filled."""
    made = job(device="meta")
    decoder = trunk(model_of(made))

    def steps() -> list[int]:
        seen: list[int] = []
        with Allocations("meta") as allocations:
            hook = decoder.register_forward_pre_hook(lambda module, inputs: seen.append(allocations.take()))
            generate(model_of(made), PROMPTS.to("meta"), 12, GREEDY, made.device)
        hook.remove()
        return [*seen[1:], allocations.take()]

    shown = steps()
    monkeypatch.setattr(Device, "growing", lambda self, items: iter(items))
    everything = steps()
    assert (len(shown), len(everything)) == (3, 12)
    assert shown == [everything[0], everything[1], everything[-1]]
    growth = {second - first for first, second in pairwise(everything[1:])}
    assert len(growth) == 1, "on a straight line"
    assert growth.pop() > 0
