"""Pairs: where they come from, what a file's lines become, and what the algorithms that learn from them make of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vrambench.methods.cell import resolve
from vrambench.methods.data import Ahead, Chain, Pairs, Shapes
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.models.config import model_config
from vrambench.methods.pairs import open_pairs
from vrambench.methods.workload import Workload

MakeJob = Callable[..., Job]
CPU = get_device("cpu")
WORK = Workload(prompt_tokens=4, response_tokens=3)


def opened(workload: Workload, model: str = "tiny") -> Any:
    return open_pairs(workload, model_config(model), CPU)


def written(folder: Path, *lines: object) -> Workload:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return WORK.model_copy(update={"data": str(path)})


def test_the_rejected_response_leaves_the_chain() -> None:
    source = opened(WORK)
    pairs = source.pairs(2, 50)
    chosen, rejected = pairs.halves
    assert torch.equal(chosen.tokens[:, :4], rejected.tokens[:, :4])
    assert torch.equal(chosen.tokens, Chain(0, 256, torch.device("cpu")).sequences(2, 50, 7))
    assert int(rejected.tokens[:, 4:].min()) >= 128
    assert len(set(rejected.tokens[:, 4:].flatten().tolist())) > 60
    assert pairs.mask.shape == (100, 3)
    assert bool((pairs.mask == 1).all())
    assert all(map(torch.equal, pairs, source.pairs(2, 50)))
    assert not torch.equal(pairs.tokens, source.pairs(3, 50).tokens)


def test_a_files_pairs_are_cut_and_filled(tmp_path: Path) -> None:
    line = {"prompt": "abcdef", "chosen": "xyzw", "rejected": "q"}
    source = opened(written(tmp_path, line).model_copy(update={"model": "gpt2"}), "gpt2")
    pairs = source.pairs(0, 2)
    end = 50256
    assert pairs.tokens.tolist() == [[*b"cdefxyz"]] * 2 + [[*b"cdefq", end, end]] * 2
    assert pairs.mask.tolist() == [[1, 1, 1]] * 2 + [[1, 1, 0]] * 2
    short = opened(written(tmp_path, {"prompt": "a", "chosen": "", "rejected": "bc"})).pairs(0, 1)
    assert short.tokens.tolist() == [[0, 0, 0, 97, 0, 0, 0], [0, 0, 0, 97, 98, 99, 0]]
    assert short.mask.tolist() == [[1, 0, 0], [1, 1, 0]], "a response without a token has its filling"


def test_a_files_pairs_are_drawn_by_step(tmp_path: Path) -> None:
    lines = [{"prompt": "abcd", "chosen": f"x{number:02}", "rejected": f"y{number:02}"} for number in range(30)]
    source = opened(written(tmp_path, *lines))
    pairs = source.pairs(0, 20)
    chosen, rejected = (half.tokens[:, 4:].tolist() for half in pairs.halves)
    assert [[121, *row[1:]] for row in chosen] == rejected
    assert len({tuple(row) for row in chosen}) > 8
    assert torch.equal(pairs.tokens, source.pairs(0, 20).tokens)
    assert not torch.equal(pairs.tokens, source.pairs(1, 20).tokens)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ({"prompt": "a", "chosen": "b"},),
            r"line 1: no field .rejected. .*; a line needs prompt, chosen, ",
        ),
        (({"prompt": "a", "chosen": "b", "rejected": "c"}, {"text": "a"}), "line 2: no field 'prompt'"),
        (({"prompt": "a", "chosen": ["b"], "rejected": "c"},), "line 1: chosen is a list, not text"),
        (("abc",), "line 1: a str, not an object"),
        ((), "is empty"),
    ],
)
def test_bad_files_are_named_with_line_and_field(tmp_path: Path, lines: tuple[object, ...], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        opened(written(tmp_path, *lines))
    assert caught.value.field == "data"


def test_pairs_are_no_text_file(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("abc")
    with pytest.raises(
        ConfigurationError, match=r"is no \.jsonl file, and pairs are lines with prompt, chosen and rejected"
    ):
        opened(WORK.model_copy(update={"data": str(path)}))


def test_tokens_that_the_model_lacks(tmp_path: Path) -> None:
    config = model_config("tiny")
    config.vocab_size = 64
    with pytest.raises(ConfigurationError, match="needs token 122"):
        open_pairs(written(tmp_path, {"prompt": "z", "chosen": "z", "rejected": "z"}), config, CPU)


def test_pairs_are_split_with_their_halves_together() -> None:
    pairs = Pairs(torch.arange(10)[:, None], 10 * torch.arange(10)[:, None])
    parts = pairs.split(2)
    assert [part.tokens.flatten().tolist() for part in parts] == [[0, 1, 5, 6], [2, 3, 7, 8], [4, 9]]
    assert [part.mask.flatten().tolist() for part in parts][1] == [20, 30, 70, 80]
    assert pairs.split(5) == [pairs]


def test_what_was_prepared_is_given_out_once() -> None:
    source = opened(WORK)
    ahead = Ahead(Shapes(torch.device("cpu")), paired=source)
    ahead.prepare(3, 8, 7)
    (prepared,) = ahead._pairs.values()
    assert ahead.pairs(3, 4) is prepared
    again = ahead.pairs(3, 4)
    assert again is not prepared
    assert torch.equal(again.tokens, prepared.tokens)


# --- what is learnt of them ---


def steps(made: Job, count: int = 2) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in made.step(index).items()} for index in range(count)]


@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("more", [{}, {"gradient_accumulation_steps": 2}])
def test_a_precomputed_reference_gives_the_same_numbers(job: MakeJob, adapter: str, more: dict[str, Any]) -> None:
    settings = {"algorithm": "dpo", "adapter": adapter, "learning_rate": 1e-2, "steps": 2, "warmup_steps": 1, **more}
    held = steps(job(**settings), 3)
    precomputed = steps(job(**settings, reference="precomputed"), 3)
    assert precomputed == [pytest.approx(one, rel=1e-5, abs=1e-6) for one in held]
    assert held[0]["margin"] == pytest.approx(0, abs=1e-6)
    assert abs(held[2]["margin"]) > 1e-3


def test_beyond_its_steps_a_precomputed_reference_begins_again(job: MakeJob) -> None:
    made = job(algorithm="dpo", reference="precomputed", steps=2, warmup_steps=1)
    trainer: Any = made.trainer
    assert sorted(trainer.precomputed) == [0, 1, 2]
    for step in range(3):
        (first, known), (again, known_again) = (trainer._batches(step + epoch, 2, 2)[0] for epoch in (0, 3))
        assert torch.equal(first.tokens, again.tokens)
        assert known is known_again
    assert made.step(5)["loss"].isfinite()


@pytest.mark.parametrize("loss", ["nll", "chunked_nll"])
@pytest.mark.parametrize("kind", ["sigmoid", "orpo"])
def test_every_loss_gives_the_same_numbers(job: MakeJob, kind: str, loss: str) -> None:
    settings = {"algorithm": "dpo", "learning_rate": 1e-2, "dpo": {"loss_type": kind}}
    scored = steps(job(**settings))
    ours = [{name: one[name] for name in scored[0]} for one in steps(job(**settings, loss=loss))]
    assert ours == [pytest.approx(one, rel=1e-4, abs=1e-5) for one in scored]


def test_halves_apart_give_the_same_numbers(job: MakeJob) -> None:
    both, apart = (
        steps(job(algorithm="dpo", learning_rate=1e-2, dpo={"concatenated": value})) for value in (True, False)
    )
    assert apart == [pytest.approx(one, rel=1e-5, abs=1e-6) for one in both]


@pytest.mark.parametrize("algorithm", ["dpo", "reward"])
def test_accumulated_batches_count_as_one(job: MakeJob, algorithm: str) -> None:
    whole = steps(job(algorithm=algorithm, batch_size=4))
    parts = steps(job(algorithm=algorithm, batch_size=2, gradient_accumulation_steps=2))
    assert parts == [pytest.approx(one, rel=1e-4, abs=1e-5) for one in whole]


@pytest.mark.parametrize("algorithm", ["dpo", "reward"])
def test_what_fills_a_response_does_not_count(job: MakeJob, algorithm: str, tmp_path: Path) -> None:
    """The same pairs in longer rows: the same numbers."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "abcd", "chosen": "xy", "rejected": "zwv"}) + "\n")
    short, long = (steps(job(algorithm=algorithm, data=str(path), response_tokens=count)) for count in (4, 9))
    assert long == [pytest.approx(one, rel=1e-4, abs=1e-5) for one in short]


@pytest.mark.parametrize("algorithm", ["dpo", "reward"])
def test_evaluation_is_of_pairs_that_no_step_has(job: MakeJob, algorithm: str) -> None:
    made = job(algorithm=algorithm, eval_batch_size=2, max_eval_samples=5)
    before = float(made.evaluate()["eval_loss"])
    assert before == pytest.approx(0.693, abs=0.3)
    assert next(role.module for role in made.roles.values() if role.learner).training
    if algorithm == "dpo":
        other = job(algorithm=algorithm, eval_batch_size=2, max_eval_samples=5, reference="precomputed")
        assert float(other.evaluate()["eval_loss"]) == pytest.approx(before, rel=1e-5)


def test_a_reward_model_is_a_classifier_with_a_trained_head(job: MakeJob) -> None:
    made = job(algorithm="reward", adapter="lora", precision="nf4", save="model")
    assert list(made.roles) == ["reward"]
    model: Any = made.roles["reward"].module.model
    trained = {name.rpartition("default")[0] or name for name, each in model.named_parameters() if each.requires_grad}
    assert any(name.endswith("score.modules_to_save.") for name in trained)
    assert all("lora_" in name or "score" in name for name in trained)
    assert any(weight is model.base_model.model.score.modules_to_save["default"].weight for weight in made.saved())


def test_a_model_without_a_classifier_is_told(job: MakeJob) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^model: transformers has no classifier of sequences for 'granite-3.3-2b' "
    ):
        job(algorithm="reward", device="meta", model="granite-3.3-2b")


def test_what_label_smoothing_does_not_change_is_an_error() -> None:
    axes = {"precision": "fp32", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "dpo"}
    for options, said in (
        (
            {"loss_type": "hinge", "label_smoothing": 0.1},
            "^dpo: label_smoothing changes sigmoid, .* and loss_type is hinge: take 0, not 0.1$",
        ),
        ({"loss_type": "exo_pair"}, "loss_type exo_pair needs a label_smoothing above 0"),
        ({"loss_type": "hing"}, "'hing' is not one of sigmoid, hinge, .* did you mean 'hinge'"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            resolve(axes, {"dpo": options})


def test_reference_auto_is_none_where_the_loss_has_none() -> None:
    axes = {"precision": "fp32", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "dpo"}
    assert resolve(axes, {}).workload.reference == "adapter_off"
    assert resolve(axes | {"adapter": "none"}, {}).workload.reference == "copy"
    for kind in ("simpo", "cpo", "orpo"):
        assert resolve(axes, {"dpo": {"loss_type": kind}}).workload.reference == "none"
    assert resolve(axes, {"max_length": 100, "prompt_tokens": 30}).workload.response_tokens == 70


def test_the_simulated_device_has_shapes() -> None:
    meta = dataclasses.replace(get_device("meta"))
    pairs = open_pairs(WORK.model_copy(update={"data": "nowhere.jsonl"}), model_config("tiny"), meta).pairs(0, 3)
    assert pairs.tokens.shape == (6, 7)
    assert pairs.mask.shape == (6, 3)
    assert pairs.tokens.is_meta
