"""LLaMA-Factory's YAML.

Read: LLaMA-Factory at ff6d4d1 (August 2026), src/llamafactory/hparams/, model/adapter.py, model/model_utils/. What a key's absence
means is its default: LoRA of all linear layers, sequences of 2048 tokens, reentrant gradient checkpointing, weights of bf16 that
are cast to fp32 where they are trained (unless pure_bf16 or ZeRO-3).
"""

from __future__ import annotations

from typing import Any

from vrambench.bench.plan.configs import training_arguments
from vrambench.bench.plan.configs.draft import WHOLE, Draft, Format
from vrambench.bench.plan.configs.keys import INERT, Doubt, Table, closest
from vrambench.bench.plan.configs.training_arguments import SEVERAL, common, lora_dropout, mixed, over
from vrambench.methods.errors import shown

USED = """
model_name_or_path stage finetuning_type lora_rank lora_alpha lora_dropout lora_target additional_target use_rslora use_dora
quantization_bit quantization_method double_quantization upcast_layernorm flash_attn enable_liger_kernel
disable_gradient_checkpointing use_reentrant_gc cutoff_len packing pure_bf16 pref_beta pref_loss dpo_label_smoothing simpo_gamma
use_galore galore_target galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise use_apollo apollo_target
apollo_rank apollo_update_interval apollo_scale apollo_scale_type apollo_proj apollo_proj_type apollo_layerwise use_muon
max_new_tokens ppo_epochs ppo_buffer_size
"""
WITHOUT = """
adapter_folder adapter_name_or_path add_special_tokens add_tokens apollo_scale_front asft_alpha audio_sampling_rate
badam_mask_mode badam_mode badam_start_block badam_switch_interval badam_switch_mode badam_update_ratio badam_verbose
buffer_size cache_dir compute_accuracy compute_dtype create_new_adapter crop_to_patches data_shared_file_system dataset
dataset_dir default_system disable_shuffling do_sample eaft_alpha early_stopping_steps enable_thinking eval_dataset
eval_num_beams eval_on_each_dataset export_device export_dir export_hub_model_id export_legacy_format export_quantization_bit
export_quantization_dataset export_quantization_maxlen export_quantization_nsamples export_size fp8_backend
fp8_enable_fsdp_float8_all_gather freeze_language_model freeze_multi_modal_projector freeze_trainable_layers
freeze_trainable_modules freeze_vision_tower hf_hub_token hyper_parallel_args
hyper_parallel_cp_size ignore_pad_token_for_loss image_do_pan_and_scan image_max_pixels image_min_pixels
include_effective_tokens_per_second infer_backend infer_dtype init_special_tokens interleave_probs kt_cpu_activation
kt_expert_checkpoint_path kt_lora_expert_intermediate_size kt_lora_expert_num kt_non_expert_weight_path kt_use_lora_experts
kt_weight_path kto_chosen_weight kto_rejected_weight ld_alpha length_penalty loraplus_lr_embedding loraplus_lr_ratio
low_cpu_mem_usage mask_history master_addr master_port max_length max_samples media_dir megatron_bridge_args
mix_strategy model_max_length model_revision module_dropout moe_aux_loss_coef ms_hub_token new_special_tokens_config num_beams
offload_folder oft_block_size oft_rank oft_target om_hub_token overwrite_cache pissa_convert pissa_init pissa_iter plot_loss
ppo_score_norm ppo_target ppo_whiten_rewards pref_ftx preprocessing_batch_size preprocessing_num_workers
preserve_thinking print_param_status profile_modules profiler_active_steps profiler_output_dir profiler_profile_memory
profiler_record_shapes profiler_repeat profiler_wait_steps profiler_warmup_steps profiler_with_stack quantization_type
ray_init_kwargs ray_num_workers repetition_penalty reward_model_quantization_bit reward_model_type sglang_config
sglang_lora_backend sglang_maxlen sglang_mem_fraction sglang_tp_size skip_special_tokens split_special_tokens streaming
swanlab_api_key swanlab_lark_secret swanlab_lark_webhook_url swanlab_logdir swanlab_mode swanlab_project swanlab_run_name
swanlab_workspace temperature template tokenized_path tool_format top_k top_p train_on_prompt trust_remote_code
use_audio_in_video use_fast_tokenizer use_kv_cache use_swanlab val_size video_fps video_max_pixels video_maxlen
video_min_pixels vllm_config vllm_enforce_eager vllm_gpu_util vllm_max_lora_rank vllm_maxlen
"""
OTHER = "the model is another one, or computes otherwise"
LOSS = "a loss, or a model beside the policy, that is not read"
REASONS = {
    SEVERAL: "use_mca use_megatron_bridge use_hyper_parallel use_kt",
    "Unsloth's kernels and checkpoints take other memory": "use_unsloth use_unsloth_gc",
    "what keeps a row's sequences apart, a mask or copies of their parts, is not counted": "neat_packing block_diag_attn",
    OTHER: "mixture_of_depths shift_attn resize_vocab upcast_lmhead_output train_from_scratch rope_scaling use_llama_pro "
    "freeze_extra_modules use_v1_kernels fp8 device_map quantization_device_map",
    LOSS: "use_dft_loss use_asft_loss use_eaft_loss pref_bco_weight ref_model ref_model_adapters "
    "ref_model_quantization_bit reward_model reward_model_adapters",
    "an optimizer that is not read: --optimizer says one": "use_badam use_adam_mini",
    "a profiler that follows memory": "enable_torch_profiler",
}
TABLE = training_arguments.TABLE | Table.of(
    USED,
    WITHOUT,
    {key: Doubt(reason, (*INERT, 0.0)) for reason, keys in REASONS.items() for key in keys.split()},
)
LOSSES = ("sigmoid", "hinge", "ipo", "orpo", "simpo")
ATTENTION = {"fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager"}
EIGHT_BIT = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit")
PROJECTED = {
    "galore": {"adamw_torch": "adamw", **dict.fromkeys(EIGHT_BIT, "adamw_8bit"), "adafactor": "adafactor"},
    "apollo": {"adamw_torch": "adamw"},
}
"""What becomes of `optim` where gradients are projected (train/trainer_utils.py, create_custom_optimizer)."""


def _draft(draft: Draft) -> None:
    given = draft.given
    if given.get("model_name_or_path") is None:
        draft.needs_model()
    else:
        draft.set("model", given.get("model_name_or_path"), "model_name_or_path")
    _optimizer(draft)
    common(draft)
    draft.set(
        "gradient_checkpointing", not given.flag("disable_gradient_checkpointing"), "disable_gradient_checkpointing"
    )
    if not given.flag("disable_gradient_checkpointing"):
        draft.set("use_reentrant", given.flag("use_reentrant_gc", True), "use_reentrant_gc")
    kind = given.choice("finetuning_type", ("lora", "full", "freeze", "oft"), "lora")
    if kind in ("freeze", "oft"):
        draft.lack("adapter", f"{kind} is not read; --adapter may say another", "finetuning_type")
    else:
        draft.set(
            "adapter",
            "none" if kind == "full" else "dora" if given.flag("use_dora") else "lora",
            "finetuning_type",
            "use_dora",
        )
    _precision(draft)
    if draft.axis("adapter") != "none":
        _lora(draft)
    _stage(draft)
    attention = given.text("flash_attn", "auto")
    if attention in ATTENTION:
        draft.set("attention", ATTENTION[attention], "flash_attn")
    elif attention != "auto":
        draft.doubt("flash_attn", f"{shown(attention)} is not here{closest(attention, ATTENTION)}")


def _optimizer(draft: Draft) -> None:
    """Those of its own, which replace the one of `optim`."""
    given = draft.given
    if given.flag("use_galore"):
        options = _projected(draft, "galore", 2.0)
        side = given.choice("galore_proj_type", ("std", "reverse_std", "right", "left", "full"), "std")
        if side == "full":
            draft.doubt("galore_proj_type", "both sides of each gradient are projected: std is predicted")
        else:
            draft.set(f"{options}.proj_type", side, "galore_proj_type")
    elif given.flag("use_apollo"):
        options = _projected(draft, "apollo", 32.0)
        draft.set(f"{options}.scale_type", given.get("apollo_scale_type", "channel"), "apollo_scale_type")
        for key, here in (("apollo_proj", "random"), ("apollo_proj_type", "std")):
            if given.get(key, here) != here:
                draft.doubt(key, f"{shown(given.get(key))} is not here: {here} is predicted")
    elif given.flag("use_muon"):
        draft.set("optimizer", "muon", "use_muon")


def _projected(draft: Draft, family: str, scale: float) -> str:
    """The optimizer that `optim` becomes where gradients are projected, by GaLore or APOLLO; the name of its options."""
    given, layerwise, kinds = draft.given, f"{family}_layerwise", PROJECTED[family]
    said = given.get("optim", "adamw_torch")
    if said in kinds:
        name = f"{family}_{kinds[said]}{'_layerwise' if given.flag(layerwise) else ''}"
        draft.set("optimizer", name, f"use_{family}", "optim", layerwise)
    else:
        told = f"{shown(said)} has no projected form in LLaMA-Factory, and --optimizer may say another"
        draft.lack("optimizer", f"{told}{closest(said, kinds)} (there are {', '.join(kinds)})", "optim")
    trained = draft.axis("optimizer")
    if trained.endswith("_layerwise"):  # the Trainer clips when every gradient is gone
        draft.set("max_grad_norm", 0, layerwise)
    options = "galore_adafactor" if trained.startswith("galore_adafactor") else family
    draft.set(f"{options}.rank", given.number(f"{family}_rank", 16), f"{family}_rank")
    draft.set(f"{options}.update_proj_gap", given.number(key := f"{family}_update_interval", 200), key)
    draft.set(f"{options}.scale", given.get(f"{family}_scale", scale), f"{family}_scale")
    draft.set(f"{options}.target_modules", _targets(draft, f"{family}_target"), f"{family}_target")
    return options


def _targets(draft: Draft, key: str) -> Any:
    """Parts of modules' names, by commas; `all` are all linear ones."""
    said = draft.given.get(key, "all")
    names = [one.strip() for one in said.split(",")] if isinstance(said, str) else said
    return "all-linear" if names == ["all"] else names


def _precision(draft: Draft) -> None:
    given = draft.given
    pure, bits = given.flag("pure_bf16"), given.get("quantization_bit")
    autocast = mixed(draft)
    key = "pure_bf16" if pure else "fp16" if autocast == "fp16" else "bf16"
    dtype = "fp16" if autocast == "fp16" else "bf16"
    if autocast == "none" and not pure:
        draft.take("weights in bf16, as most checkpoints have them (neither bf16 nor fp16 is true)")
    if bits is not None:
        if bits not in (4, 8) or given.get("quantization_method", "bnb") not in ("bnb", "bitsandbytes"):
            given.wrong(
                "quantization_bit",
                f"{shown(bits)} bits by {given.get('quantization_method', 'bnb')}: bitsandbytes' 4 and 8 are here",
            )
        draft.set("precision", "nf4" if bits == 4 else "int8", "quantization_bit")
        draft.set("compute_dtype", dtype, key)
    elif (
        given.get("finetuning_type", "lora") == "full" and not pure and not draft.engine
    ):  # what is trained is cast to fp32
        draft.set("precision", f"{autocast}_amp" if autocast != "none" else "fp32", key, "finetuning_type")
    else:
        draft.set("precision", dtype, key)
    over(draft, autocast, key)
    precision = draft.axis("precision")
    if precision == "nf4":
        draft.set("nf4.double_quant", given.flag("double_quantization", True), "double_quantization")
    if given.flag("upcast_layernorm"):
        if precision in ("nf4", "int8"):
            draft.set("fp32_modules", ["norms"], "upcast_layernorm")
        else:
            draft.doubt("upcast_layernorm", "norms in fp32 are modelled beside quantised layers alone")


def _lora(draft: Draft) -> None:
    given = draft.given
    rank = given.number("lora_rank", 8)
    draft.set("lora_r", rank, "lora_rank")
    draft.set("lora_alpha", given.get("lora_alpha", rank * 2), "lora_alpha")
    lora_dropout(draft, 0.0, draft.trained(given.text("stage", "sft")) in ("dpo", "kto"))
    draft.set("use_rslora", given.flag("use_rslora"), "use_rslora")
    draft.set("lora_target_modules", _targets(draft, "lora_target"), "lora_target")
    more = given.get("additional_target")
    if more:
        draft.set("lora_modules_to_save", more.split(",") if isinstance(more, str) else more, "additional_target")
    if given.flag("pure_bf16"):
        draft.set("adapter_dtype", "bf16", "pure_bf16")


def _stage(draft: Draft) -> None:
    """What is trained on, and its lengths: packs are rows of cutoff_len tokens, as the longest sequence is."""
    given = draft.given
    stage = given.choice("stage", ("pt", "sft", "rm", "ppo", "dpo", "kto"), "sft")
    said = {"pt": "sft", "rm": "reward"}.get(stage, stage)
    if stage in ("ppo", "kto"):
        draft.lack("algorithm", f"{stage} of LLaMA-Factory is not read; --algorithm may say another", "stage")
    else:
        draft.set("algorithm", said, "stage")
    trained, length = draft.trained(said), given.number("cutoff_len", 2048)
    draft.as_long_as("cutoff_len", length)
    if trained == "ppo":
        _ppo(draft)
    if trained not in WHOLE:
        return
    if given.flag("packing"):
        draft.say("packing", "rows of max_length")
    if trained == "sft":
        draft.set("prompt_tokens", 1, "train_on_prompt")
        draft.set("loss", "liger" if given.flag("enable_liger_kernel") else "nll", "enable_liger_kernel")
        return
    draft.halves(length, "cutoff_len")
    if given.flag("enable_liger_kernel"):
        draft.doubt("enable_liger_kernel", "Liger's kernels keep less: more is predicted", 0)
    if trained == "reward":
        draft.doubt("stage", "its reward model has a value head, and computes logits of all words beside")
    else:
        _preferences(draft)


def _ppo(draft: Draft) -> None:
    """The rollouts of its own trainer (train/ppo/trainer.py), for the PPO that the command line names: responses to a batch at a
    time, of as many batches as ppo_buffer_size steps train on."""
    given = draft.given
    batch = given.number("per_device_train_batch_size", 8)
    rollout = batch * given.number("gradient_accumulation_steps", 1) * given.number("ppo_buffer_size", 1)
    draft.set("response_tokens", given.number("max_new_tokens", 1024), "max_new_tokens")
    draft.set("rollout_batch", rollout, "ppo_buffer_size")
    draft.set("micro_rollout_batch_size", batch, "per_device_train_batch_size")
    draft.set("ppo.epochs", given.number("ppo_epochs", 4), "ppo_epochs")


def _preferences(draft: Draft) -> None:
    given = draft.given
    loss = given.get("pref_loss", "sigmoid")
    if loss not in LOSSES:
        draft.doubt("pref_loss", f"{shown(loss)} is not here: sigmoid is predicted{closest(loss, LOSSES)}")
        loss = "sigmoid"
    draft.set("loss", "nll", "stage")
    draft.doubt("stage", "its trainer of pairs makes a copy of all logits in fp32")
    draft.set("dpo.loss_type", loss, "pref_loss")
    for key, name in (
        ("pref_beta", "beta"),
        ("dpo_label_smoothing", "label_smoothing"),
        ("simpo_gamma", "simpo_gamma"),
    ):
        if given.get(key) is not None:
            draft.set(f"dpo.{name}", given.get(key), key)
    if draft.axis("precision") == "bf16_amp" and draft.axis("adapter") == "none" and loss not in ("orpo", "simpo"):
        draft.set("reference_dtype", "bf16", "stage")


FORMAT = Format("llama-factory", "a LLaMA-Factory config", TABLE, _draft, marks=frozenset({"stage", "finetuning_type"}))
