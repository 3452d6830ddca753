"""What one optimizer step holds on the CPU: that of a trainer's own job (TRL's or transformers'), and that of a cell.

Both run two steps on the same pretrained model, and the second is traced, when the optimizer has its state. `learn` is
everything from the first forward pass on, `optimizer_step` from there until the gradients are freed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vrambench.bench.measure.ledger import weights
from vrambench.bench.measure.meters.storages import StorageTrace, existing_tensors, storage_bytes
from vrambench.methods.batches import Batch, Batches, Row, best_fit_decreasing, wrapped
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.job import Job, Role
from vrambench.methods.offload.learner import tensors_in
from vrambench.methods.workload import Workload

STEPS = 2
"""Optimizer steps; the last is traced."""
BATCH, TOKENS = 4, 96
VOCABULARY, WIDTH, INNER, LAYERS = 1024, 128, 384, 2
TIED_VOCABULARY = 4096
"""Of the model whose head is its table of embeddings, which is most of it."""
AXES = ("precision", "adapter", "optimizer", "offload", "algorithm")


@dataclass(frozen=True)
class Held:
    """Bytes of tensors in the traced step: the most that was live in each phase, and what weights, gradients (before the step)
    and optimizer state (after it) were."""

    peaks: dict[str, int]
    weights: int
    gradients: int
    state: int


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A trainer's job and the cell that says the same. `trl`: SFTTrainer, else transformers' Trainer; with `pairs` the one of TRL's
    trainers of pairs that it names. `tied`: on the model with tied embeddings. `load`: what from_pretrained is told; `prepare`:
    what a script does with the model before it gives it to the trainer; `peft`: LoraConfig's arguments; `arguments`: those of the
    trainer's own configuration. `axes`, `settings`: the cell's."""

    name: str
    trl: bool
    axes: str
    tied: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    load: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], Any] = lambda model: model
    peft: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    documents: tuple[int, ...] = ()
    """Tokens of each of the dataset's rows, in their order; where there are none, all have TOKENS."""
    pairs: Literal["dpo", "reward"] | None = None
    """Half of each sequence is its prompt."""


def write_model(folder: Path, *, tied: bool) -> None:
    """A Llama of two layers with random weights, as from_pretrained reads it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=TIED_VOCABULARY if tied else VOCABULARY,
        tie_word_embeddings=tied,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


class Watch:
    """Follows one step: `begin`, `enter` another phase, `end`. `before`: bytes that were live before there was a job."""

    def __init__(self) -> None:
        gc.collect()
        self._before = storage_bytes(existing_tensors(), "cpu", set())
        self._trace = StorageTrace("cpu")
        self._gradients = 0

    def begin(self) -> None:
        self._trace.__enter__()
        self._trace.begin_phase("learn")

    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """All gradients are there; the optimizer's turn."""
        self._gradients = storage_bytes([one.grad for one in parameters if one.grad is not None], "cpu", set())
        self._trace.begin_phase("optimizer_step")

    def end(self) -> None:
        self._trace.__exit__(None, None, None)

    def held(self, models: Iterable[nn.Module], state: Any) -> Held:
        return Held(
            peaks={name: peak - self._before for name, peak in self._trace.phase_peaks.items()},
            weights=storage_bytes([one for model in models for one in weights(model)], "cpu", set()),
            gradients=self._gradients,
            state=storage_bytes(tensors_in(state), "cpu", set()),
        )


class Known(Batches):
    """Batches of known documents, in their order."""

    def __init__(self, workload: Workload, documents: tuple[int, ...]) -> None:
        super().__init__(workload)
        packs = {
            "none": lambda: [(length,) for length in documents],
            "bfd": lambda: best_fit_decreasing(documents, TOKENS),
        }
        self._known: list[Row] = packs.get(workload.packing, lambda: wrapped(documents, TOKENS))()

    def of_step(self, step: int) -> tuple[Batch, ...]:
        return (self._batch(self._known[step * BATCH : (step + 1) * BATCH]),)


def cell_of(configuration: Configuration, folder: Path) -> Cell:
    """The cell that says what the configuration says."""
    settings = {
        "model": str(folder),
        "weights": "pretrained",
        "batch_size": BATCH,
        "prompt_tokens": TOKENS // 2 if configuration.pairs else 1,
        "response_tokens": TOKENS // 2 if configuration.pairs else TOKENS - 1,
        "learning_rate": 1e-3,
        "loss": "scored" if configuration.pairs == "reward" else "nll",
    }
    return resolve(dict(zip(AXES, configuration.axes.split(), strict=True)), settings | dict(configuration.settings))


def ours(configuration: Configuration, folder: Path) -> Held:
    """The cell's job."""
    cell = cell_of(configuration, folder)
    watch = Watch()
    traced = False

    def trained() -> Role:
        return next(role for role in job.roles.values() if role.learner)

    def enter(phase: str) -> None:
        if traced and phase == "optimizer_step":
            watch.step(trained().module.parameters())

    job = Job(cell, get_device("cpu"), enter)
    job.load()
    if configuration.documents:
        assert job.data.batched is not None
        job.data.batched.batches = Known(cell.workload, configuration.documents)
    for index in range(STEPS):
        traced = index == STEPS - 1
        job.prepare(index)
        if traced:
            watch.begin()
        job.step(index)
    watch.end()
    learner = trained().learner
    assert learner is not None
    return watch.held([role.module for role in job.roles.values()], list(learner.optimizer_state()))


def theirs(configuration: Configuration, folder: Path, output: Path) -> Held:
    """The trainer's own job."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

    watch = Watch()

    class Tag(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for group in kwargs["optimizer"].param_groups:
                if "foreach" in group:
                    group["foreach"] = True  # what torch itself takes on CUDA, and not on the CPU

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == STEPS - 1:
                watch.begin()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == STEPS - 1:
                watch.step(kwargs["model"].parameters())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == STEPS:
                watch.end()

    torch.manual_seed(0)
    auto, more = AutoModelForCausalLM, dict[str, Any]()
    if configuration.pairs == "reward":
        auto, more = AutoModelForSequenceClassification, {"num_labels": 1}
    model = auto.from_pretrained(folder, attn_implementation="sdpa", **configuration.load, **more)
    model = configuration.prepare(model)
    make = _trainer_of_pairs if configuration.pairs else _sft_trainer if configuration.trl else _trainer
    trainer = make(configuration, model, output, Tag())
    del model
    trainer.train()
    reference = getattr(trainer, "ref_model", None)
    return watch.held([trainer.model, *([reference] if reference else [])], trainer.optimizer.state)


def _arguments(configuration: Configuration, output: Path) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "per_device_train_batch_size": BATCH,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": False,
        **configuration.arguments,
    }


def _rows(configuration: Configuration) -> list[list[int]]:
    """The configuration's documents; else as many as the steps take, of TOKENS tokens, where they are packed a third and two
    thirds of one in turn."""
    if configuration.documents:
        return [torch.randint(VOCABULARY - 2, (length,)).tolist() for length in configuration.documents]
    count = BATCH * STEPS * configuration.arguments.get("gradient_accumulation_steps", 1)
    rows: list[list[int]] = torch.randint(VOCABULARY - 2, (count, TOKENS)).tolist()
    if not configuration.arguments.get("packing"):
        return rows
    return [part for row in rows for part in (row[: TOKENS // 3], row[TOKENS // 3 :])]


def _sft_trainer(configuration: Configuration, model: Any, output: Path, callback: Any) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=model,
        args=SFTConfig(**{"max_length": TOKENS} | _arguments(configuration, output)),
        train_dataset=Dataset.from_dict({"input_ids": _rows(configuration)}),
        processing_class=_tokenizer(),
        peft_config=None if configuration.peft is None else LoraConfig(**configuration.peft),
        callbacks=[callback],
    )


def _trainer_of_pairs(configuration: Configuration, model: Any, output: Path, callback: Any) -> Any:
    import trl
    from datasets import Dataset
    from peft import LoraConfig

    trainer, config = {
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
    }[configuration.pairs or ""]
    count, half = BATCH * STEPS * configuration.arguments.get("gradient_accumulation_steps", 1), TOKENS // 2
    # The trainer ends a response with a token of its own.
    sizes = ((count, half), (count, half - 1), (count, half - 1))
    prompts, chosen, rejected = (torch.randint(VOCABULARY - 2, size).tolist() for size in sizes)

    def text(rows: list[list[int]]) -> list[str]:
        return [" ".join(f"w{word}" for word in row) for row in rows]

    responses = {name: [f" {one}" for one in text(rows)] for name, rows in (("chosen", chosen), ("rejected", rejected))}
    return trainer(
        model=model,
        args=config(**{"max_length": TOKENS} | _arguments(configuration, output)),
        train_dataset=Dataset.from_dict({"prompt": text(prompts), **responses}),
        processing_class=_tokenizer(),
        peft_config=None if configuration.peft is None else LoraConfig(**configuration.peft),
        callbacks=[callback],
    )


def _trainer(configuration: Configuration, model: Any, output: Path, callback: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    if configuration.peft is not None:
        model = get_peft_model(model, LoraConfig(**configuration.peft))
    rows = [{"input_ids": row, "labels": row} for row in _rows(configuration)]
    arguments = TrainingArguments(**_arguments(configuration, output))
    return Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback])


def _tokenizer() -> Any:
    """A word for each token, and two that no row has."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    named = {f"w{index}": index for index in range(VOCABULARY - 2)}
    words = Tokenizer(WordLevel({**named, "<pad>": VOCABULARY - 1, "<eos>": VOCABULARY - 2}, unk_token="<pad>"))
    words.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
