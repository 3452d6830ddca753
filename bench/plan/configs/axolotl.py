"""axolotl's YAML.

Read: axolotl at 067b021 (July 2026), src/axolotl/utils/schemas/, loaders/model.py, core/builders/, utils/config/. What a key's
absence means is axolotl's default: bf16 where the GPU has it, sequences of 512 tokens, double quantisation with QLoRA. It casts
norms, embeddings and head back from PEFT's fp32 wherever there is an adapter or flash-attn.
"""

from __future__ import annotations

from typing import Any

from vrambench.bench.plan.configs import deepspeed
from vrambench.bench.plan.configs.draft import Draft, Format
from vrambench.bench.plan.configs.keys import INERT, Doubt, Table, closest
from vrambench.bench.plan.configs.training_arguments import COMPILED, SEVERAL, lora_dropout, optimizer
from vrambench.methods.errors import shown

USED = """
base_model load_in_8bit load_in_4bit adapter lora_r lora_alpha lora_target_modules lora_target_parameters lora_target_linear
lora_modules_to_save lora_dropout peft_use_dora peft_use_rslora peft_autocast_adapter_dtype bnb_config_kwargs rl rl_beta dpo_beta
dpo_label_smoothing dpo_loss_type precompute_ref_log_probs reward_model center_rewards_coefficient simpo_gamma cpo_alpha orpo_alpha
torch_empty_cache_steps bf16 fp16 bfloat16 float16 float32 gradient_checkpointing gradient_checkpointing_kwargs
activation_offloading sequence_len sample_packing pad_to_multiple_of flash_attention sdp_attention eager_attention
attn_implementation quantize_moe_experts deepspeed gradient_accumulation_steps micro_batch_size eval_batch_size val_set_size
test_datasets learning_rate optimizer optim_args optim_target_modules max_grad_norm plugins liger_fused_linear_cross_entropy
cut_cross_entropy
"""
WITHOUT = """
max_prompt_len
accelerator_config adam_beta1 adam_beta2 adam_beta3 adam_epsilon adam_epsilon2 added_tokens_overrides
auto_resume_from_checkpoints axolotl_config_path base_model_config batch_size bench_dataset bench_split chat_template
chat_template_jinja chat_template_kwargs chunked_cross_entropy_num_chunks cls_model_config comet_api_key
comet_experiment_config comet_experiment_key comet_mode comet_online comet_project_name comet_workspace
cosine_constant_lr_ratio cosine_min_lr_ratio curriculum_sampling dataloader_drop_last dataloader_num_workers
dataloader_pin_memory dataloader_prefetch_factor dataset_exact_deduplication dataset_keep_in_memory dataset_num_proc
dataset_prepared_path dataset_processes dataset_shard_idx dataset_shard_num datasets ddp ddp_broadcast_buffers
ddp_bucket_cap_mb ddp_find_unused_parameters ddp_timeout default_system_message device dion_lr dion_momentum
dion_rank_fraction dion_rank_multiple_of dpo_generate_during_eval dpo_norm_loss dpo_use_logits_to_keep dpo_use_weighting
dynamic_checkpoint eaft_alpha eaft_k early_stopping_patience embedding_lr embedding_lr_scale eot_tokens eval_causal_lm_metrics
eval_max_new_tokens eval_sample_packing eval_steps eval_strategy eval_table_size evals_per_epoch evaluation_strategy
excess_length_strategy experimental_skip_move_to_device fix_untrained_tokens flex_attn_compile_kwargs fp32_norm_classes
fp8_enable_fsdp_float8_all_gather fsdp_final_state_dict_type fsdp_version gc_collect_steps gc_steps generation_do_sample
generation_max_new_tokens generation_prompt_ratio generation_temperature generation_top_k generation_top_p gpu_memory_limit
gradio_max_new_tokens gradio_server_name gradio_server_port gradio_share gradio_temperature gradio_title greater_is_better
group_by_length heads_k_stride hf_mlflow_log_artifacts hf_use_auth_token hub_model_id hub_revision hub_strategy
image_resize_algorithm include_tkps include_tokens_per_second is_falcon_derived_model is_llama_derived_model
is_mistral_derived_model is_preprocess is_qwen_derived_model jagged_restart_anneal_steps jagged_restart_steps
jagged_restart_warmup_steps kto_desirable_weight kto_undesirable_weight lisa_layers_attribute lisa_step_interval
load_best_model_at_end local_rank logging_steps lora_alpha_pattern lora_fan_in_fan_out lora_model_dir loraplus_lr_embedding
loraplus_lr_ratio loss_watchdog_patience loss_watchdog_threshold low_cpu_mem_usage lr_div_factor lr_groups lr_quadratic_warmup
lr_scheduler lr_scheduler_kwargs max_memory max_packed_sequence_len max_steps mean_resizing_embeddings merge_lora merge_method
metric_for_best_model min_sample_len mlflow_experiment_name mlflow_run_name mlflow_tracking_uri
model_quantization_config_kwargs model_revision model_type num_dataset_shards_to_save num_epochs num_generation_samples
num_labels otel_metrics_host otel_metrics_port output_dir pad_to_sequence_len peft_ensure_weight_tying peft_init_lora_weights
pose_max_context_len pose_num_chunks pose_split_on_token_ids preprocess_iterable pretrain_multipack_attn
pretrain_multipack_buffer_size pretraining_dataset pretraining_sample_concatenation processor_kwargs processor_type
profiler_steps profiler_steps_start push_dataset_to_hub qgalore_cos_threshold qgalore_gamma_proj qgalore_proj_bits
qgalore_proj_group_size qgalore_proj_quant qgalore_proj_type qgalore_queue_size qgalore_rank qgalore_scale
qgalore_update_proj_gap qlora_sharded_model_loading ray_num_workers ray_run_name relora_cpu_offload relora_prune_method
relora_prune_ratio remove_unused_columns resources_per_worker resume_from_checkpoint ring_attn_func role_boundaries rpo_alpha
sample_packing_bin_size sample_packing_eff_est sample_packing_group_size sample_packing_mp_start_method
sample_packing_sequentially save_first_step save_only_model save_safetensors save_steps save_strategy save_total_limit
saves_per_epoch scaling_softmax_bias scaling_softmax_factor seed shuffle_before_merging_datasets shuffle_merged_datasets
skip_prepare_dataset special_tokens streaming streaming_multipack_buffer_size strict tf32 tiled_mlp_num_shards
tiled_mlp_use_original_mlp tokenizer_config tokenizer_legacy tokenizer_save_jinja_files tokenizer_type tokenizer_use_fast
tokenizer_use_mistral_common tokens torchdistx_path total_num_tokens total_supervised_tokens trackio_project_name
trackio_run_name trackio_space_id train_on_inputs trust_remote_code use_comet use_mlflow use_otel_metrics use_tensorboard
use_trackio use_wandb wandb_entity wandb_log_model wandb_mode wandb_name wandb_project wandb_run_id wandb_watch warmup_ratio
warmup_steps weight_decay
"""
LESS = "kernels that keep less replace the model's own: more is predicted"
FROZEN = "what is trained is another part of the model"
KERNEL = "an attention kernel that is not here"
OTHER = "the model is another one, or is loaded otherwise"
REASONS = {
    SEVERAL: "fsdp fsdp_config dp_shard_size dp_replicate_size sequence_parallel_degree context_parallel_size tensor_parallel_size "
    "expert_parallel_size world_size device_map use_ray deepcompile",
    COMPILED: "torch_compile torch_compile_backend torch_compile_mode torch_compile_options",
    KERNEL: "xformers_attention flex_attention sage_attention s2_attention gemma4_hybrid_attn_impl flash_attn_d512 "
    "large_head_attention sdpa_varlen fused_attn_kernel scaling_softmax flash_optimum",
    FROZEN: "freeze_mm_modules unfrozen_parameters peft_layers_to_transform peft_layers_pattern peft_layer_replication "
    "peft_trainable_token_indices lora_rank_pattern lisa_n_layers relora peft lora_on_cpu",
    OTHER: "resize_token_embeddings_to_32x shrink_embeddings reinit_weights model_config "
    "model_kwargs model_quantization_config use_onebitllms gptq rope_scaling image_size embeddings_skip_upcast fp32_norms "
    "experts_implementation llama4_linearized_experts qat quantization fp8 use_scattermoe use_sonicmoe",
    "checkpoints of some layers alone are not modelled": "selective_checkpointing layer_offloading tiled_mlp",
    "batches of another kind": "batch_flattening use_pose multipack_real_batches eval_sequence_len dpo_padding_free",
    "a trainer or a loss that is not here": "trainer_cls trl vllm ebft process_reward_model dpo_use_liger_kernel dpo_loss_weights "
    "chunked_cross_entropy use_eaft flash_attn_cross_entropy",
    "text is generated beside the training": "generate_samples do_bench_eval do_causal_lm_eval",
}
TABLE = Table.of(
    USED,
    WITHOUT,
    {
        **{
            key: Doubt(reason, (*INERT, 1) if reason == SEVERAL else INERT, less=reason in (COMPILED, KERNEL))
            for reason, keys in REASONS.items()
            for key in keys.split()
        },
        **{
            key: Doubt(LESS, nbytes=0)
            for key in (
                *(
                    "lora_mlp_kernel",
                    "lora_qkv_kernel",
                    "lora_o_kernel",
                    "lora_embedding_kernel",
                    "flash_attn_fuse_mlp",
                ),
                *("flash_attn_rms_norm", "use_kernels", "liger_rope", "liger_rms_norm", "liger_glu_activation"),
                *("liger_layer_norm", "liger_cross_entropy", "liger_rms_norm_gated"),
            )
        },
        "auto_find_batch_size": Doubt(
            "the batch becomes smaller where memory runs out: the first try is predicted", nbytes=0
        ),
        "neftune_noise_alpha": Doubt("noise as large as the embedded batch is added to it", (*INERT, 0), nbytes=2**29),
        "noisy_embedding_alpha": Doubt(
            "noise as large as the embedded batch is added to it", (*INERT, 0), nbytes=2**29
        ),
    },
    old="load_in_16bit model_is_quantized adam_eps base_model_ignore_patterns debug eta_min gptq_groupsize gptq_model_v1 "
    "revision_of_model swanlab_completion_log_interval swanlab_completion_max_buffer swanlab_description "
    "swanlab_experiment_name swanlab_log_completions swanlab_log_model swanlab_mode swanlab_project swanlab_workspace "
    "use_swanlab",
)
PREFERENCES = {"dpo": "sigmoid", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo"}
"""By `rl`, dpo.loss_type."""
UNREAD = ("kto", "grpo", "gdpo", "ebft")
"""Its other values of `rl`."""
PLUGINS = ("liger", "cut_cross_entropy", "swanlab")


def _draft(draft: Draft) -> None:
    """Model, precision and adapter; then what is trained on; then how."""
    given = draft.given
    if given.get("base_model") is None:
        draft.needs_model()
    else:
        draft.set("model", given.get("base_model"), "base_model")
    _batches(draft)
    if given.get("deepspeed"):
        deepspeed.lay(draft)
    else:
        draft.set("offload", "none", "deepspeed")
    _algorithm(draft)
    _precision(draft)
    _adapter(draft)
    _attention(draft)
    _checkpoints(draft)
    plugins = given.get("plugins", [])
    for plugin in plugins if isinstance(plugins, list) else [plugins]:
        if not any(name in str(plugin) for name in PLUGINS):
            draft.doubt("plugins", f"{shown(plugin)} is not known here")


def _batches(draft: Draft) -> None:
    given = draft.given
    micro = given.number("micro_batch_size", 1)
    draft.set("batch_size", micro, "micro_batch_size")
    for key in ("gradient_accumulation_steps", "learning_rate", "max_grad_norm", "torch_empty_cache_steps"):
        if given.get(key) is not None:
            draft.set(key, given.get(key), key)
    optimizer(draft, "optimizer", "adamw_torch_fused")
    if given.get("val_set_size", 0) or given.get("test_datasets"):
        key = "val_set_size" if given.get("val_set_size", 0) else "test_datasets"
        draft.set("eval_batch_size", given.number("eval_batch_size", micro), "eval_batch_size", key)
    length = given.number("sequence_len", 512)
    draft.as_long_as("sequence_len", length)


def _algorithm(draft: Draft) -> None:
    given = draft.given
    kind, length = given.text("rl"), given.number("sequence_len", 512)
    said = "dpo" if kind else "reward" if given.flag("reward_model") else "sft"
    if kind and kind not in PREFERENCES:
        hint = "" if kind in UNREAD else closest(kind, (*PREFERENCES, *UNREAD))
        draft.lack("algorithm", f"{shown(kind)} of axolotl is not read, and --algorithm may say another{hint}", "rl")
    else:
        draft.set("algorithm", said, "reward_model" if said == "reward" else "rl")
    trained = draft.trained(said)
    if trained == "dpo":
        _preferences(draft, PREFERENCES.get(kind, "sigmoid"))
    elif trained == "reward" and given.get("center_rewards_coefficient") is not None:
        key = "center_rewards_coefficient"
        draft.set(f"rm.{key}", given.get(key), key)
    elif trained == "sft":
        _sft(draft, length)
    if trained in ("dpo", "reward"):
        draft.halves(length, "sequence_len")


def _preferences(draft: Draft, usual: str) -> None:
    given = draft.given
    draft.set("loss", "nll", "rl")
    losses = given.get("dpo_loss_type", [usual])
    losses = losses if isinstance(losses, list) and losses else [losses]
    if len(losses) != 1:
        draft.doubt("dpo_loss_type", "of several losses the first is predicted")
    draft.set("dpo.loss_type", losses[0], "dpo_loss_type", "rl")
    key = next((key for key in ("rl_beta", "dpo_beta", "orpo_alpha") if given.get(key) is not None), None)
    for name, one in (
        ("beta", key),
        ("label_smoothing", "dpo_label_smoothing"),
        ("simpo_gamma", "simpo_gamma"),
        ("cpo_alpha", "cpo_alpha"),
    ):
        if one and given.get(one) is not None:
            draft.set(f"dpo.{name}", given.get(one), one)
    if given.flag("precompute_ref_log_probs"):
        draft.set("reference", "precomputed", "precompute_ref_log_probs")


def _sft(draft: Draft, length: int) -> None:
    given = draft.given
    draft.set("prompt_tokens", 1, "train_on_inputs")
    cut = _cuts(draft)
    if given.flag("liger_fused_linear_cross_entropy"):
        draft.set("loss", "liger", "liger_fused_linear_cross_entropy")
    else:
        draft.set("loss", "cut_cross_entropy" if cut else "nll", cut or "loss")
    packs, multiple = given.flag("sample_packing"), given.get("pad_to_multiple_of")
    if packs:
        draft.set("packing", "bfd", "sample_packing")
    if multiple is not None and not packs:
        draft.set("pad_to_multiple_of", multiple, "pad_to_multiple_of")
    if (packs or multiple is not None) and "lengths" not in draft.chosen.names:
        draft.set("lengths", {length: 1.0}, "sequence_len")


def _cuts(draft: Draft) -> str:
    """The key that asks for Cut Cross Entropy, empty without one. Its plugin alone does: the key's default is true there."""
    given = draft.given
    said, plugged = given.get("cut_cross_entropy"), "CutCrossEntropyPlugin" in str(given.get("plugins", ""))
    if said is None:
        return "plugins" if plugged else ""
    return "cut_cross_entropy" if given.flag("cut_cross_entropy") else ""


def _types(draft: Draft) -> tuple[str, str, str]:
    """The type in which the model is loaded, that of autocast, and the key that said so."""
    given = draft.given
    bf16 = given.get("bf16", "auto")
    if bf16 not in (True, False, "auto", "full"):
        given.wrong("bf16", f"{shown(bf16)} is not one of auto, true, false, full")
        bf16 = "auto"
    half = given.flag("fp16")
    if bf16 is True and half:
        given.wrong("fp16", "true, as bf16 is, and only one of both can be")
    if bf16 == "auto" and half:
        bf16 = False
    if bf16 or given.flag("bfloat16"):
        return "bf16", "none" if bf16 == "full" else "bf16", "bf16" if bf16 else "bfloat16"
    if half or given.flag("float16") or given.flag("load_in_8bit"):
        return "fp16", "fp16" if half else "none", "fp16" if half else "float16"
    return "fp32", "none", "bf16"


def _precision(draft: Draft) -> None:
    given = draft.given
    dtype, autocast, key = _types(draft)
    if draft.engine_type not in ("", dtype):
        given.wrong(
            key,
            f"trains in {dtype}, and DeepSpeed's configuration has {draft.engine_type}.enabled; leave one of both out",
        )
    if given.get("adapter") == "qlora" and not given.flag("load_in_4bit"):
        given.wrong("adapter", "qlora needs load_in_4bit: true")
    if given.flag("load_in_4bit") and given.flag("load_in_8bit"):
        given.wrong("load_in_8bit", "true, as load_in_4bit is, and only one of both can be")
    low = next((one for one in ("load_in_4bit", "load_in_8bit") if given.flag(one)), None)
    draft.set(
        "precision", dtype if low is None else "nf4" if low == "load_in_4bit" else "int8", *([low] if low else []), key
    )
    precision = draft.axis("precision")
    if precision in ("nf4", "int8"):
        draft.set("compute_dtype", dtype, key)
    if autocast != "none" and not draft.engine and precision in ("bf16", "fp16", "nf4", "int8"):
        draft.set("autocast", autocast, key)
    if precision == "nf4":
        said: Any = given.get("bnb_config_kwargs", {})
        double = said.get("bnb_4bit_use_double_quant", True) if isinstance(said, dict) else True
        draft.set("nf4.double_quant", double, "bnb_config_kwargs")
        if given.flag("quantize_moe_experts"):
            draft.set("nf4.quantize_moe_experts", True, "quantize_moe_experts")


def _adapter(draft: Draft) -> None:
    given = draft.given
    kind = given.get("adapter")
    if kind not in (None, "lora", "qlora"):
        draft.lack(
            "adapter",
            f"{shown(kind)} is not read, and --adapter may say another{closest(kind, ('lora', 'qlora'))}",
            "adapter",
        )
        return
    dora = given.flag("peft_use_dora")
    draft.set(
        "adapter",
        "none" if kind is None else "dora" if dora else "lora",
        "adapter",
        *(["peft_use_dora"] if dora else []),
    )
    if kind is None or draft.axis("adapter") == "none":
        return
    for key, name, default in (
        ("lora_r", "lora_r", 8),
        ("lora_alpha", "lora_alpha", 8),
        ("peft_use_rslora", "use_rslora", False),
    ):
        draft.set(name, given.get(key, default), key)
    lora_dropout(draft, 0.0, draft.trained("sft") in ("dpo", "reward"))
    targets = given.get("lora_target_modules")
    if given.flag("lora_target_linear"):
        draft.set("lora_target_modules", "all-linear", "lora_target_linear")
    elif targets is not None:
        named = isinstance(targets, str) and targets.isidentifier()
        draft.set("lora_target_modules", [targets] if named else targets, "lora_target_modules")
    for key in ("lora_target_parameters", "lora_modules_to_save"):
        if given.get(key):
            draft.set(key, given.get(key), key)
    if not given.flag("peft_autocast_adapter_dtype", True):
        draft.set("adapter_dtype", _types(draft)[0], "peft_autocast_adapter_dtype")


def _attention(draft: Draft) -> None:
    given = draft.given
    old = {"flash_attention": "flash_attention_2", "sdp_attention": "sdpa", "eager_attention": "eager"}
    key = next((one for one in old if given.flag(one)), None)
    said = str(given.get("attn_implementation") or (old[key] if key else "sdpa"))
    if given.get("attn_implementation") or key:
        key = key if given.get("attn_implementation") is None else "attn_implementation"
        name = "flash_attention_2" if "flash" in said else said
        if name in old.values():
            draft.set("attention", name, str(key))
        else:
            draft.doubt("attn_implementation", KERNEL, less=True)
    upcast = given.get("adapter") is None and "flash" not in said and not _cuts(draft)
    if upcast and draft.axis("precision") in ("bf16", "fp16") and draft.axis("adapter") == "none":
        draft.doubt("attn_implementation", "without flash-attn, axolotl holds norms, embeddings and head in fp32")


def _checkpoints(draft: Draft) -> None:
    given = draft.given
    said, offloads = given.get("gradient_checkpointing", False), given.get("activation_offloading", False)
    if not isinstance(said, bool):
        draft.doubt(
            "gradient_checkpointing",
            f"{shown(said)} keeps checkpoints on the host in a way that is not modelled: true is predicted",
            0,
        )
    draft.set("gradient_checkpointing", bool(said), "gradient_checkpointing")
    kwargs = given.get("gradient_checkpointing_kwargs", {})
    if isinstance(kwargs, dict) and kwargs.get("use_reentrant") is not None:
        draft.set("use_reentrant", kwargs["use_reentrant"], "gradient_checkpointing_kwargs")
    if offloads:
        if offloads is not True:
            draft.doubt("activation_offloading", f"{shown(offloads)} is not modelled: true is predicted", less=True)
        draft.set("activation_offloading", True, "activation_offloading")


FORMAT = Format("axolotl", "an axolotl config", TABLE, _draft, marks=frozenset({"base_model", "micro_batch_size"}))
