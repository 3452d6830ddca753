"""DPO and reward models against TRL's own trainers, which compute the loss of the same tokens on the same model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.trainers import trained
from vrambench.methods.algorithms import dpo
from vrambench.methods.algorithms.reward import pair_losses
from vrambench.methods.cell import resolve
from vrambench.methods.device import get_device
from vrambench.methods.job import Job
from vrambench.methods.models.losses.scored import token_logprobs

pytest.importorskip("trl")

PROMPT, RESPONSE = 5, 7
AXES = {"precision": "fp32", "adapter": "none", "optimizer": "adamw_torch", "offload": "none"}
LIKE_TRL = {
    "sigmoid": {}, "hinge": {}, "ipo": {}, "exo_pair": {"label_smoothing": 0.1}, "nca_pair": {},
    "robust": {"label_smoothing": 0.1}, "bco_pair": {}, "sppo_hard": {}, "apo_zero": {}, "apo_down": {}, "sigmoid_norm": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("model")
    trained.write_model(made, tied=False)
    return made


def _config(kind: Any, output: Path, **more: Any) -> Any:
    common = {
        "output_dir": str(output),
        "use_cpu": True,
        "report_to": "none",
        "bf16": False,
        "max_length": PROMPT + RESPONSE,
    }
    return kind(**common | {"gradient_checkpointing": False, "per_device_train_batch_size": 3} | more)


def _rows() -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"prompt": ["<pad>"], "chosen": ["<eos>"], "rejected": ["<pad>"]})


@pytest.fixture(scope="module")
def trainer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's DPOTrainer, in float64, with a reference that is another model."""
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    policy, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        for number, weight in enumerate(reference.parameters()):
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
    return DPOTrainer(
        model=policy,
        ref_model=reference,
        args=_config(DPOConfig, tmp_path_factory.mktemp("out")),
        train_dataset=_rows(),
        processing_class=trained._tokenizer(),
    )


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    """As TRL's collator makes it: three pairs, of which one response is shorter than the others."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, (6, PROMPT + RESPONSE), generator=random)
    tokens[3:, :PROMPT] = tokens[:3, :PROMPT]
    mask = torch.ones_like(tokens)
    mask[4, -3:] = 0
    completion = mask.clone()
    completion[:, :PROMPT] = 0
    return {"input_ids": tokens, "attention_mask": mask, "completion_mask": completion}


def sums(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    logprobs = logits.log_softmax(dim=-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    return (logprobs * batch["completion_mask"][:, 1:]).sum(dim=1)


@pytest.mark.parametrize("kind", LIKE_TRL)
def test_losses_are_those_of_dpo_trainer(trainer: Any, batch: dict[str, torch.Tensor], kind: str) -> None:
    options = dpo.DPOOptions(loss_type=kind, beta=0.3, **LIKE_TRL[kind])
    trainer.loss_types, trainer.loss_weights = [kind], [1.0]
    trainer.beta, trainer.label_smoothing = options.beta, options.label_smoothing
    theirs = trainer._compute_loss(trainer.model, dict(batch), return_outputs=False)
    with torch.no_grad():
        ratios = sums(trainer.model, batch) - sums(trainer.ref_model, batch)
    compared = dpo.Compared(*ratios.chunk(2), *batch["completion_mask"].sum(dim=1).chunk(2))
    torch.testing.assert_close(dpo.preference_losses(compared, options).mean(), theirs.detach(), rtol=1e-7, atol=1e-9)
    told = {name: value[-1] for name, value in trainer._metrics["eval"].items() if value}
    ahead = options.beta * compared.ahead
    assert float(ahead.mean()) == pytest.approx(told["rewards/margins"], rel=1e-6)
    assert float((ahead > 0).double().mean()) == pytest.approx(told["rewards/accuracies"], rel=1e-6)


def test_every_loss_of_ours_is_checked() -> None:
    assert {*LIKE_TRL, *dpo.REFERENCE_FREE} == set(dpo.LOSSES)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("ours", "theirs"), [("cpo", "sigmoid"), ("simpo", "simpo")])
def test_losses_without_reference_are_those_of_cpo_trainer(ours: str, theirs: str, smoothing: float) -> None:
    from trl.experimental.cpo import CPOTrainer

    sums, tokens = -torch.tensor([9.0, 20.0, 3.0, 7.0]).double(), torch.tensor([4, 6, 2, 5])
    options = dpo.DPOOptions(loss_type=ours, beta=0.7, label_smoothing=smoothing)  # type: ignore[arg-type]
    logps = sums / tokens if ours == "simpo" else sums  # concatenated_forward: average_log_prob
    itself = SimpleNamespace(
        alpha=0.0, beta=0.7, simpo_gamma=0.5, loss_type=theirs, label_smoothing=smoothing,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    expected, *_ = CPOTrainer.cpo_loss(itself, *logps.chunk(2))
    compared = dpo.Compared(*sums.chunk(2), *tokens.chunk(2))
    torch.testing.assert_close(dpo.preference_losses(compared, options), expected, rtol=1e-9, atol=1e-9)


def test_orpo_is_that_of_orpo_trainer() -> None:
    from trl.experimental.orpo import ORPOTrainer

    sums, tokens = -torch.tensor([9.0, 20.0, 3.0, 7.0]).double(), torch.tensor([4, 6, 2, 5])
    itself = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device=torch.device("cpu")))
    losses, *_ = ORPOTrainer.odds_ratio_loss(itself, *(sums / tokens).chunk(2))
    compared = dpo.Compared(*sums.chunk(2), *tokens.chunk(2))
    ours = dpo.preference_losses(compared, dpo.DPOOptions(loss_type="orpo"))
    torch.testing.assert_close(ours, -losses.double(), rtol=1e-6, atol=1e-7)  # theirs is in fp32


def test_cross_entropy_is_of_the_tokens_that_count() -> None:
    logits = torch.randn(2, 8, 30, generator=torch.Generator().manual_seed(3)).double()
    tokens = torch.randint(30, (2, 8), generator=torch.Generator().manual_seed(4))
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    labels = tokens.clone()
    labels[:, -3:][mask == 0] = -100
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(dpo.cross_entropy(logprobs, mask), expected)
    response = torch.nn.functional.cross_entropy(logits[:, -3:].flatten(0, 1), labels[:, -3:].flatten())
    torch.testing.assert_close(dpo.cross_entropy(logprobs[:, -3:], mask), response)


def job_on(folder: Path, algorithm: str, **settings: Any) -> Job:
    work = {"model": str(folder), "weights": "pretrained", "prompt_tokens": PROMPT, "response_tokens": RESPONSE}
    made = Job(resolve(AXES | {"algorithm": algorithm}, work | {"batch_size": 3} | settings), get_device("cpu"))
    made.load()
    return made


def collated(made: Job, step: int) -> dict[str, torch.Tensor]:
    pairs = made.data.pairs(step, 3)
    ones = torch.ones_like(pairs.tokens)
    return {
        "input_ids": pairs.tokens,
        "attention_mask": ones,
        "completion_mask": torch.cat((0 * ones[:, :PROMPT], pairs.mask), dim=1),
    }


@pytest.mark.parametrize("loss", ["scored", "nll"])
def test_a_step_has_the_loss_and_gradients_of_dpo_trainer(folder: Path, trainer: Any, loss: str) -> None:
    made = job_on(folder, "dpo", loss=loss, reference="precomputed")
    ours: Any = made.trainer
    policy: Any = made.roles["policy"].module
    pairs = made.data.pairs(0, 3)
    batch = collated(made, 0)
    with torch.no_grad():
        known = sums(trainer.ref_model, batch).float()
    metrics = ours._metrics(pairs, known)
    metrics["loss"].backward()
    trainer.loss_types, trainer.loss_weights, trainer.beta, trainer.label_smoothing = ["sigmoid"], [1.0], 0.1, 0.0
    trainer.model.zero_grad()
    theirs = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    theirs.backward()
    assert float(metrics["loss"].detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    gradients = dict(policy.model.named_parameters())
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(gradients[name].grad.double(), weight.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("coefficient", [0.0, 0.01])
def test_a_step_has_the_loss_and_gradients_of_reward_trainer(folder: Path, tmp_path: Path, coefficient: float) -> None:
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    made = job_on(folder, "reward", rm={"center_rewards_coefficient": coefficient})
    ours: Any = made.trainer
    module: Any = made.roles["reward"].module
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float64)
    with torch.no_grad():
        model.score.weight.copy_(module.model.score.weight)
    trainer = RewardTrainer(
        model=model,
        args=_config(RewardConfig, tmp_path, center_rewards_coefficient=coefficient or None),
        train_dataset=_rows(),
        processing_class=trained._tokenizer(),
    )
    batch = collated(made, 0)
    metrics = ours._metrics(made.data.pairs(0, 3))
    metrics["loss"].backward()
    theirs = trainer.compute_loss(trainer.model, {name: batch[name] for name in ("input_ids", "attention_mask")})
    theirs.backward()
    told = {name: value[-1] for name, value in trainer._metrics["eval"].items() if value}
    assert float(metrics["loss"].detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert float(metrics["margin"]) == pytest.approx(told["margin"], rel=1e-4, abs=1e-6)
    assert float(metrics["accuracy"]) == pytest.approx(told["accuracy"], rel=1e-6)
    gradients = dict(module.model.named_parameters())
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(gradients[name].grad.double(), weight.grad, rtol=1e-3, atol=1e-6)
    scores = torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64)
    assert float(pair_losses(*scores, 0.0).mean()) == pytest.approx(
        float(-torch.nn.functional.logsigmoid(scores[0] - scores[1]).mean())
    )


def test_token_logprobs_of_a_dpo_batch(trainer: Any, batch: dict[str, torch.Tensor]) -> None:
    """What `loss: scored` computes is what TRL sums."""
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"]).logits[:, :-1]
        made = token_logprobs(logits, batch["input_ids"][:, 1:])
        ours = (made * batch["completion_mask"][:, 1:]).sum(dim=1)
        torch.testing.assert_close(ours.double(), sums(trainer.model, batch), rtol=1e-5, atol=1e-5)
