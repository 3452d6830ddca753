"""Figures and verdicts that people reported of their own jobs: more rows of docs/accuracy.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rows import FULL, LORA, QLORA, Job, Left, Row, VerdictRow, sequences

MODELS = Path(__file__).with_name("models")
"""Shapes that are no presets."""

CHECKPOINTED: dict[str, Any] = {"gradient_checkpointing": True}
ATTENTION: dict[str, Any] = {
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
}
ALL_LINEAR: dict[str, Any] = {"lora_r": 8, "lora_alpha": 16, "lora_target_modules": "all-linear"}


def trainer(ident: str, what: str, nbytes: int, axes: str, version: str, why: str, **settings: Any) -> Row:
    return Row(
        id=ident, what=f"Mistral-7B, {what}, transformers {version}", published=nbytes, unit="B", key="allocated",
        job=Job(axes=axes, settings=sequences("mistral-7b", 4, 4096, **CHECKPOINTED, **settings)), known=True,
        source=f"a public figure of a job with transformers {version} on an A100-80",
        settings="SFT in bf16, 4 x 4096, checkpointing, flash attention, AdamW; LoRA of rank 16 on q, k, v and o", why=why,
    )  # fmt: skip


EXACT = "What is left is less than a MiB."


def factory(thousands: int, gigabytes: float) -> Row:
    settings = sequences(str(MODELS / "llama-2-7b-64k"), 1, thousands * 1024, **CHECKPOINTED, **ALL_LINEAR)
    return Row(
        id=f"factory-{thousands}k", what=f"Llama-2-7B, QLoRA, {thousands}k tokens", published=gigabytes, unit="GiB", key="device",
        job=Job(axes=QLORA, card="a100-40gb", settings=settings), stated=False, source="LLaMA-Factory's wiki",
        settings="Batch 1, checkpointing, A100-40. Assumed: rank 8 on all linear layers, GB read as GiB",
        why="Theirs is rounded to whole GB.",
    )  # fmt: skip


def deepseek(thousands: int, gibibytes: float) -> Row:
    model = str(MODELS / "deepseek-v3-2-layers")
    return Row(
        id=f"liger-deepseek-{thousands}k", what=f"DeepSeek-V3 of two layers, full, {thousands}k tokens", published=gibibytes,
        unit="GiB", key="allocated", phase="learn", source="Liger", stated=False,
        job=Job(axes=FULL, settings=sequences(model, 1, thousands * 1024, attention="efficient")),
        settings="bf16, forward and backward pass. Assumed: batch 1, no checkpointing; compared with the first step's `learn`, "
                 "when there is no optimizer state",
        why="Which counter was read is not known.",
    )  # fmt: skip


def ministral(ident: str, what: str, megabytes: int, axes: str, **settings: Any) -> Row:
    settings = ALL_LINEAR | {"loss": "nll_4_46"} | settings
    return Row(
        id=f"ministral-{ident}", what=f"Ministral-8B, {what}", published=megabytes, unit="MiB", key="device", stated=False,
        job=Job(axes=axes, settings=sequences("ministral-8b", 1, 4096, **settings)), source="bitsandbytes",
        settings="4096 tokens, one GPU. Assumed: batch 1, no checkpointing, rank 8 on all linear layers, MB read as MiB",
        why="Batch, rank and attention are not told; the difference between the rows is that of the weights, in ours as in theirs.",
    )  # fmt: skip


def glm(ident: str, gigabytes: int, axes: str) -> Row:
    settings = sequences(str(MODELS / "glm-4-9b-128k"), 1, 10_240, **CHECKPOINTED, **ALL_LINEAR, loss="nll_4_46")
    return Row(
        id=f"factory-glm-{ident}", what=f"GLM-4-9B, {ident}, 10,240 tokens", published=gigabytes, unit="GiB", key="device",
        job=Job(axes=axes, settings=settings), stated=False, alike=False, source="LLaMA-Factory",
        settings="Assumed: batch 1, checkpointing, rank 8 on all linear layers, GB read as GiB",
        why="Theirs is of an older loss, and of weights cast to fp32 where they are not quantised; what else, is not told.",
    )  # fmt: skip


def experts(
    ident: str, what: str, gigabytes: float, source: str, model: str, axes: str, why: str, **settings: Any
) -> Row:
    settings = CHECKPOINTED | {"lora_r": 8, "lora_alpha": 16, "loss": "nll_4_46"} | settings
    return Row(
        id=ident, what=what, published=gigabytes, unit="GiB", key="device",
        job=Job(axes=axes, settings=sequences(model, 1, 2048, **settings)),
        source=source, stated=False, alike=False, why=why,
        settings="Assumed: batch 1, 2,048 tokens, checkpointing, rank 8, GB read as GiB",
    )  # fmt: skip


def longest(tokens: int, card: str, size: int) -> VerdictRow:
    settings = sequences("llama-3.1-8b", 1, tokens, **CHECKPOINTED, loss="nll_4_46", attention="flash_attention_2")
    settings |= {"lora_r": 32, "lora_alpha": 32, "lora_target_modules": "all-linear"}
    return VerdictRow(
        id=f"unsloth-{size}gb", fits=True, job=Job(axes="nf4 lora adamw_bnb_8bit none sft", card=card, settings=settings),
        what=f"Llama-3.1-8B QLoRA, {tokens:,} tokens, the longest that ran on {size} GB with FA2 (unsloth's table)",
    )  # fmt: skip


def grpo(ident: str, model: str, published: float, unit: str, card: str) -> Row:
    settings: dict[str, Any] = {
        "model": model,
        "prompt_tokens": 3072,
        "response_tokens": 1024,
        "batch_size": 8,
        "group_size": 16,
    }
    settings |= {"rollout_batch": 1, "loss": "chunked_nll", **CHECKPOINTED, **ALL_LINEAR}
    return Row(
        id=f"grpo-{ident}", what=f"{model}, GRPO with LoRA, a group of 16, micro-batches of 8, 4,096 tokens", published=published,
        unit=unit, key="reserved", job=Job(axes="bf16 lora adamw_torch none grpo", card=card, settings=settings), stated=False,
        alike=False, source="a public figure above the context, by NVML",
        settings="Rank 8 on all linear layers, log-probabilities in chunks of 256 MiB of logits. Assumed: 3,072 tokens are the "
                 "prompt's, checkpointing, AdamW, the rollout by the model itself, and our chunks",
        why="Neither how long prompts and responses are is told, nor what generates them, nor the allocator's settings: ours keeps "
            "1.3 to 3 GiB more than it has in use.",
    )  # fmt: skip


ROWS: tuple[Row, ...] = (
    trainer("trainer-full", "full", 72_434_837_504, FULL, "4.48.1", EXACT, loss="nll_4_46"),
    trainer("trainer-lora", "LoRA", 26_704_571_904, LORA, "4.48.1", EXACT, loss="nll_4_46", **ATTENTION),
    trainer("trainer-lora-4-45", "LoRA", 25_653_881_344, LORA, "4.45.2", EXACT, loss="nll_4_45", **ATTENTION),
    *(factory(*told) for told in ((1, 6), (2, 7), (4, 9), (8, 12), (16, 19), (32, 32))),
    *(deepseek(*told) for told in ((2, 13.1), (4, 16.24), (8, 26.18))),
    ministral("bf16", "LoRA", 72_840, LORA),
    ministral("nf4", "QLoRA", 63_082, QLORA),
    ministral("prepared", "QLoRA, prepared by PEFT", 81_076, QLORA, fp32_modules="all"),
    glm("LoRA", 66, LORA),
    glm("QLoRA", 72, QLORA),
    experts(
        "factory-gpt-oss",
        "gpt-oss-20b, LoRA on one 48 GB card",
        44,
        "LLaMA-Factory",
        "gpt-oss-20b",
        LORA,
        "Just over 44 GB, of which counter is not told: ours allocates 43.9 GiB, and takes 47.4 GiB of the device.",
        lora_target_modules="all-linear",
    ),
    experts(
        "factory-mixtral",
        "Mixtral-8x7B, QLoRA",
        28,
        "LLaMA-Factory",
        "mixtral-8x7b",
        QLORA,
        "Each expert was a module of its own then; here they are stacked parameters, as in transformers 5.",
        lora_target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        nf4={"quantize_moe_experts": True},
    ),
    grpo("qwen-0.5b", "qwen2.5-0.5b", 5.63, "GiB", "a100-40gb"),
    grpo("qwen-1.5b", "qwen2.5-1.5b", 12.19, "GiB", "a100-40gb"),
    grpo("smollm2-1.7b", "smollm2-1.7b", 14_086_569_984, "B", "l4"),
)
AXOLOTL = {"lora_r": 32, "lora_target_modules": "all-linear", "loss": "nll"}
VERDICTS: tuple[VerdictRow, ...] = (
    VerdictRow(id="factory-64k", what="Llama-2-7B QLoRA on an A100-40, 64k tokens (LLaMA-Factory's wiki)", fits=False,
               job=factory(64, 0).job),
    *(VerdictRow(id=f"axolotl-int8-{batch}", fits=batch == 1,
                 what=f"Mistral-7B int8 LoRA on an A100-80, 4096 tokens, no checkpointing, micro-batch {batch} (axolotl)",
                 job=Job(axes="int8 lora adamw_torch none sft", settings=sequences("mistral-7b", batch, 4096, **AXOLOTL)))
      for batch in (1, 2)),
    VerdictRow(id="axolotl-qwen3-30b", fits=True, 
               what="Qwen3-30B-A3B QLoRA on 24 GB, experts quantised (axolotl, unsloth: 17 to 24 GB)",
               job=Job(axes=QLORA, card="rtx-4090", settings=sequences("qwen3-30b-a3b", 1, 2048, **CHECKPOINTED, **ATTENTION,
                       loss="nll_4_46", nf4={"quantize_moe_experts": True, "double_quant": True}))),
    VerdictRow(id="trl-ppo-13b", fits=False, what="PPO on a 13B in 4 bit, prepared by PEFT, on 24 GB (TRL)",
               job=Job(axes="nf4 lora adamw_torch none ppo", card="rtx-4090", settings={
                       "model": "llama-2-13b", "prompt_tokens": 256, "response_tokens": 128, "batch_size": 4, "rollout_batch": 16,
                       "lora_r": 16, "fp32_modules": "all", "compute_dtype": "fp16", "autocast": "fp16"})),
    longest(5_789, "rtx-4090", 24),
    longest(28_454, "a100-80gb", 80),
)  # fmt: skip
LEFT: tuple[Left, ...] = (
    Left("Llama-3.1-8B QLoRA, 2,551 tokens, the longest that ran on 16 GB with FA2 (unsloth's table)",
         "nobody's reading of what such a card of 16 GB offers is known here"),
)  # fmt: skip
