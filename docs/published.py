"""What others published about memory, and the cells that re-create it: the rows of docs/accuracy.md.

Each row is a published figure, its source, the cell, and which line of our ledger it is compared with. No number is fitted:
where a prediction is off, `why` says what is known of the reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fms
import reported
from rows import FULL, LORA, Job, Left, Row, VerdictRow, claimed, sequences

from vrambench.bench.claims.file import load_claims

GALORE = "GaLore, arXiv 2403.03507, Table 11"
GALORE_SETTINGS = (
    "LLaMA-1B, 256 tokens. Assumed: one sequence of 256 tokens, bf16 and no clipping (their script's defaults), "
    "rank 512, no checkpointing, an 80 GB "
    "card. The paper names no counter; device bytes are compared, as its 24 GB claims are about a card's memory, "
    "and GB are read as "
    "10^9"
)
GALORE_COUNTER = "Which counter and which unit are meant is not known: see all four lines of the ledger above. "


def galore(ident: str, what: str, gigabytes: float, optimizer: str, why: str, **options: Any) -> Row:
    settings = sequences("llama-1b", 1, 256, max_grad_norm=0.0, **options)
    job = Job(axes=f"bf16 none {optimizer} none sft", settings=settings)
    return Row(
        id=ident, what=f"LLaMA-1B, {what}", published=gigabytes, unit="GB", key="device", stated=False,
        job=job, source=GALORE, settings=GALORE_SETTINGS, why=GALORE_COUNTER + why,
    )  # fmt: skip


TORCHTUNE = "torchtune's README at the release for torch 2.6, section Optimization flags"
TUNED: dict[str, Any] = {"gradient_checkpointing": True, "lora_r": 64, "lora_alpha": 128, "adapter_dtype": "bf16"}
TUNED["lora_target_modules"] = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TUNE_SETTINGS = "Llama-3.2-3B, bf16, batch 2, 4096 tokens packed, A100; peak active memory. "
CHUNKED = (
    "Their loss runs over the head's output in chunks, and the model is compiled; ours makes all logits at once, "
    "which at 8,190 tokens "
    "and a vocabulary of 128,256 is the peak. "
)


def torchtune(ident: str, what: str, gibibytes: float, axes: str, added: str, why: str, **settings: Any) -> Row:
    return Row(
        id=ident, what=f"Llama-3.2-3B, {what}", published=gibibytes, unit="GiB", key="active",
        job=Job(axes=axes, settings=sequences("llama-3.2-3b", 2, 4096, **settings)),
        source=TORCHTUNE, settings=TUNE_SETTINGS + added, why=why, alike=ident == "torchtune-packed",
    )  # fmt: skip


PEFT = "huggingface/peft, method_comparison/MetaMathQA/results"
PEFT_SETTINGS = (
    "Llama-3.2-3B, bf16, batch 4, L40S, AdamW, no checkpointing; the maximum reserved over the whole run, "
    "generation for evaluation "
    "(batch 50) included. Assumed: four sequences of 768 tokens, its max_seq_length; q_proj and v_proj, as in its "
    "results; "
    "efficient attention, since a padding mask keeps its batches from the flash kernel"
)
PEFT_WHY = (
    "Its batches are padded to their own longest sequence (210 tokens are a sequence's mean), and few if any hold "
    "four at the limit, "
    "which lowers theirs; lengths that change from batch to batch leave free blocks that do not fit the next, which "
    "raises theirs."
)

TORCHAO = "pytorch/ao, torchao/optim/README.md (torchtune 52d1b838, PyTorch 2.4)"
AO_SETTINGS = (
    "Llama-2-7B on Alpaca, full bf16, A100, peak allocated. Assumed: torchtune's low-memory recipe with batch 2 and "
    "checkpointing, 512 "
    "tokens, gradients kept. Its GB are read as GiB: weights, gradients and two states of 6.74e9 bf16 parameters "
    "are 53.9e9 bytes, more "
    "than 51.6e9, and the two rows' difference is that of the states in GiB (12.4), not in GB (13.3)"
)
AO_WHY = (
    "Alpaca's sequences have different lengths, and theirs is the peak over an epoch. At the end of the backward "
    "pass, our peak, only the "
    "first layer's activations are left; longer sequences, or logits that stay alive, come on top. Which of them is "
    "not known."
)

ROWS: tuple[Row, ...] = (
    *reported.ROWS,
    galore("galore-adamw", "AdamW", 13.60, "adamw_torch",
           "The peak is the step, where PyTorch's list kernels (foreach) hold a copy of all parameters, 2.7 GB. "
           "Allocated bytes are within "
           "1 % of 13.60 GB; if the device was meant, they may have stepped tensor by tensor."),
    galore("galore-adafactor", "Adafactor", 13.15, "adafactor",
           "Assumed: with a first moment, which their script takes as an option (transformers keeps it in fp32 for "
           "bf16 weights: "
           "5.4 GB); without it the prediction is 7.9 GB, far from theirs.", adafactor={"beta1": 0.9}),
    galore("galore-adam8bit", "8-bit Adam", 9.54, "adamw_bnb_8bit",
           "Ours keeps the embeddings' state in 32 bits, as transformers' Trainer does; their script does not, "
           "which is 0.4 GB, the "
           "whole difference."),
    galore("galore-8bit", "8-bit GaLore", 7.95, "galore_adamw_8bit",
           "The SVD's own workspace is not known and not counted.", galore={"rank": 512}),
    galore("galore-8bit-layerwise", "8-bit GaLore, layer by layer", 5.63, "galore_adamw_8bit_layerwise",
           "The SVD's own workspace is not known and not counted.", galore={"rank": 512}),
    torchtune("torchtune-packed", "full, packed", 60.0, "bf16 none adamw_torch_fused none sft",
              "Not compiled, loss over whole logits.",
              "Not explained: 2.1 GiB. It is the size of one more bf16 copy of the logits (1.96 GiB), which is not "
              "proven to be it."),
    torchtune("torchtune-checkpointing", "full, + checkpointing", 24.9, "bf16 none adamw_torch_fused none sft",
              "Each row of their table adds to the one before: here also torch.compile and chunked cross entropy.",
              CHUNKED + "Without those logits the peak would be the optimizer's step: 23.96 GiB in our ledger by "
                  "phase above, 4 % under "
              "theirs.", gradient_checkpointing=True),
    torchtune("torchtune-8bit", "full, + 8-bit AdamW", 17.6, "bf16 none adamw_bnb_8bit none sft",
              "Here also compile, chunked cross entropy, optimizer in backward and activation offloading.",
              CHUNKED + "The optimizer in backward also frees 6 GiB of gradients, and ours holds embeddings' state "
                  "in 32 bits.",
              gradient_checkpointing=True),
    torchtune("torchtune-lora", "LoRA", 8.5, "bf16 lora adamw_torch_fused none sft",
              "Here also compile, chunked cross entropy and activation offloading; r 64 on q, v, o and the MLP, as "
              "in the QLoRA config.",
              CHUNKED + "By phase above, everything but the logits' phase needs 6.8 GiB. Offloading moves the "
                  "checkpoints to the host.", **TUNED),
    torchtune("torchtune-qlora", "QLoRA", 4.6, "nf4 lora adamw_torch_fused none sft",
              "As the LoRA row, with torchao's NF4 tensors, whose scales are quantised.",
              CHUNKED + "By phase above, everything but the logits' phase needs 2.9 GiB. Offloading moves the "
                  "checkpoints to the host.", **TUNED, nf4={"double_quant": True}),
    Row(id="peft-lora", what="Llama-3.2-3B, LoRA r 32", published=20.76, unit="GiB", key="reserved", source=PEFT,
        job=Job(axes=LORA, card="l40s", settings=sequences("llama-3.2-3b", 4, 768, attention="efficient", lora_r=32,
                lora_alpha=64, lora_target_modules=["q_proj", "v_proj"])),
        settings=PEFT_SETTINGS, why=PEFT_WHY),
    Row(id="peft-dora", what="Llama-3.2-3B, DoRA r 32", published=22.85, unit="GiB", key="reserved", source=PEFT,
        job=Job(axes="bf16 dora adamw_torch none sft", card="l40s", settings=sequences("llama-3.2-3b", 4, 768,
                attention="efficient", lora_r=32, lora_alpha=64, lora_target_modules=["q_proj", "v_proj"])),
        settings=PEFT_SETTINGS, why=PEFT_WHY),
    Row(id="peft-full", what="Llama-3.2-3B, full", published=36.20, unit="GiB", key="reserved", source=PEFT,
        job=Job(axes=FULL, card="l40s", settings=sequences("llama-3.2-3b", 4, 768, attention="efficient")),
        settings=PEFT_SETTINGS, why=PEFT_WHY + " An earlier run of theirs has 34.68 GiB."),
    *fms.ROWS,
    Row(id="torchao-adamw", what="Llama-2-7B, full, AdamW (fused)", published=51.6, unit="GiB", key="allocated", source=TORCHAO,
        job=Job(axes="bf16 none adamw_torch_fused none sft",
                settings=sequences("llama-2-7b", 2, 512, gradient_checkpointing=True)), settings=AO_SETTINGS, why=AO_WHY),
    Row(id="torchao-8bit", what="Llama-2-7B, full, bitsandbytes' 8-bit AdamW", published=39.3, unit="GiB", key="allocated",
        job=Job(axes="bf16 none adamw_bnb_8bit none sft",
                settings=sequences("llama-2-7b", 2, 512, gradient_checkpointing=True)), source=TORCHAO, settings=AO_SETTINGS,
        why=AO_WHY + " Ours keeps the embeddings' state in 32 bits (0.7 GiB), theirs does not: without it ours "
                     "would be 3 % low, as above."),
    Row(id="qlora-7b", what="LLaMA-7B, QLoRA", published=5.0, unit="GB", key="allocated", stated=False,
        job=Job(axes="nf4 lora paged_adamw_8bit none sft", card="rtx-3090", settings=sequences("llama-2-7b", 1, 512,
                gradient_checkpointing=True, lora_r=64, lora_alpha=16, lora_target_modules="all-linear", adapter_dtype="bf16",
                nf4={"double_quant": True})),
        source="QLoRA, arXiv 2305.14314, Figure 6",
        settings="7B, batch 1, 512 tokens. Assumed: the paper's recipe (double quantisation, r 64 on every linear "
                 "layer, bf16 adapter, "
        "paged 8-bit AdamW, checkpointing)",
        why="Theirs is an estimate by parts (weights, adapter, states, inputs' gradients without attention). Ours "
            "leaves out the paged "
        "states, which lie in managed memory: with them it is 5.1 GB."),
)  # fmt: skip


CLAIMS = load_claims(Path(__file__).resolve().parents[1] / "claims.yaml").claims
VERDICTS: tuple[VerdictRow, ...] = (
    *reported.VERDICTS,
    *(claimed(claim, card="t4") for name, claim in CLAIMS.items() if name.startswith("t4-")),
)
VERDICT_SETTINGS = "Rows t4-... are claims, whose settings and source are in [claims.md](claims.md)."

LEFT: tuple[Left, ...] = (
    *reported.LEFT,
    Left("GaLore Table 11, layer-wise AdamW 9.63, Adafactor 10.32 and 8-bit Adam 6.93 GB",
         "not asked yet: adamw_torch_layerwise, adafactor_layerwise and adamw_bnb_8bit_layerwise are values now"),
    Left("torchtune, 25.5 GiB unpacked; compile 51.0; chunked cross entropy 42.9; optimizer in backward 23.1; "
         "activation offloading "
         "21.8", "lengths are not published; the other techniques are no values of our axes"),
    Left("torchao, 4-bit AdamW 33.2 GB and its own 8-bit 39.1 GB",
         "not asked yet: adamw_torch_4bit and adamw_torch_8bit are values now"),
    Left("torchao offload, 1.1B, 16 GB card", "a vision model; torchao's offload is no value of our axis"),
    Left("QLoRA Figure 6, 33B and 65B (19.3, 37.1 GB)", "presets for them are missing; 13B is a claim"),
    Left("T4 table, FP4 rows and two T4", "fp4 is no precision here; one GPU only"),
    Left("ReMax repository, maximum batch 32 against 42", "ZeRO-3 with offload of reward and reference is no value "
        "of our axis yet"),
)  # fmt: skip
