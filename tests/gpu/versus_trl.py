#!/usr/bin/env python3
"""Are our trainers as fast and as small as TRL's? The same models, lengths, batch, optimizer and attention.

    tests/gpu/versus_trl.py --device cuda > versus_trl.jsonl
    tests/gpu/versus_trl.py --device cpu --tiny      the same on the CPU, on a tiny model
    tests/gpu/versus_trl.py --only ppo               the cases of one algorithm
    tests/gpu/versus_trl.py --rounds 2               each side twice, in turn, the second time in the other order

Each side of each case has a process of its own: TRL's trainer (SFTTrainer, or its experimental PPOTrainer) over sequences of
token ids, and `vrambench run` of the cell. SFT is compared twice: with the whole logits, and with the chunked loss that TRL takes
when none is named. PPO has as many updates on both sides. One JSON object a line: `case`, both sides'
`step_seconds` (warm-up left out), `tokens_per_second` (of the median step; prompts and responses, each counted once),
`allocated_bytes` and `reserved_bytes` (peaks; null on the CPU), and `ratio`, ours over TRL's. Needs trl, of which 1.12 is the
last version with PPO: a side that cannot run has an `error`. Exit code: 0, or 1 if a side failed.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from gpu_summary import done_before

SECONDS = 300
"""A side's limit, imports included."""
WARMUP = 2
EPOCHS = 4
"""Passes over a PPO batch, each of one update: TRL's default, said on both sides."""
COMMAND = "import sys; from vrambench.bench.commands.app import main; sys.exit(main())"


@dataclass(frozen=True)
class Case:
    """Full training in bf16 with AdamW on `batch` sequences. PPO: four models of one shape (policy, reference, value, reward),
    and EPOCHS updates a step, each on the whole batch, with no clipping of gradients, which TRL's PPO does not have.
    `chunked`: SFT's loss is taken from chunks of the logits."""

    algorithm: Literal["sft", "ppo"]
    model: str
    batch: int
    prompt_tokens: int
    response_tokens: int
    checkpointing: bool = False
    chunked: bool = False
    steps: int = 8

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens

    @property
    def name(self) -> str:
        lengths = f"{self.batch} x {self.prompt_tokens}+{self.response_tokens}"
        options = [" checkpointing"] * self.checkpointing + [", loss chunked"] * self.chunked
        return f"{self.algorithm} {self.model} {lengths}{''.join(options)}"


CASES = (
    Case("sft", "gpt2", 8, 1, 511),
    Case("ppo", "gpt2", 8, 64, 64),
    Case("sft", "gpt2", 8, 1, 511, chunked=True),
    Case("sft", "llama-1b", 4, 1, 511, checkpointing=True),
    Case("sft", "llama-1b", 4, 1, 511, checkpointing=True, chunked=True),
    Case("ppo", "llama-1b", 4, 64, 64, steps=4),
)
TINY = (
    Case("sft", "tiny", 4, 1, 31, steps=3),
    Case("sft", "tiny", 4, 1, 31, checkpointing=True, chunked=True, steps=3),
    Case("ppo", "tiny", 4, 8, 8, steps=3),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Our trainers against TRL's.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models")
    parser.add_argument("--only", choices=("sft", "ppo"), help="the cases of one algorithm")
    parser.add_argument("--model", help="the cases on one model")
    parser.add_argument("--chunked", action="store_true", help="the cases with a chunked loss")
    parser.add_argument("--rounds", type=int, default=1, help="how often each side runs, ours and TRL's in turn")
    parser.add_argument("--done", type=Path, metavar="FILE", help="cases that have a row there are left out")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # the process of TRL's side
    chosen = parser.parse_args(arguments)
    if chosen.one:
        print(json.dumps(trained_by_trl(Case(**chosen.one), chosen.device)))
        return 0
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    cases = TINY if chosen.tiny else CASES
    wanted = [
        case
        for case in cases
        if chosen.only in (None, case.algorithm)
        and chosen.model in (None, case.model)
        and (case.chunked or not chosen.chunked)
    ]
    if not wanted or chosen.rounds < 1:
        parser.error(f"--model must be one of {', '.join({case.model for case in cases})}, and --rounds at least 1")
    try:
        done = done_before(chosen.done, "case", [case.name for case in wanted])
    except ValueError as error:
        parser.error(str(error))
    good = not any("error" in row.get(side, {}) for row in done.values() for side in ("ours", "trl"))
    for case in wanted:
        if case.name in done:
            print(f"{case.name}: has a row", file=sys.stderr)
            continue
        ours, theirs = in_turn(case, chosen.device, chosen.rounds)
        row = about(case, chosen.device) | {"ours": ours, "trl": theirs, "ratio": ratios(ours, theirs)}
        good &= "error" not in ours and "error" not in theirs
        print(json.dumps(row), flush=True)
    return 0 if good else 1


def in_turn(case: Case, device: str, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sides: ours, theirs, theirs, ours, ... as often as there are rounds. A side that failed once has failed."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        for side in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
            found[side].append((ours_of if side == "ours" else theirs_of)(case, device))
    return together(case, found["ours"]), together(case, found["theirs"])


def together(case: Case, sides: list[dict[str, Any]]) -> dict[str, Any]:
    """One side's rounds as one: all steps, and the largest peaks."""
    failed = next((side for side in sides if "error" in side), None)
    if failed is not None:
        return failed
    sizes = {
        key: max(found) if None not in (found := [side[key] for side in sides]) else None
        for key in ("allocated_bytes", "reserved_bytes")
    }
    return told(case, [one for side in sides for one in side["step_seconds"]], sizes)


def about(case: Case, device: str) -> dict[str, Any]:
    return {
        "case": case.name,
        "gpu": torch.cuda.get_device_name(0) if device == "cuda" else None,
        "torch": torch.__version__,
        "trl_version": installed("trl"),
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def matrix_of(case: Case) -> dict[str, Any]:
    """A matrix of one cell: no profile of ours says what it does."""
    axes = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none"}
    workload: dict[str, Any] = {
        "model": case.model,
        "batch_size": case.batch,
        "prompt_tokens": case.prompt_tokens,
        "response_tokens": case.response_tokens,
        "gradient_checkpointing": case.checkpointing,
        "steps": case.steps,
        "warmup_steps": WARMUP,
        "budget": "4TiB",
    }
    if case.algorithm == "sft":
        workload["loss"] = "chunked_nll" if case.chunked else "scored"
    if case.algorithm == "ppo":
        workload |= {"rollout_batch": case.batch, "value": "separate", "reference": "copy", "max_grad_norm": 0}
        workload |= {"reward": "model", "reward_model": case.model, "ppo": {"epochs": EPOCHS}}
    return {
        "axes": {axis: [value] for axis, value in (axes | {"algorithm": case.algorithm}).items()},
        "workload": workload,
    }


def ours_of(case: Case, device: str) -> dict[str, Any]:
    """The cell's result from a run of vrambench."""
    with tempfile.TemporaryDirectory() as folder:
        matrix, out = Path(folder) / "matrix.yaml", Path(folder) / "run"
        matrix.write_text(json.dumps(matrix_of(case)))  # JSON is YAML
        command = [sys.executable, "-P", "-c", COMMAND, "run", str(matrix)]
        failed = run([*command, "--device", device, "--jobs", "1", "--out", str(out)])
        results = [json.loads(file.read_text()) for file in (out / "cells").glob("*.json")]
    if failed or len(results) != 1 or results[0]["status"] != "ok":
        return {"error": failed or (results[0]["reason"] if results else "no result")}
    memory = results[0]["memory"]
    sizes = {f"{kind}_bytes": memory[f"{kind}_bytes"] for kind in ("allocated", "reserved")}
    return told(case, results[0]["throughput"]["step_seconds"], sizes if device == "cuda" else {})


def theirs_of(case: Case, device: str) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as output:
        failed = run([sys.executable, __file__, "--one", json.dumps(asdict(case)), "--device", device], output)
        output.seek(0)
        lines = output.read().splitlines()
    return {"error": failed} if failed else json.loads(lines[-1])


def run(command: list[str], output: Any = None) -> str | None:
    """What went wrong, if anything did; whatever is printed goes to stderr, or to `output`."""
    try:
        done = subprocess.run(command, stdout=output or 2, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"not done after {SECONDS} s"
    return f"ended with code {done.returncode}" if done.returncode else None


def told(case: Case, seconds: list[float], sizes: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"step_seconds": seconds, "allocated_bytes": None, "reserved_bytes": None}
    return row | {"tokens_per_second": case.batch * case.tokens / statistics.median(seconds)} | sizes


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float | None]:
    keys = ("tokens_per_second", "allocated_bytes", "reserved_bytes")
    return {key: ours[key] / theirs[key] if ours.get(key) and theirs.get(key) else None for key in keys}


def trained_by_trl(case: Case, device: str) -> dict[str, Any]:
    """Steps of TRL's trainer: the clock is read, and the device waited for, after each."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, TrainerCallback

    from vrambench.methods.models.config import model_config

    on_gpu = device == "cuda"
    config = model_config(case.model)
    size = config.get_text_config().vocab_size
    # Neither word is ever a prompt's or sampled: every sequence has its full length, and no mask is made for padding.
    words = Tokenizer(WordLevel({"<pad>": size, "<eos>": size + 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    trainer_of = {"sft": sft_trainer, "ppo": ppo_trainer}[case.algorithm]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder,
            "per_device_train_batch_size": case.batch,
            "gradient_checkpointing": case.checkpointing,
            "optim": "adamw_torch",
            "lr_scheduler_type": "constant",
            "bf16": False,  # the weights are; autocast would be another precision
            "use_cpu": not on_gpu,
            "logging_strategy": "no",
            "save_strategy": "no",
            "disable_tqdm": True,
            "report_to": [],
        }
        trainer = trainer_of(case, config, device, settings, tokenizer, Clock())
        trainer.train()
    # From one step's end to the next: what is done between steps is part of a trainer's work.
    seconds = [end - begin for begin, end in zip(times[WARMUP - 1 :], times[WARMUP:], strict=False)]
    sizes: dict[str, Any] = {}
    if on_gpu:
        sizes = {
            "allocated_bytes": torch.cuda.max_memory_allocated(),
            "reserved_bytes": torch.cuda.max_memory_reserved(),
        }
    return told(case, seconds, sizes)


def sequences(case: Case, config: Any, tokens: int) -> Any:
    """Enough of them for every step, of `tokens` token ids each."""
    from datasets import Dataset

    rows = torch.randint(config.get_text_config().vocab_size, (case.batch * (WARMUP + case.steps), tokens))
    return Dataset.from_dict({"input_ids": rows.tolist()})


def sft_trainer(case: Case, config: Any, device: str, settings: dict[str, Any], tokenizer: Any, clock: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").to(device)
    arguments = SFTConfig(
        max_steps=WARMUP + case.steps,
        max_length=case.tokens,
        loss_type="chunked_nll" if case.chunked else "nll",
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=1e-5,
        max_grad_norm=1.0,
        **settings,
    )
    rows = sequences(case, config, case.tokens)
    return SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[clock])


def ppo_trainer(case: Case, config: Any, device: str, settings: dict[str, Any], tokenizer: Any, clock: Any) -> Any:
    """Its defaults are ours: clipping at 0.2, a temperature of 0.7, a learning rate of 3e-6."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    def built(kind: Any, config: Any) -> Any:
        return kind.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").to(device)

    scalar = copy.deepcopy(config)
    scalar.num_labels = 1
    policy, reference = built(AutoModelForCausalLM, config), built(AutoModelForCausalLM, config)
    value, reward = (built(AutoModelForSequenceClassification, scalar) for _ in range(2))
    arguments = PPOConfig(
        total_episodes=case.batch * (WARMUP + case.steps),
        local_rollout_forward_batch_size=case.batch,
        response_length=case.response_tokens,
        num_ppo_epochs=EPOCHS,
        num_sample_generations=0,
        **settings,
    )
    return PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=sequences(case, config, case.prompt_tokens),
        callbacks=[clock],
    )


if __name__ == "__main__":
    sys.exit(main())
