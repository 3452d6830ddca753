"""Names that trainers elsewhere have for what is no single field here: transformers' Trainer, TRL, PEFT, axolotl, LLaMA-Factory
and torchtune.

said_here("optim")          "it is the axis optimizer (--optimizer adamw_torch)"
"""

from __future__ import annotations

_HALF = "over a model in fp32 it is precision {0}_amp; over one in {0} (precision {0}) or a quantised one it is autocast={0}"
_CONSTANT = "the learning rate is constant here, and memory does not depend on it"

HERE = {
    name: said
    for names, said in (
        ("bf16", _HALF.format("bf16")),
        ("fp16", _HALF.format("fp16")),
        ("fp32", "it is precision fp32"),
        ("bnb_4bit_quant_type", "it is precision nf4"),
        (
            "dtype torch_dtype quantization quantization_bit quantization_config",
            "it is the axis precision (--precision bf16, or nf4)",
        ),
        ("bnb_4bit_use_double_quant double_quantization", "it is nf4.double_quant"),
        ("use_peft use_lora peft_type", "it is the axis adapter (--adapter lora)"),
        ("use_dora peft_use_dora", "it is adapter dora"),
        (
            "finetuning_type full_finetuning",
            "it is the axis adapter (--adapter lora, or none, which is full fine-tuning)",
        ),
        ("optim", "it is the axis optimizer (--optimizer adamw_torch)"),
        ("deepspeed", "it is the axis offload"),
        (
            "torch_compile compile",
            "what torch.compile makes of a model takes other memory, and is neither run nor predicted",
        ),
        ("stage rl trainer method", "it is the axis algorithm (--algorithm sft)"),
        ("num_train_epochs num_epochs epochs", "a job is as long as its optimizer steps (steps=4)"),
        ("ppo_epochs num_ppo_epochs", "it is ppo.epochs"),
        ("warmup_ratio lr_scheduler_type lr_scheduler", _CONSTANT),
        ("loss_type", "in SFT it is loss (nll, chunked_nll)"),
        (
            "liger_kernel use_liger use_liger_kernel enable_liger_kernel",
            "its fused cross-entropy is loss=liger; its other kernels are not here",
        ),
        ("flash_attn flash_attention use_flash_attention_2", "it is attention=flash_attention_2"),
        ("gradient_checkpointing_kwargs", "what it says is use_reentrant=true or false"),
        ("save_strategy", "what is saved at the end is save (model, merged)"),
        ("eval_packing", "an evaluation packs as training does (packing)"),
    )
    for name in names.split()
}
"""What says the same here, as the end of an error about a field."""


def said_here(name: str) -> str | None:
    """What says the same here as a trainer's argument `name`."""
    return HERE.get(name.lower())
