"""What TRL's SFTTrainer and transformers' Trainer hold in a step, the cell of the same settings holds too.

Both run on the CPU, on one model. Weights, gradients and optimizer state are equal to the byte, and the most that is live in each
phase within 2 %. What is different is named, with its bytes and its cause; without what is named, 0.1 % is left.
Long, since it is two tables.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import BitsAndBytesConfig

from tests.trainers import offloading
from tests.trainers.trained import (
    BATCH,
    INNER,
    LAYERS,
    TIED_VOCABULARY,
    TOKENS,
    WIDTH,
    Configuration,
    ours,
    theirs,
    write_model,
)

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"r": 8, "lora_alpha": 16, "target_modules": MODULES, "task_type": "CAUSAL_LM"}
OUR_LORA = {"lora_r": 8, "lora_alpha": 16, "lora_target_modules": MODULES}
WHOLE_LOGITS = {"bf16": False, "gradient_checkpointing": False, "loss_type": "nll", "optim": "adamw_torch"}
"""TRL's defaults are autocast, checkpointing and the chunked loss."""
UNNAMED = 0.001
"""Share of a peak that may differ without a name."""
HALF, SINGLE = {"dtype": torch.bfloat16}, {"dtype": torch.float32}
CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}
OFFLOADED: dict[str, Any] = {"activation_offloading": True}

FULL = Configuration(
    name="full bf16", trl=True, axes="bf16 none adamw_torch none sft", load=HALF, arguments=WHOLE_LOGITS
)
WITH_LORA = replace(FULL, name="lora", axes="bf16 lora adamw_torch none sft", peft=LORA, settings=OUR_LORA)
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
INT8 = BitsAndBytesConfig(load_in_8bit=True)
QUANTISED: dict[str, Any] = {"device_map": {"": "cpu"}}
NOT_REENTRANT: dict[str, Any] = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}


def prepared(model: Any) -> Any:
    """For training in low bits, as scripts for the Trainer do it."""
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(model, **NOT_REENTRANT)


PREPARED = Configuration(
    name="qlora, prepared by PEFT, under autocast",
    trl=False,
    axes="nf4 lora adamw_torch none sft",
    load=HALF | QUANTISED | {"quantization_config": NF4},
    prepare=prepared,
    peft=LORA,
    arguments=CHECKPOINTED | NOT_REENTRANT | {"bf16": True, "optim": "adamw_torch"},
    settings=OUR_LORA | CHECKPOINTED | {"fp32_modules": "all", "autocast": "bf16"},
)
TIED = Configuration(
    name="TRL's defaults, tied",
    trl=True,
    axes="bf16 none adamw_torch_fused none sft",
    tied=True,
    load=HALF,
    arguments={"bf16": True, "optim": "adamw_torch_fused"} | CHECKPOINTED,
    settings=CHECKPOINTED | {"loss": "chunked_nll", "autocast": "bf16"},
)
TIED_LORA = replace(
    TIED,
    name="lora, tied",
    axes="bf16 lora adamw_torch none sft",
    peft=LORA,
    arguments={"bf16": True, "optim": "adamw_torch"} | CHECKPOINTED,
    settings=TIED.settings | OUR_LORA,
)
QUANTISED_LORA = replace(
    TIED_LORA,
    name="qlora, tied",
    axes="nf4 lora adamw_torch none sft",
    load=HALF | QUANTISED | {"quantization_config": NF4},
    settings=TIED_LORA.settings | {"adapter_dtype": "bf16"},
)
SEQUENTIAL = {"train_sampling_strategy": "sequential"}
UNEQUAL = (96, 48, 32, 80, 64, 96, 24, 40)
"""Two batches of four."""
SHORT = (48, 40, 40, 32, 32, 24, 24, 16, 16) * 3
"""Enough for eight packs, all of which hold several."""
OF_LENGTHS: tuple[tuple[str, dict[str, Any], dict[str, Any], tuple[int, ...]], ...] = (
    ("padded", {}, {}, UNEQUAL),
    ("padded to a multiple", {"pad_to_multiple_of": 64}, {"pad_to_multiple_of": 64}, UNEQUAL),
    ("padded, chunked loss", {"loss_type": "chunked_nll"}, {"loss": "chunked_nll"}, UNEQUAL),
    ("padded, checkpointed", CHECKPOINTED, CHECKPOINTED, UNEQUAL),
    ("padding-free", {"padding_free": True, "max_length": None}, {"padding_free": True}, UNEQUAL),
    ("packed by bfd", {"packing": True, "packing_strategy": "bfd"}, {"packing": "bfd"}, SHORT),
    ("packed by wrapping", {"packing": True, "packing_strategy": "wrapped"}, {"packing": "wrapped"}, SHORT),
)
PAIRS = Configuration(
    name="dpo",
    trl=True,
    pairs="dpo",
    axes="bf16 none adamw_torch none dpo",
    tied=True,
    load=HALF,
    arguments={"bf16": False, "gradient_checkpointing": False, "optim": "adamw_torch"},
    settings={"reference_dtype": "fp32"},
)
PAIRS_LORA = replace(
    PAIRS,
    name="dpo lora",
    axes="bf16 lora adamw_torch none dpo",
    peft=LORA | {"lora_dropout": 0.1},  # which the trainer switches off
    arguments={"bf16": True, "optim": "adamw_torch"},
    settings=OUR_LORA | CHECKPOINTED | {"autocast": "bf16"},
)
REWARDS = replace(PAIRS, name="reward", pairs="reward", axes="bf16 none adamw_torch none reward", settings={})
OF_PAIRS = (
    PAIRS,
    replace(
        PAIRS,
        name="dpo, under autocast",
        arguments=PAIRS.arguments | {"bf16": True},
        settings=PAIRS.settings | {"autocast": "bf16"},
    ),
    replace(
        PAIRS,
        name="dpo, precomputed",
        arguments=PAIRS.arguments | {"precompute_ref_log_probs": True},
        settings={"reference": "precomputed"},
    ),
    PAIRS_LORA,
    replace(
        PAIRS_LORA,
        name="dpo lora, without autocast or checkpointing",
        arguments=PAIRS.arguments,
        settings=OUR_LORA,
    ),
    replace(
        PAIRS_LORA,
        name="dpo qlora",
        axes="nf4 lora adamw_torch none dpo",
        load=HALF | QUANTISED | {"quantization_config": NF4},
        settings=PAIRS_LORA.settings | {"adapter_dtype": "bf16"},
    ),
    REWARDS,
    replace(
        REWARDS,
        name="reward lora",
        axes="bf16 lora adamw_torch none reward",
        peft=LORA | {"task_type": "SEQ_CLS"},
        arguments={"bf16": True, "optim": "adamw_torch"},
        settings=PAIRS_LORA.settings,
    ),
    replace(
        REWARDS,
        name="reward qlora",
        axes="nf4 lora adamw_torch none reward",
        load=HALF | QUANTISED | {"quantization_config": NF4},
        peft=LORA | {"task_type": "SEQ_CLS"},
        settings=OUR_LORA | {"adapter_dtype": "bf16"},
    ),
)
CONFIGURATIONS = (
    TIED,
    replace(
        TIED,
        name="TRL's defaults, tied, accumulation 4",
        arguments=TIED.arguments | {"gradient_accumulation_steps": 4},
        settings=TIED.settings | {"gradient_accumulation_steps": 4},
    ),
    replace(
        TIED,
        name="tied, without autocast, accumulation 4",
        arguments=TIED.arguments | {"gradient_accumulation_steps": 4, "bf16": False},
        settings=TIED.settings | {"gradient_accumulation_steps": 4, "autocast": "none"},
    ),
    replace(
        TIED,
        name="tied, autocast over fp32",
        axes="bf16_amp none adamw_torch none sft",
        load=SINGLE,
        arguments=WHOLE_LOGITS | {"bf16": True},
        settings={},
    ),
    TIED_LORA,
    QUANTISED_LORA,
    replace(
        QUANTISED_LORA,
        name="int8 lora, tied, without autocast",
        axes="int8 lora adamw_torch none sft",
        load=HALF | QUANTISED | {"quantization_config": INT8},
        arguments=QUANTISED_LORA.arguments | {"bf16": False},
        settings=QUANTISED_LORA.settings | {"autocast": "none"},
    ),
    FULL,
    Configuration(
        name="full fp32",
        trl=False,
        axes="fp32 none adamw_torch none sft",
        load=SINGLE,
        arguments={"optim": "adamw_torch"},
    ),
    Configuration(
        name="autocast",
        trl=False,
        axes="bf16_amp none adamw_torch none sft",
        load=SINGLE,
        arguments={"bf16": True, "optim": "adamw_torch"},
    ),
    WITH_LORA,
    replace(
        WITH_LORA, name="lora, checkpointed", arguments=WHOLE_LOGITS | CHECKPOINTED, settings=OUR_LORA | CHECKPOINTED
    ),
    replace(FULL, name="full, checkpointed", arguments=WHOLE_LOGITS | CHECKPOINTED, settings=CHECKPOINTED),
    replace(
        WITH_LORA,
        name="lora, offloaded",
        arguments=WHOLE_LOGITS | OFFLOADED,
        settings=OUR_LORA | OFFLOADED,
    ),
    replace(
        FULL,
        name="full, checkpointed, offloaded",
        arguments=WHOLE_LOGITS | CHECKPOINTED | OFFLOADED,
        settings=CHECKPOINTED | OFFLOADED,
    ),
    replace(
        FULL,
        name="chunked loss, offloaded",
        arguments=WHOLE_LOGITS | OFFLOADED | {"loss_type": "chunked_nll"},
        settings={"loss": "chunked_nll"} | OFFLOADED,
    ),
    replace(
        FULL,
        name="chunked loss",
        arguments=WHOLE_LOGITS | {"loss_type": "chunked_nll"},
        settings={"loss": "chunked_nll"},
    ),
    replace(
        FULL,
        name="accumulation 4",
        arguments=WHOLE_LOGITS | {"gradient_accumulation_steps": 4},
        settings={"gradient_accumulation_steps": 4},
    ),
    replace(
        WITH_LORA,
        name="qlora, as TRL makes it",
        axes="nf4 lora adamw_torch none sft",
        load=HALF | QUANTISED | {"quantization_config": NF4},
        arguments=WHOLE_LOGITS | CHECKPOINTED,
        settings=OUR_LORA | CHECKPOINTED | {"adapter_dtype": "bf16"},
    ),
    replace(
        WITH_LORA,
        name="int8 lora, as TRL makes it",
        axes="int8 lora adamw_torch none sft",
        load=HALF | QUANTISED | {"quantization_config": INT8},
        settings=OUR_LORA | {"adapter_dtype": "bf16"},
    ),
    PREPARED,
    replace(
        PREPARED,
        name="int8 lora, prepared by PEFT, under autocast",
        axes="int8 lora adamw_torch none sft",
        load=HALF | QUANTISED | {"quantization_config": INT8},
    ),
    replace(FULL, name="packed, wrapped", arguments=WHOLE_LOGITS | {"packing": True, "packing_strategy": "wrapped"}),
    replace(
        FULL,
        name="packed",
        arguments=WHOLE_LOGITS | {"packing": True},
        settings={"batch_size": 1, "response_tokens": BATCH * TOKENS - 1},
    ),
    *(
        replace(
            FULL,
            name=name,
            arguments=WHOLE_LOGITS | SEQUENTIAL | dict(arguments),
            settings={"lengths": {TOKENS: 1.0}, "max_length": TOKENS, "attention": "sdpa"} | dict(settings),
            documents=documents,
        )
        for name, arguments, settings, documents in OF_LENGTHS
    ),
    *OF_PAIRS,
    Configuration(
        name="adafactor", trl=False, axes="bf16 none adafactor none sft", load=HALF, arguments={"optim": "adafactor"}
    ),
    Configuration(
        name="8-bit adamw",
        trl=False,
        axes="bf16 none adamw_bnb_8bit none sft",
        load=HALF,
        arguments={"optim": "adamw_bnb_8bit"},
    ),
)


@dataclass(frozen=True)
class Difference:
    """What the trainer holds more than the cell does at a phase's peak; less, where negative."""

    cause: str
    nbytes: int


TOKEN_BYTES = BATCH * TOKENS * 8
LABELS = Difference("labels", TOKEN_BYTES)
MASK = Difference("attention mask", TOKEN_BYTES)
KEYS_AND_VALUES = Difference(
    "keys and values: ours are copied for each query, as CUDA's kernel for fp32 wants them; the CPU's takes them as they are",
    -2 * 4 * BATCH * TOKENS * WIDTH,
)
NORMS = (2 * LAYERS + 1) * WIDTH
"""Elements of all norms, which the Trainer steps as a second group, without weight decay."""


def norms_apart(itemsize: int) -> Difference:
    return Difference("list kernels over two groups: the copy that they make is without the norms", -itemsize * NORMS)


ADAFACTOR = Difference(
    "the last matrix is stepped after another, whose fp32 update is still there, and not after a norm",
    4 * WIDTH * INNER - 4 * WIDTH,
)
DOCUMENTS = Difference(
    "a mask that keeps documents apart, in bf16 and kept by each layer, and with it keys and values copied for each query: what "
    "scaled dot product attention does; with flash-attn there is neither",
    LAYERS * (2 * (BATCH * TOKENS) ** 2 + 2 * BATCH * TOKENS * WIDTH),
)
INPUTS = (LABELS, MASK)
MASK_OF_PAIRS = Difference("attention mask", 2 * TOKEN_BYTES)
INPUTS_OF_PAIRS = (MASK_OF_PAIRS, Difference("prompts in the completion mask", TOKEN_BYTES))
INPUTS_OF_REWARDS = (MASK_OF_PAIRS, Difference("a mask of responses, which the trainer does not have", -TOKEN_BYTES))
ENTROPIES = Difference(
    "entropies for TRL's log, while the log-softmax, the logits in fp32 and a copy of them without each sequence's last are "
    "held: the log-softmax of 128 tokens, its exponentials, and their product",
    (3 * 128 - BATCH) * TIED_VOCABULARY * 4,
)
NAMED: dict[str, dict[str, tuple[Difference, ...]]] = {
    "TRL's defaults, tied": {"learn": INPUTS, "optimizer_step": INPUTS},
    "TRL's defaults, tied, accumulation 4": {"learn": 4 * INPUTS, "optimizer_step": 4 * INPUTS},
    "tied, without autocast, accumulation 4": {"learn": 4 * INPUTS, "optimizer_step": 4 * INPUTS},
    "tied, autocast over fp32": {"learn": (*INPUTS, ENTROPIES), "optimizer_step": (*INPUTS, norms_apart(4))},
    "lora, tied": {"learn": INPUTS, "optimizer_step": INPUTS},
    "qlora, tied": {"learn": INPUTS, "optimizer_step": INPUTS},
    "int8 lora, tied, without autocast": {"learn": INPUTS, "optimizer_step": INPUTS},
    "full bf16": {"learn": INPUTS, "optimizer_step": (*INPUTS, norms_apart(2))},
    "full fp32": {"learn": (LABELS, KEYS_AND_VALUES), "optimizer_step": (LABELS, norms_apart(4))},
    "autocast": {"learn": (LABELS,), "optimizer_step": (LABELS, norms_apart(4))},
    "lora": {"learn": INPUTS, "optimizer_step": INPUTS},
    "lora, checkpointed": {"learn": INPUTS, "optimizer_step": INPUTS},
    "full, checkpointed": {"learn": INPUTS, "optimizer_step": (*INPUTS, norms_apart(2))},
    "lora, offloaded": {"learn": INPUTS, "optimizer_step": INPUTS},
    "full, checkpointed, offloaded": {"learn": INPUTS, "optimizer_step": (*INPUTS, norms_apart(2))},
    "chunked loss, offloaded": {"learn": INPUTS, "optimizer_step": (*INPUTS, norms_apart(2))},
    "chunked loss": {"learn": INPUTS, "optimizer_step": (*INPUTS, norms_apart(2))},
    "accumulation 4": {"learn": 4 * INPUTS, "optimizer_step": (*4 * INPUTS, norms_apart(2))},
    "qlora, as TRL makes it": {"learn": INPUTS, "optimizer_step": INPUTS},
    "int8 lora, as TRL makes it": {"learn": INPUTS, "optimizer_step": INPUTS},
    "qlora, prepared by PEFT, under autocast": {"learn": (LABELS,), "optimizer_step": (LABELS,)},
    "int8 lora, prepared by PEFT, under autocast": {"learn": (LABELS,), "optimizer_step": (LABELS,)},
    "packed, wrapped": {"learn": INPUTS, "optimizer_step": (*INPUTS, norms_apart(2))},
    "packed": {"learn": (*INPUTS, DOCUMENTS), "optimizer_step": (*INPUTS, norms_apart(2))},
    **{name: {"optimizer_step": (norms_apart(2),)} for name, *_ in OF_LENGTHS},
    **{
        one.name: {"learn": INPUTS_OF_PAIRS, "optimizer_step": INPUTS_OF_PAIRS}
        for one in OF_PAIRS
        if one.pairs == "dpo"
    },
    **{
        one.name: dict.fromkeys(("learn", "optimizer_step"), INPUTS_OF_REWARDS)
        for one in OF_PAIRS
        if one.pairs == "reward"
    },
    "adafactor": {"learn": (LABELS,), "optimizer_step": (LABELS, ADAFACTOR)},
    "8-bit adamw": {"learn": (LABELS,), "optimizer_step": (LABELS,)},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the models, `untied` and `tied`. What exists by now is left out of collections, of which every job takes some;
    trainers' environment variables are gone afterwards."""
    pytest.importorskip("trl")
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import peft  # noqa: F401

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    for name in ("untied", "tied"):
        write_model(folder / name, tied=name == "tied")
    gc.collect()
    gc.freeze()
    with mock.patch.dict(os.environ):
        yield folder


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda one: one.name)
def test_the_cell_holds_what_the_trainer_holds(
    configuration: Configuration, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models / ("tied" if configuration.tied else "untied")
    with monkeypatch.context() as patched:
        if "activation_offloading" in configuration.arguments:
            offloading.prepare(patched)
        trainers = theirs(configuration, model, tmp_path)
    cells = ours(configuration, model)
    assert (cells.weights, cells.gradients, cells.state) == (trainers.weights, trainers.gradients, trainers.state)
    named = NAMED.get(configuration.name, {})
    assert cells.peaks.keys() == trainers.peaks.keys() >= named.keys()
    for phase, peak in trainers.peaks.items():
        explained = cells.peaks[phase] + sum(one.nbytes for one in named.get(phase, ()))
        assert abs(explained - peak) <= UNNAMED * peak, (
            f"{phase}: {explained - peak:+,} bytes of {peak:,} without a name"
        )
