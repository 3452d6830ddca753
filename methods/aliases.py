"""What other tools call our values and fields: names that mean exactly one thing here, and what they are called here.

    value_called("precision", "4bit")      Alias(name="nf4", source="unsloth, axolotl: load_in_4bit")
    field_called("seq_len")                Alias(name="max_length", source="torchtune: max_seq_len")

The command line takes them; files are written in our names, and an error there says which. What means something else here, or more
than one thing, is in `elsewhere.py` and in `errors.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Alias(NamedTuple):
    """`name`: ours. `source`: the tools that call it otherwise."""

    name: str
    source: str


_VALUES = (
    # axis or field, ours, theirs, whose
    ("precision", "nf4", "4bit 4-bit", "unsloth, axolotl: load_in_4bit"),
    ("precision", "int8", "8bit 8-bit llm.int8", "transformers, axolotl: load_in_8bit"),
    ("precision", "fp32", "float32 32-true", "torch; Lightning"),
    ("precision", "bf16", "bfloat16 bf16-true", "torch; Lightning, LitGPT"),
    ("precision", "fp16", "float16 half 16-true", "torch; Lightning, LitGPT"),
    ("precision", "bf16_amp", "bf16-mixed", "Lightning, LitGPT"),
    ("precision", "fp16_amp", "16-mixed", "Lightning, LitGPT"),
    ("adapter", "none", "full fft full_finetune", "LLaMA-Factory: finetuning_type; torchtune: recipes"),
    ("optimizer", "adamw_torch", "adamw torch.optim.adamw", "torch"),
    ("optimizer", "adamw_bnb_8bit", "adamw_8bit adamw8bit", "transformers; bitsandbytes"),
    ("optimizer", "paged_adamw_32bit", "paged_adamw pagedadamw pagedadamw32bit", "transformers; bitsandbytes"),
    ("optimizer", "paged_adamw_8bit", "pagedadamw8bit", "bitsandbytes, torchtune"),
    ("optimizer", "lion_32bit", "lion", "transformers: OptimizerNames.LION"),
    ("optimizer", "galore_adamw", "galore", "LLaMA-Factory: use_galore"),
    ("optimizer", "apollo_adamw", "apollo", "LLaMA-Factory: use_apollo"),
    ("offload", "zero2", "ds_z2_config", "LLaMA-Factory: examples/deepspeed"),
    ("offload", "zero2_optimizer", "zero2_offload ds_z2_offload_config", "LLaMA-Factory: examples/deepspeed"),
    ("offload", "zero3_all", "zero3_offload ds_z3_offload_config", "LLaMA-Factory: examples/deepspeed"),
    ("algorithm", "reward", "rm reward_modeling reward_trainer", "LLaMA-Factory: stage; TRL"),
    ("attention", "flash_attention_2", "fa2 flash_attn", "LLaMA-Factory: flash_attn; axolotl"),
    ("loss", "cut_cross_entropy", "cce", "axolotl: cut_cross_entropy"),
    ("packing", "bfd_split", "bfd-requeue", "TRL: packing_strategy"),
    ("lora_target_modules", "all-linear", "all", "LLaMA-Factory: lora_target"),
    *(
        (field, ours, theirs, "torch")
        for field in ("compute_dtype", "autocast", "adapter_dtype", "reference_dtype")
        for ours, theirs in (("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32"))
        if (field, ours) != ("autocast", "fp32")
    ),
)

_FIELDS = (
    # ours, theirs, whose
    ("model", "model_name_or_path base_model", "transformers, LLaMA-Factory; axolotl"),
    ("batch_size", "micro_batch_size", "axolotl, LitGPT"),
    ("batch_size", "per_device_train_batch_size per_device_batch_size", "transformers, TRL"),
    ("eval_batch_size", "per_device_eval_batch_size", "transformers, TRL"),
    ("gradient_accumulation_steps", "accumulate_grad_batches gradient_accumulation", "Lightning"),
    ("gradient_checkpointing", "activation_checkpointing enable_activation_checkpointing", "DeepSpeed; torchtune"),
    ("max_length", "max_seq_length max_seq_len seq_len seq_length", "unsloth, LitGPT; torchtune"),
    ("max_length", "sequence_len", "axolotl"),
    ("max_length", "cutoff_len", "LLaMA-Factory"),
    ("max_length", "sequence_length sequence_tokens model_max_length", "FastChat and others"),
    ("prompt_tokens", "max_prompt_length", "TRL, verl"),
    ("response_tokens", "max_completion_length max_new_tokens response_length", "TRL, transformers"),
    ("group_size", "num_generations", "TRL: GRPOConfig"),
    ("group_size", "n_samples_per_prompt", "OpenRLHF"),
    ("rollout_batch", "rollout_batch_size", "OpenRLHF"),
    ("lora_r", "r", "PEFT: LoraConfig"),
    ("lora_r", "lora_rank rank", "LLaMA-Factory, torchtune"),
    ("lora_target_modules", "target_modules lora_target", "PEFT; LLaMA-Factory"),
    ("lora_modules_to_save", "modules_to_save additional_target", "PEFT; LLaMA-Factory"),
    ("compute_dtype", "bnb_4bit_compute_dtype", "transformers: BitsAndBytesConfig"),
    ("attention", "attn_implementation", "transformers"),
    ("packing", "packing_strategy", "TRL: SFTConfig"),
    ("learning_rate", "lr", "torch, torchtune"),
    ("max_grad_norm", "gradient_clipping clip_grad_norm gradient_clip_val", "DeepSpeed; torchtune; Lightning"),
)


def _values() -> dict[str, dict[str, Alias]]:
    found: dict[str, dict[str, Alias]] = {}
    for place, ours, theirs, source in _VALUES:
        found.setdefault(place, {}).update(dict.fromkeys(theirs.split(), Alias(ours, source)))
    return found


VALUES: Mapping[str, Mapping[str, Alias]] = _values()
"""By axis or field, then by their name."""
FIELDS_ELSEWHERE: Mapping[str, Alias] = {
    name: Alias(ours, source) for ours, theirs, source in _FIELDS for name in theirs.split()
}


def value_called(place: str, name: str) -> Alias | None:
    """What a value of an axis or field is called here, where `name` is another tool's."""
    return VALUES.get(place, {}).get(name.lower())


def field_called(name: str) -> Alias | None:
    """What a field is called here, where `name` is another tool's."""
    return FIELDS_ELSEWHERE.get(name.lower())
