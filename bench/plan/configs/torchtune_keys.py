"""torchtune's keys, and what its components are called here. Read: torchtune 0.7 (bd2a0fc, April 2026)."""

from __future__ import annotations

from vrambench.bench.plan.configs.keys import INERT, Doubt, Table
from vrambench.bench.plan.configs.training_arguments import COMPILED, SEVERAL

USED = """
model._component_ model.lora_attn_modules model.apply_lora_to_mlp model.apply_lora_to_output model.lora_rank model.lora_alpha
model.lora_dropout model.use_dora model.quantize_base policy_model._component_ reward_and_value_model._component_
reward_and_value_model.base_model_path tokenizer.max_seq_len dataset.packed optimizer._component_ optimizer.lr optimizer.fused
optimizer.offload_gradients loss._component_ loss.beta loss.label_smoothing loss.epsilon loss.value_clip_range loss.value_coeff
dtype batch_size gradient_accumulation_steps enable_activation_checkpointing enable_activation_offloading clip_grad_norm
optimizer_in_bwd dataset_val batch_size_val run_val_every_n_steps ppo_batch_size ppo_epochs forward_batch_size
max_generated_tokens temperature gamma lmbda kl_coeff whiten_rewards
"""
WITHOUT = """
output_dir seed shuffle epochs max_steps_per_epoch num_steps log_every_n_steps log_level log_peak_memory_stats metric_logger
lr_scheduler profiler checkpointer ref_checkpointer ref_policy_checkpointer value_checkpointer reward_checkpointer
resume_from_checkpoint save_adapter_weights_only save_every_n_steps save_every_n_epochs enable_async_checkpointing low_cpu_ram
cudnn_deterministic_mode collate_fn name min_response_length penalise_no_eos reward_penalty stop_token_ids top_k
tokenizer._component_ dataset._component_ optimizer.weight_decay optimizer.betas optimizer.eps
reward_and_value_model.num_classes reward_and_value_model.max_seq_len reward_and_value_model.attn_dropout
reward_and_value_model.norm_eps model.max_seq_len model.attn_dropout model.norm_eps policy_model.max_seq_len
policy_model.attn_dropout policy_model.norm_eps
"""
SIZES = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "embed_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
}
"""Of builders that have sizes of their own, what transformers calls them."""
OTHER = "the model is another one, or is trained in another part"
REASONS = {
    SEVERAL: "custom_sharded_layers fsdp fsdp_cpu_offload fsdp_reshard_after_forward memory_efficient_fsdp_wrap "
    "tensor_parallel_dim tensor_parallel_plan data_parallel_replicate_dim data_parallel_shard_dim context_parallel_dim",
    OTHER: "resize_token_embeddings model.decoder_trainable model.encoder_trainable model.fusion_trainable model.image_size",
    "fake quantisation computes otherwise": "quantizer",
    "a model beside the one that is trained is not read": "teacher_model teacher_checkpointer kd_loss kd_ratio inference "
    "orchestration postprocessing training",
    "checkpoints of some layers alone are not modelled": "ac_mode ac_option",
    "training in fp8 is not here": "enable_fp8_training fp8_recipe_name",
    "one more state is kept of each parameter": "optimizer.amsgrad",
}
TABLE = Table.of(
    " ".join(
        [
            USED,
            *(f"{model}.{name}" for model in ("model", "policy_model", "reward_and_value_model") for name in SIZES),
        ]
    ),
    WITHOUT,
    {
        **{key: Doubt(reason) for reason, keys in REASONS.items() for key in keys.split()},
        "compile": Doubt(COMPILED, less=True),
        "device": Doubt(
            "the job is to run on another device, and a GPU's memory is predicted", (*INERT, "cuda", "cuda:0")
        ),
        "enable_kv_cache": Doubt("without a cache, generation computes all tokens anew for each", (None, True)),
        "profile_memory": Doubt("a profiler that follows memory"),
    },
    open="tokenizer dataset optimizer loss",
)
SECTIONS = {
    "model": "torchtune.models.llama3_1.lora_llama3_1_8b",
    "policy_model": "torchtune.models.mistral.mistral_7b",
    "reward_and_value_model": "torchtune.models.mistral.mistral_reward_7b",
    "tokenizer": "torchtune.models.llama3.llama3_tokenizer",
    "optimizer": "torch.optim.AdamW",
    "loss": "torchtune.modules.loss.LinearCrossEntropyLoss",
}
"""Keys that hold keys, and a component that may stand there."""

MODELS = {
    "llama2_7b": "llama-2-7b",
    "llama2_13b": "llama-2-13b",
    "llama3_8b": "llama-3-8b",
    "llama3_70b": "llama-3.1-70b",
    "llama3_1_8b": "llama-3.1-8b",
    "llama3_1_70b": "llama-3.1-70b",
    "llama3_2_1b": "llama-3.2-1b",
    "llama3_2_3b": "llama-3.2-3b",
    "llama3_3_70b": "llama-3.3-70b",
    "mistral_7b": "mistral-7b",
    "mistral_reward_7b": "mistral-7b",
    "llama2_reward_7b": "llama-2-7b",
    "gemma2_2b": "gemma-2-2b",
    "gemma2_9b": "gemma-2-9b",
    "phi3_mini": "phi-3-mini",
    "phi4_14b": "phi-4",
    "qwen2_0_5b": "qwen2.5-0.5b",
    "qwen2_1_5b": "qwen2.5-1.5b",
    "qwen2_7b": "qwen2.5-7b",
    **{f"qwen2_5_{size.replace('.', '_')}": f"qwen2.5-{size}" for size in ("0.5b", "1.5b", "3b", "7b", "14b", "32b")},
    **{f"qwen3_{size.replace('.', '_')}": f"qwen3-{size}" for size in ("0.6b", "1.7b", "4b", "8b", "14b", "32b")},
    **{f"smollm2_{size.replace('.', '_')}": f"smollm2-{size}" for size in ("135m", "360m", "1.7b")},
}
"""By the builder without `lora_` and `_instruct`, the preset of its sizes: those of Llama 3 and Qwen2 are those of the next one."""
NEAREST = {
    "gemma_2b": ("gemma-2-2b", "google/gemma-2b"),
    "gemma_7b": ("gemma-2-9b", "google/gemma-7b"),
    "gemma2_27b": ("gemma-3-12b", "google/gemma-2-27b"),
    "llama2_70b": ("llama-3.1-70b", "meta-llama/Llama-2-70b-hf"),
    "llama3_1_405b": ("llama-3.1-70b", "meta-llama/Llama-3.1-405B"),
    "qwen2_5_72b": ("llama-3.1-70b", "Qwen/Qwen2.5-72B"),
    "llama3_2_vision_11b": ("llama-3.1-8b", ""),
    "llama3_2_vision_90b": ("llama-3.1-70b", ""),
    "llama4_scout_17b_16e": ("qwen3-30b-a3b", ""),
    "llama4_maverick_17b_128e": ("qwen3-30b-a3b", ""),
}
"""Of those that have no preset, the nearest one, and the hub id of its own sizes; none where that is no text model."""
MODULES = {
    "q_proj": "q_proj",
    "k_proj": "k_proj",
    "v_proj": "v_proj",
    "output_proj": "o_proj",
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
FUSED = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj") | {
    "output_proj": "o_proj",
    "mlp": ("gate_up_proj", "down_proj"),
}
"""The same in Phi's models."""
OPTIMIZERS = {
    "torch.optim.AdamW": "adamw_torch",
    "torch.optim.Adam": "adamw_torch",
    "torch.optim.SGD": "sgd",
    "torch.optim.Adagrad": "adagrad",
    "torch.optim.RMSprop": "rmsprop",
    "torch.optim.Muon": "muon",
    "bitsandbytes.optim.AdamW8bit": "adamw_bnb_8bit",
    "bitsandbytes.optim.PagedAdamW": "paged_adamw_32bit",
    "bitsandbytes.optim.PagedAdamW32bit": "paged_adamw_32bit",
    "bitsandbytes.optim.PagedAdamW8bit": "paged_adamw_8bit",
    "bitsandbytes.optim.Lion": "lion_32bit",
    "bitsandbytes.optim.Lion8bit": "lion_8bit",
    "bitsandbytes.optim.PagedLion": "paged_lion_32bit",
    "bitsandbytes.optim.PagedLion8bit": "paged_lion_8bit",
    "bitsandbytes.optim.AdEMAMix": "ademamix",
    "bitsandbytes.optim.AdEMAMix8bit": "ademamix_8bit",
    **{
        f"{module}.{name}": optimizer
        for module in ("torchao.optim", "torchao.prototype.low_bit_optim")
        for name, optimizer in (("AdamW8bit", "adamw_torch_8bit"), ("AdamW4bit", "adamw_torch_4bit"))
    },
}
OFFLOADED = ("torchao.optim.CPUOffloadOptimizer", "torchao.prototype.low_bit_optim.CPUOffloadOptimizer")
LOSSES = {
    "torchtune.modules.loss.LinearCrossEntropyLoss": "linear_cross_entropy",
    "torchtune.modules.loss.CEWithChunkedOutputLoss": "chunked_output",
    "torch.nn.CrossEntropyLoss": "nll",
}
PAIRS = {"torchtune.rlhf.loss.DPOLoss": "sigmoid", "torchtune.rlhf.loss.RSOLoss": "hinge"}
"""Losses of pairs: dpo.loss_type."""
