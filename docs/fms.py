"""The figures of foundation-model-stack/fms-acceleration, with configurations and versions: rows of docs/accuracy.md.

Its benchmarks train with transformers' Trainer on one A100-80: scripts/benchmarks has the arguments (defaults.yaml,
scenarios*.yaml), the versions (refs/requirements*.txt) and the figures (refs/*.csv), plugins/ what is done to a quantised model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rows import FULL, LORA, QLORA, Job, Key, Row, sequences

FMS = "foundation-model-stack/fms-acceleration, scripts/benchmarks/refs"
MODELS = Path(__file__).with_name("models")
ATTENTION: dict[str, Any] = {"lora_r": 16, "lora_alpha": 16}
ATTENTION["lora_target_modules"] = ["q_proj", "k_proj", "v_proj", "o_proj"]
EVERYWHERE = (
    "Sequences of 4,096 tokens, checkpointing, flash attention, AdamW, and the loss of transformers 4.45; LoRA of rank 16 on q, "
    "k, v and o; quantised weights in nf4, quantised twice"
)
NVML = "NVML counts what the allocator keeps free, which depends on the order of requests, and the context."
RESIDENT = "What is left does not grow with the batch."

POWERLM: dict[str, Any] = {"loss": "nll_4_45", "autocast": "bf16"}
POWERLM_LORA = POWERLM | ATTENTION | {"lora_dropout": 0.1}
POWERLM_QLORA = POWERLM_LORA | {"nf4": {"double_quant": True}}
CAST = POWERLM_QLORA | {"fp32_modules": ["norms"]}


def powerlm(
    ident: str, what: str, batch: int, nbytes: int, mebibytes: int, axes: str, settings: dict[str, Any]
) -> tuple[Row, Row]:
    """Allocated bytes, and the device's by NVML."""
    job = Job(
        axes=axes, settings=sequences(str(MODELS / "powerlm-3b"), batch, 4096, gradient_checkpointing=True, **settings)
    )
    told = (
        EVERYWHERE
        + "; bf16 weights under bf16 autocast, transformers 4.45.0, PEFT 0.12, bitsandbytes 0.43.3, torch 2.4.1"
    )
    where = f"{FMS}/a100_80gb_granite.csv; the model's shape: arXiv 2408.13359"

    def row(suffix: str, published: float, unit: str, key: Key, why: str) -> Row:
        return Row(
            id=f"powerlm-{ident}-{batch}{suffix}", what=f"PowerLM-3B, {what}, batch {batch}", published=published, unit=unit,
            key=key, job=job, source=where, settings=told, why=why, known=not suffix,
        )  # fmt: skip

    return row("", nbytes, "B", "allocated", RESIDENT), row("-nvml", mebibytes, "MiB", "device", NVML)


TABLES = 32 * 2 * 32_768 * 128 * 2
"""Bytes of cosines and sines in Mistral-7B until transformers 4.42: in each of 32 layers two bf16 tables of 32,768 x 128."""
HELD = "Until transformers 4.42 each of the 32 layers held cosines and sines of 32,768 positions, 512 MiB, which are added here. "
MISTRAL: dict[str, Any] = {"loss": "nll_4_45"}
MISTRAL_LORA = MISTRAL | ATTENTION | {"adapter_dtype": "bf16"}
OLDER_PEFT = "PEFT until 0.10 made adapters in the type of the layer they are on: bf16, and fp32 on quantised layers. "
FP16: dict[str, Any] = {"autocast": "fp16", "compute_dtype": "fp16", "nf4": {"double_quant": True}, "loss": "nll_4_45"}
INPUTS = (
    "bitsandbytes until 0.43.1 kept the inputs of its 4-bit products for the backward pass (its pull request 1270), which matters "
    "where a layer's backward pass is the peak, and not where the logits are. "
)


def mistral(
    ident: str,
    what: str,
    batch: int,
    published: float,
    unit: str,
    key: Key,
    axes: str,
    settings: dict[str, Any],
    why: str,
    *,
    alike: bool = True,
) -> Row:
    job = Job(axes=axes, settings=sequences("mistral-7b", batch, 4096, gradient_checkpointing=True, **settings))
    return Row(
        id=ident, what=f"Mistral-7B, {what}, batch {batch}", published=published, unit=unit, key=key, job=job, alike=alike,
        source=f"{FMS}/a100_80gb.csv of 2024-05",
        settings=EVERYWHERE, why=HELD + why, held_bytes=TABLES, known=alike and key == "allocated",
    )  # fmt: skip


LLAMA_70B = Row(
    id="fms-llama-2-70b", what="Llama-2-70B, QLoRA, batch 4", published=68_159_977_472, unit="B", key="allocated", alike=False,
    job=Job(axes=QLORA, settings=sequences(str(MODELS / "llama-2-70b"), 4, 4096, gradient_checkpointing=True, use_reentrant=True,
            **FP16, **ATTENTION)),
    source=f"{FMS}/a100_80gb.csv of 2024-05", settings=EVERYWHERE,
    held_bytes=80 * 2 * 4_096 * 128 * 2,
    why="Until transformers 4.42 each of the 80 layers held cosines and sines of 4,096 positions, 160 MiB, which are added "
        "here. " + INPUTS + "A hidden state and one of the MLP's, 16,384 x (8,192 + 28,672) x 2 B = 1.1 GiB, is what is missing.",
)  # fmt: skip

ROWS: tuple[Row, ...] = (
    *powerlm("full", "full", 4, 35_134_836_736, 47_683, FULL, POWERLM),
    *powerlm("full", "full", 8, 47_059_390_976, 52_927, FULL, POWERLM),
    *powerlm("lora", "LoRA", 4, 20_193_463_808, 24_383, LORA, POWERLM_LORA),
    *powerlm("lora", "LoRA", 8, 33_176_473_088, 41_093, LORA, POWERLM_LORA),
    *powerlm("qlora", "QLoRA", 4, 15_151_677_952, 19_379, QLORA, POWERLM_QLORA),
    *powerlm("qlora", "QLoRA", 8, 28_134_687_232, 35_837, QLORA, POWERLM_QLORA),
    *powerlm("prepared", "QLoRA, norms in fp32 as TRL left them", 4, 18_174_161_920, 23_127, QLORA, CAST),
    *powerlm("prepared", "QLoRA, norms in fp32 as TRL left them", 8, 34_177_070_080, 43_327, QLORA, CAST),
    Row(id="fms-lora-4-48-nvml", what="Mistral-7B, LoRA, transformers 4.48.1, batch 4", published=28.9, unit="GiB", key="device",
        job=Job(axes=LORA, settings=sequences("mistral-7b", 4, 4096, gradient_checkpointing=True, loss="nll_4_46", **ATTENTION)),
        source=FMS, settings=EVERYWHERE.replace("4.45", "4.48"), why=NVML),
    mistral("fms-lora-4", "LoRA", 4, 26_108_963_328, "B", "allocated", LORA, MISTRAL_LORA, OLDER_PEFT),
    mistral("fms-lora-4-nvml", "LoRA", 4, 29_731, "MiB", "device", LORA, MISTRAL_LORA, OLDER_PEFT + NVML),
    mistral("fms-lora-8", "LoRA", 8, 37_098_695_168, "B", "allocated", LORA, MISTRAL_LORA, OLDER_PEFT),
    mistral("fms-lora-8-nvml", "LoRA", 8, 43_195, "MiB", "device", LORA, MISTRAL_LORA, OLDER_PEFT + NVML),
    mistral("fms-full-4", "full", 4, 72_971_724_288, "B", "allocated", FULL, MISTRAL, RESIDENT),
    mistral("fms-full-4-nvml", "full", 4, 77_705, "MiB", "device", FULL, MISTRAL, NVML),
    mistral("fms-full-8", "full", 8, 72_972_117_504, "B", "allocated", FULL, MISTRAL, RESIDENT),
    mistral("fms-full-8-nvml", "full", 8, 74_383, "MiB", "device", FULL, MISTRAL,
            NVML + " Theirs is lower at batch 8 than at batch 4: near the card's end the allocator gives free segments back and "
                   "asks again, which this comparison, made without a cap, does not do."),
    mistral("fms-qlora-4", "QLoRA under fp16 autocast", 4, 15_860_019_712, "B", "allocated", QLORA, FP16 | ATTENTION, OLDER_PEFT),
    mistral("fms-qlora-8", "QLoRA under fp16 autocast", 8, 26_849_751_552, "B", "allocated", QLORA, FP16 | ATTENTION, OLDER_PEFT),
    mistral("fms-prepared-4", "QLoRA under fp16 autocast, prepared by PEFT", 4, 22_825_932_800, "B", "allocated", QLORA,
            FP16 | ATTENTION | {"fp32_modules": "all", "use_reentrant": True}, INPUTS, alike=False),
    mistral("fms-prepared-8", "QLoRA under fp16 autocast, prepared by PEFT", 8, 40_278_956_032, "B", "allocated", QLORA,
            FP16 | ATTENTION | {"fp32_modules": "all", "use_reentrant": True}, INPUTS, alike=False),
    LLAMA_70B,
)  # fmt: skip
