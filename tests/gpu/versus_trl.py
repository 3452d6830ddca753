#!/usr/bin/env python3
"""Is our supervised fine-tuning as fast and as small as TRL's? The same model, lengths, batch, optimizer and attention.

    tests/gpu/versus_trl.py --device cuda > versus_trl.jsonl
    tests/gpu/versus_trl.py --device cpu --tiny      the same on the CPU, on a tiny model

Each side of each case has a process of its own: TRL's SFTTrainer over sequences of token ids, and `vrambench run` of the cell.
One JSON object a line: `case`, both sides' `step_seconds` (warm-up left out), `tokens_per_second` (of the median step),
`allocated_bytes` and `reserved_bytes` (peaks; null on the CPU), and `ratio`, ours over TRL's. Needs trl, which vrambench does
not: a side that cannot run has an `error`. Exit code: 0, or 1 if a side failed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

SECONDS = 300
"""A side's limit, imports included."""
WARMUP = 2
COMMAND = "import sys; from vrambench.bench.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Case:
    """Full fine-tuning in bf16 with AdamW on `batch` sequences of `tokens` tokens."""

    model: str
    batch: int
    tokens: int
    checkpointing: bool
    steps: int = 8

    @property
    def name(self) -> str:
        return f"{self.model} {self.batch}x{self.tokens}{' checkpointing' if self.checkpointing else ''}"


CASES = (Case("gpt2", 8, 512, checkpointing=False), Case("llama-1b", 4, 512, checkpointing=True))
TINY = (Case("tiny", 4, 32, checkpointing=False, steps=3), Case("tiny", 4, 32, checkpointing=True, steps=3))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Supervised fine-tuning: ours against TRL's.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # the process of TRL's side
    chosen = parser.parse_args(arguments)
    if chosen.one:
        print(json.dumps(trained_by_trl(Case(**chosen.one), chosen.device)))
        return 0
    good = True
    for case in TINY if chosen.tiny else CASES:
        ours, theirs = ours_of(case, chosen.device), theirs_of(case, chosen.device)
        row = about(case, chosen.device) | {"ours": ours, "trl": theirs, "ratio": ratios(ours, theirs)}
        good &= "error" not in ours and "error" not in theirs
        print(json.dumps(row), flush=True)
    return 0 if good else 1


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


def ours_of(case: Case, device: str) -> dict[str, Any]:
    """The cell's result from a run of vrambench."""
    axes = ("--precision", "bf16", "--adapter", "none", "--optimizer", "adamw_torch", "--offload", "none")
    settings = {
        "batch_size": case.batch,
        "prompt_tokens": 1,
        "response_tokens": case.tokens - 1,
        "gradient_checkpointing": str(case.checkpointing).lower(),
        "steps": case.steps,
        "warmup_steps": WARMUP,
    }
    chosen = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-P", "-c", COMMAND, "run", *axes, "--algorithm", "sft", "--model", case.model]
        command += ["--budget", "4TiB", "--device", device, "--jobs", "1", "--out", str(out), *chosen]
        failed = run(command)
        results = [json.loads(file.read_text()) for file in (out / "cells").glob("*.json")]
    if failed or len(results) != 1 or results[0]["status"] != "ok":
        return {"error": failed or (results[0]["reason"] if results else "no result")}
    memory = results[0]["memory"]
    sizes = {f"{kind}_bytes": memory[f"{kind}_bytes"] for kind in ("allocated", "reserved")}
    return told(case, results[0]["throughput"]["step_seconds"], sizes if device == "cuda" else {})


def theirs_of(case: Case, device: str) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as output:
        failed = run([sys.executable, "-P", __file__, "--one", json.dumps(asdict(case)), "--device", device], output)
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
    """Steps of SFTTrainer: the clock is read, and the device waited for, after each."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from vrambench.methods.models import model_config

    on_gpu = device == "cuda"
    config = model_config(case.model)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").to(device)
    rows = torch.randint(2, config.get_text_config().vocab_size, (case.batch * (WARMUP + case.steps), case.tokens))
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=case.batch,
            max_steps=WARMUP + case.steps,
            max_length=case.tokens,
            gradient_checkpointing=case.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            optim="adamw_torch",
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            bf16=False,  # the weights are; autocast would be another precision
            use_cpu=not on_gpu,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
        )
        dataset = Dataset.from_dict({"input_ids": rows.tolist()})
        trainer = SFTTrainer(
            model=model, args=settings, train_dataset=dataset, processing_class=tokenizer, callbacks=[Clock()]
        )
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


if __name__ == "__main__":
    sys.exit(main())
