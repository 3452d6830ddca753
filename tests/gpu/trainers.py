#!/usr/bin/env python3
"""What TRL's and transformers' trainers take of a GPU, and what is predicted for the cells that say the same.

    tests/gpu/trainers.py --device cuda --recordings folder > trainers.jsonl
    tests/gpu/trainers.py --device cpu --tiny        the same on the CPU, on a tiny model, where nothing counts bytes or offloads
    tests/gpu/trainers.py --only "lora;dpo"          these jobs alone
    tests/gpu/trainers.py --done trainers.jsonl      without those that this file has
    tests/gpu/trainers.py --anew trainers.jsonl --card h100-80gb      its rows with what is predicted today for that card

Each job has a process of its own and a time limit. It loads one checkpoint of random weights as from_pretrained does, and trains
STEPS steps of BATCH sequences. One JSON object a line: `job`, the trainer's `allocated_bytes` and `reserved_bytes` (peaks over all;
null on the CPU), `loaded_bytes` (allocated before the first step), `steps` (the same peaks within each) and `seconds` of each step;
`axes` and `settings` of the cell that says the same, its peaks as they were `predicted` before the job ran, and `error`, as shares
(predicted / measured - 1). A job of an algorithm or a setting that no cell has yet has no `axes`: what is measured waits for them.
`--recordings`: where the allocator's history of some goes, as JOB.pickle.gz. Exit code: 0, or 1 if a job failed.
Long, since most of it is the table of jobs.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import gzip
import json
import math
import pickle
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from gpu_summary import done_before, read_rows
from own_process import row_from

SECONDS = 150
"""A job's limit, imports included."""
MODEL = "llama-3.2-1b"
BATCH, TOKENS = 2, 1024
STEPS = 3
GENERATING = ("grpo", "rloo")
PROMPT_TOKENS, GENERATIONS = 128, 2
"""Of jobs that generate: a response has as many tokens as its prompt, and each prompt as many responses as are said."""
MOST_ENTRIES = 2_000_000
LENGTHS = (300, 1024, 500, 700, 200, 900)
"""Tokens of sequences of unequal length, in the order in which they are trained on."""


@dataclass(frozen=True)
class Trained:
    """A trainer's job and the cell that says the same. `trainer`: sft, dpo, reward, grpo, rloo (TRL's), or plain, which is
    transformers' Trainer. `load`: the precision that from_pretrained is told; `prepared`: by PEFT's
    prepare_model_for_kbit_training; `lora`: LoraConfig's arguments; `arguments`: those of the trainer's configuration.
    `unequal`: sequences have LENGTHS. `axes`: the cell's, `settings`: the rest of it. `recorded`: with the allocator's history."""

    name: str
    trainer: str = "sft"
    load: str = "bf16"
    prepared: bool = False
    lora: Mapping[str, Any] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    unequal: bool = False
    axes: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    recorded: bool = False


LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
OUR_LORA = {"lora_r": 16, "lora_alpha": 32, "lora_target_modules": "all-linear"}
CHECKPOINTED = {"gradient_checkpointing": True}
WHOLE = {"loss_type": "nll", "gradient_checkpointing": False, "bf16": False}
DEFAULTS = Trained(
    "TRL's defaults",
    axes="bf16 none adamw_torch_fused none sft",
    settings=CHECKPOINTED | {"loss": "chunked_nll", "autocast": "bf16"},
)
FULL = Trained(
    "full",
    arguments=WHOLE | {"optim": "adamw_torch"},
    axes="bf16 none adamw_torch none sft",
    settings={"loss": "nll"},
)
WITH_LORA = Trained(
    "lora",
    lora=LORA,
    arguments={"optim": "adamw_torch", "bf16": False},
    axes="bf16 lora adamw_torch none sft",
    settings=OUR_LORA | CHECKPOINTED | {"loss": "chunked_nll"},
)
QLORA = replace(
    WITH_LORA,
    name="qlora",
    load="nf4",
    arguments={"optim": "paged_adamw_8bit", "bf16": True},
    axes="nf4 lora paged_adamw_8bit none sft",
    settings={**WITH_LORA.settings, "adapter_dtype": "bf16", "autocast": "bf16"},
)
OFFLOADED = {"activation_offloading": True}
KBIT = {"optim": "paged_adamw_8bit", "bf16": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
GENERATED = CHECKPOINTED | {"loss": "selective", "autocast": "bf16", "rollout_batch": BATCH // GENERATIONS}
GRPO = Trained(
    "grpo",
    trainer="grpo",
    lora=LORA,
    axes="bf16 lora adamw_torch_fused none grpo",
    settings=OUR_LORA | GENERATED | {"group_size": GENERATIONS},
    recorded=True,
)
JOBS = (
    DEFAULTS,
    FULL,
    replace(
        FULL,
        name="autocast",
        load="fp32",
        arguments={**FULL.arguments, "bf16": True},
        axes="bf16_amp none adamw_torch none sft",
    ),
    WITH_LORA,
    replace(
        WITH_LORA,
        name="lora, whole logits, not checkpointed",
        arguments=FULL.arguments,
        settings=OUR_LORA | {"loss": "nll"},
    ),
    QLORA,
    Trained(
        "qlora, prepared by PEFT, under the Trainer",
        trainer="plain",
        load="nf4",
        prepared=True,
        lora=LORA,
        arguments=CHECKPOINTED | KBIT,
        axes="nf4 lora paged_adamw_8bit none sft",
        settings=OUR_LORA | CHECKPOINTED | {"loss": "nll", "fp32_modules": "all", "autocast": "bf16"},
    ),
    replace(
        WITH_LORA,
        name="int8 lora",
        load="int8",
        axes="int8 lora adamw_torch none sft",
        settings={**WITH_LORA.settings, "adapter_dtype": "bf16"},
    ),
    replace(DEFAULTS, name="packed, wrapped", arguments={"packing": True, "packing_strategy": "wrapped"}),
    replace(
        DEFAULTS,
        name="accumulation 4",
        arguments={"gradient_accumulation_steps": 4},
        settings={**DEFAULTS.settings, "gradient_accumulation_steps": 4},
    ),
    replace(
        DEFAULTS,
        name="activations offloaded",
        arguments=OFFLOADED,
        settings={**DEFAULTS.settings, **OFFLOADED},
        recorded=True,
    ),
    replace(
        FULL,
        name="activations offloaded, not checkpointed",
        arguments={**FULL.arguments, **OFFLOADED},
        settings={**FULL.settings, **OFFLOADED},
        recorded=True,
    ),
    replace(FULL, name="padded", unequal=True, recorded=True),
    replace(
        DEFAULTS,
        name="packed",
        arguments={"packing": True},
        settings={**DEFAULTS.settings, "packing": "bfd"},
        unequal=True,
    ),
    Trained(
        "dpo",
        trainer="dpo",
        lora=LORA,
        axes="bf16 lora adamw_torch_fused none dpo",
        settings=OUR_LORA | CHECKPOINTED | {"loss": "nll", "autocast": "bf16"},
    ),
    Trained(
        "dpo, full",
        trainer="dpo",
        axes="bf16 none adamw_torch_fused none dpo",
        settings=CHECKPOINTED | {"loss": "nll", "autocast": "bf16", "reference_dtype": "fp32"},
    ),
    Trained(
        "reward",
        trainer="reward",
        lora=LORA | {"task_type": "SEQ_CLS"},
        axes="bf16 lora adamw_torch_fused none reward",
        settings=OUR_LORA | CHECKPOINTED | {"autocast": "bf16"},
    ),
    GRPO,
    replace(
        GRPO,
        name="grpo, full, with a reference",
        lora=None,
        arguments={"beta": 0.04},
        axes="bf16 none adamw_torch_fused none grpo",
        settings=GENERATED | {"group_size": GENERATIONS, "reference_dtype": "fp32", "grpo": {"beta": 0.04}},
        recorded=False,
    ),
    replace(GRPO, name="rloo", trainer="rloo", axes="bf16 lora adamw_torch_fused none rloo", recorded=False),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Trainers' peaks on a GPU, against predictions.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short sequences")
    parser.add_argument("--only", default="", metavar="JOB;JOB", help="; ".join(job.name for job in JOBS))
    parser.add_argument("--done", type=Path, metavar="FILE", help="jobs that have a row there are left out")
    parser.add_argument("--recordings", type=Path, metavar="FOLDER", help="where allocators' histories go")
    parser.add_argument("--jobs", type=int, default=1, help="jobs at a time: bytes are what counts")
    parser.add_argument(
        "--anew", type=Path, metavar="FILE", help="the rows of this file, predicted once more; no GPU is needed"
    )
    parser.add_argument("--card", default="h100-80gb", help="with --anew, the card that its rows were measured on")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the process of one job, which writes its row into --row
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    named = {job.name: job for job in JOBS}
    if chosen.anew:
        for row in read_rows(chosen.anew):
            print(json.dumps(predicted_anew(row, named, chosen.card)))
        return 0
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if chosen.one:
        sizes = Sizes(tiny=chosen.tiny, device=chosen.device, checkpoint=chosen.checkpoint)
        chosen.row.write_text(json.dumps(row_here(named[chosen.one], sizes, chosen.recordings)))
        return 0
    if chosen.device == "cpu":
        named = {name: job for name, job in named.items() if not job.arguments.get("activation_offloading")}
    wanted = [name.strip() for name in chosen.only.split(";") if name.strip()] or list(named)
    for name in wanted:
        if name not in named:
            parser.error(f"no job {name!r}; there are {'; '.join(named)}")
    try:
        done = done_before(chosen.done, "job", wanted)
    except ValueError as error:
        parser.error(str(error))
    good = not any(row.get("failed") for row in done.values())
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(chosen.jobs) as pool:
        with contextlib.redirect_stdout(sys.stderr):  # libraries tell things as they are imported
            write_checkpoint(Path(folder), tiny=chosen.tiny)
        asked = [pool.submit(row_of, named[name], chosen, Path(folder)) for name in wanted if name not in done]
        for answer in as_completed(asked):
            row = answer.result()
            good &= not row.get("failed")
            print(json.dumps(row), flush=True)
    return 0 if good else 1


def row_of(job: Trained, chosen: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """A job's row, from a process of its own; what that prints goes to stderr."""
    command = [__file__, "--one", job.name, "--device", chosen.device, "--checkpoint", str(checkpoint)]
    command += ["--tiny"] * chosen.tiny
    command += ["--recordings", str(chosen.recordings)] if chosen.recordings else []
    row = row_from(command, SECONDS)
    return {"job": job.name, "failed": row} if isinstance(row, str) else row


@dataclass(frozen=True)
class Sizes:
    """Where the model lies, and how much of it is trained on."""

    tiny: bool
    device: str
    checkpoint: Path

    @property
    def model(self) -> str:
        return "tiny-mistral" if self.tiny else MODEL

    @property
    def tokens(self) -> int:
        return 32 if self.tiny else TOKENS

    @property
    def prompt_tokens(self) -> int:
        return 8 if self.tiny else PROMPT_TOKENS


def write_checkpoint(folder: Path, *, tiny: bool) -> None:
    """Random weights in bf16 as from_pretrained reads them, and a tokenizer with a word for every token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    from vrambench.methods.models.config import model_config
    from vrambench.methods.precision.int8 import OUTPUT_STD

    config = model_config(Sizes(tiny, "cpu", folder).model)
    # As wide as outputs of int8 cells scatter: as transformers draws them, hundreds of columns a layer would have outliers, which
    # bitsandbytes keeps for the backward pass (43 MB in llama-3.2-1b, of 2,048 tokens).
    config.initializer_range = min(config.initializer_range, OUTPUT_STD / math.sqrt(config.hidden_size))
    size = config.vocab_size
    config.pad_token_id, config.eos_token_id, config.bos_token_id = size - 2, size - 1, None
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    words = {f"w{index}": index for index in range(size - 2)} | {"<pad>": size - 2, "<eos>": size - 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.save_pretrained(folder)


def row_here(job: Trained, sizes: Sizes, recordings: Path | None) -> dict[str, Any]:
    row: dict[str, Any] = {"job": job.name, "model": sizes.model, "axes": job.axes, "settings": dict(job.settings)}
    row |= {"predicted": None, "error": None, "torch": torch.__version__, "gpu": None}
    if job.axes is not None:
        from vrambench.bench.predict.unseen.hardware import card_here

        card = card_here() if sizes.device == "cuda" else None
        model = {"model": str(sizes.checkpoint), "weights": "pretrained"}
        name = card.name if card else "rtx-4090"
        row["predicted"] = predicted(job, model, sizes.tokens, sizes.prompt_tokens, name)
    if sizes.device == "cuda":
        row["gpu"] = torch.cuda.get_device_name(0)
        if job.recorded and recordings is not None:
            torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=MOST_ENTRIES)
    row |= measured(job, sizes)
    if sizes.device == "cuda":
        if job.recorded and recordings is not None:
            recordings.mkdir(parents=True, exist_ok=True)
            with gzip.open(recordings / f"{job.name.replace(', ', '-').replace(' ', '-')}.pickle.gz", "wb", 6) as file:
                pickle.dump(torch.cuda.memory._snapshot(), file)
        row["error"] = errors(row["predicted"], row)
    return row


def predicted(job: Trained, model: Mapping[str, str], tokens: int, prompt: int, card: str) -> dict[str, int] | None:
    """Peaks of the cell that says the same; None where none does."""
    from vrambench.bench.predict.many import predict_all
    from vrambench.methods.cell import resolve
    from vrambench.methods.workload import AXIS_NAMES

    if job.axes is None:
        return None
    work: dict[str, Any] = {"batch_size": BATCH, "prompt_tokens": 1, "response_tokens": tokens - 1, "budget": "4TiB"}
    if job.trainer in ("dpo", "reward"):
        work |= dict(zip(("prompt_tokens", "response_tokens"), pair_tokens(tokens), strict=True))
    if job.trainer in GENERATING:
        work |= {"prompt_tokens": prompt, "response_tokens": prompt}
    if job.unequal:
        work |= {"lengths": dict.fromkeys(lengths_of(tokens), 1 / len(LENGTHS)), "max_length": tokens}
    cell = resolve(dict(zip(AXIS_NAMES, job.axes.split(), strict=True)), work | model | job.settings)
    (outcome,) = predict_all([cell], card).values()
    if outcome.forecast is None:
        raise RuntimeError(outcome.reason)
    memory = outcome.forecast.memory
    return {"allocated_bytes": memory.allocated_bytes, "reserved_bytes": memory.reserved_bytes}


def errors(predicted: Mapping[str, int] | None, row: Mapping[str, Any]) -> dict[str, float] | None:
    return {kind: nbytes / row[kind] - 1 for kind, nbytes in predicted.items()} if predicted else None


def predicted_anew(row: dict[str, Any], jobs: Mapping[str, Trained], card: str) -> dict[str, Any]:
    """A measured row with today's prediction, of the cell that says the job today; as it is where it was not measured."""
    job = jobs.get(row["job"])
    if job is None or not row.get("allocated_bytes"):
        return row
    found = predicted(job, {"model": row["model"]}, TOKENS, PROMPT_TOKENS, card)
    return row | {"axes": job.axes, "settings": dict(job.settings), "predicted": found, "error": errors(found, row)}


def measured(job: Trained, sizes: Sizes) -> dict[str, Any]:
    """The trainer's own job."""
    from transformers import TrainerCallback

    on_gpu = sizes.device == "cuda"
    told: dict[str, Any] = {
        "allocated_bytes": None,
        "reserved_bytes": None,
        "loaded_bytes": None,
        "steps": [],
        "seconds": [],
    }
    peaks = {"allocated_bytes": 0, "reserved_bytes": 0}
    began = 0.0

    def seen() -> dict[str, int]:
        """Peaks since last asked."""
        torch.cuda.synchronize()
        now = {
            "allocated_bytes": torch.cuda.max_memory_allocated(),
            "reserved_bytes": torch.cuda.max_memory_reserved(),
        }
        torch.cuda.reset_peak_memory_stats()
        for kind, nbytes in now.items():
            peaks[kind] = max(peaks[kind], nbytes)
        return now

    class Meter(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            nonlocal began
            if on_gpu and told["loaded_bytes"] is None:
                gc.collect()
                told["loaded_bytes"] = torch.cuda.memory_allocated()
            began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if on_gpu:
                told["steps"].append(seen())
            told["seconds"].append(time.perf_counter() - began)

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = BUILDERS[job.trainer](job, sizes, common(job, sizes, folder))
        trainer.add_callback(Meter())
        trainer.train()
    if on_gpu:
        seen()
        told |= peaks
    return told


def common(job: Trained, sizes: Sizes, output: str) -> dict[str, Any]:
    """What every trainer's configuration is told."""
    return {
        "output_dir": output,
        "per_device_train_batch_size": BATCH,
        "max_steps": STEPS,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "use_cpu": sizes.device == "cpu",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": False,
        **job.arguments,
    }


def loaded(job: Trained, sizes: Sizes, kind: str = "AutoModelForCausalLM", **more: Any) -> Any:
    import transformers

    dtype = torch.float32 if job.load == "fp32" else torch.bfloat16
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa", "device_map": {"": sizes.device}} | more
    if job.load == "nf4":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    elif job.load == "int8":
        options["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    return getattr(transformers, kind).from_pretrained(sizes.checkpoint, **options)


def tokenizer_of(sizes: Sizes) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(sizes.checkpoint)


def peft_of(job: Trained) -> Any:
    from peft import LoraConfig

    return None if job.lora is None else LoraConfig(**job.lora)


def rows(job: Trained, sizes: Sizes) -> list[list[int]]:
    """Token ids of as many sequences as are trained on."""
    size = model_size(sizes)
    count = BATCH * STEPS * job.arguments.get("gradient_accumulation_steps", 1)
    lengths = [sizes.tokens] * count
    if job.unequal:
        lengths = lengths_of(sizes.tokens)
        # Packed ones are fewer than their parts.
        lengths *= 4 if job.arguments.get("packing") else 1
    return [torch.randint(size - 2, (length,)).tolist() for length in lengths]


def lengths_of(tokens: int) -> list[int]:
    """LENGTHS, where the longest has so many tokens."""
    return [max(2, length * tokens // TOKENS) for length in LENGTHS]


def model_size(sizes: Sizes) -> int:
    from vrambench.methods.models.config import model_config

    return int(model_config(sizes.model).vocab_size)


def sft(job: Trained, sizes: Sizes, arguments: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=loaded(job, sizes),
        args=SFTConfig(max_length=sizes.tokens, **arguments),
        train_dataset=Dataset.from_dict({"input_ids": rows(job, sizes)}),
        processing_class=tokenizer_of(sizes),
        peft_config=peft_of(job),
    )


def plain(job: Trained, sizes: Sizes, arguments: dict[str, Any]) -> Any:
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import Trainer, TrainingArguments

    model = loaded(job, sizes)
    if job.prepared:
        kwargs = arguments.get("gradient_checkpointing_kwargs")
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs=kwargs)
    if job.lora is not None:
        model = get_peft_model(model, peft_of(job))
    data = [{"input_ids": row, "labels": row} for row in rows(job, sizes)]
    return Trainer(model=model, args=TrainingArguments(**arguments), train_dataset=data)


def texts(sizes: Sizes, count: int, tokens: int) -> list[str]:
    size = model_size(sizes)
    return [" ".join(f"w{index}" for index in torch.randint(size - 2, (tokens,)).tolist()) for _ in range(count)]


def pair_tokens(tokens: int) -> tuple[int, int]:
    """Of a prompt, and of each response with the token that the trainer ends it with: together no more than `tokens`."""
    return tokens // 2 - 1, tokens // 2


def pairs(sizes: Sizes) -> Any:
    """Prompts, each with a response that is preferred and one that is not."""
    from datasets import Dataset

    count, (prompt, response) = BATCH * STEPS, pair_tokens(sizes.tokens)
    prompts = texts(sizes, count, prompt)
    chosen, rejected = (texts(sizes, count, response - 1) for _ in range(2))
    spaced = {"chosen": [f" {one}" for one in chosen], "rejected": [f" {one}" for one in rejected]}
    return Dataset.from_dict({"prompt": prompts, **spaced})


def dpo(job: Trained, sizes: Sizes, arguments: dict[str, Any]) -> Any:
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=loaded(job, sizes),
        args=DPOConfig(max_length=sizes.tokens, **arguments),
        train_dataset=pairs(sizes),
        processing_class=tokenizer_of(sizes),
        peft_config=peft_of(job),
    )


def reward(job: Trained, sizes: Sizes, arguments: dict[str, Any]) -> Any:
    from trl import RewardConfig, RewardTrainer

    return RewardTrainer(
        model=loaded(job, sizes, "AutoModelForSequenceClassification", num_labels=1),
        args=RewardConfig(max_length=sizes.tokens, **arguments),
        train_dataset=pairs(sizes),
        processing_class=tokenizer_of(sizes),
        peft_config=peft_of(job),
    )


def grpo(job: Trained, sizes: Sizes, arguments: dict[str, Any]) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    return generating(GRPOTrainer, GRPOConfig, job, sizes, arguments)


def rloo(job: Trained, sizes: Sizes, arguments: dict[str, Any]) -> Any:
    from trl import RLOOConfig, RLOOTrainer

    return generating(RLOOTrainer, RLOOConfig, job, sizes, arguments)


def generating(trainer: Any, config: Any, job: Trained, sizes: Sizes, arguments: dict[str, Any]) -> Any:
    from datasets import Dataset

    def words(completions: list[str], **kwargs: Any) -> list[float]:
        return [float(len(set(one.split()))) for one in completions]

    prompts = texts(sizes, BATCH * STEPS, sizes.prompt_tokens)
    return trainer(
        model=loaded(job, sizes),
        reward_funcs=words,
        args=config(num_generations=GENERATIONS, max_completion_length=sizes.prompt_tokens, **arguments),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer_of(sizes),
        peft_config=peft_of(job),
    )


BUILDERS = {"sft": sft, "plain": plain, "dpo": dpo, "reward": reward, "grpo": grpo, "rloo": rloo}

if __name__ == "__main__":
    sys.exit(main())
