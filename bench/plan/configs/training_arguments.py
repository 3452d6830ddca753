"""transformers' TrainingArguments, as YAML or as `args.to_json_string()` writes them, and what all its trainers have in common.

Read: transformers 5.23, training_args.py; trainer.py. The file does not say how the model is loaded, and whether PEFT is around it:
weights in fp32 and no adapter are taken where the command line says nothing, and said.
"""

from __future__ import annotations

from vrambench.bench.plan.configs import deepspeed
from vrambench.bench.plan.configs.draft import WHOLE, Draft, Format
from vrambench.bench.plan.configs.keys import INERT, Doubt, Table, closest
from vrambench.methods.errors import shown
from vrambench.methods.optimizers import OPTIMIZERS

SEVERAL = "several GPUs, or a wrapping that is made for them: one GPU is predicted, without it"
COMPILED = "what torch.compile makes of the model takes other memory"
USED = """
per_device_train_batch_size gradient_accumulation_steps learning_rate max_grad_norm torch_empty_cache_steps optim optim_args
optim_target_modules bf16 fp16 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
gradient_checkpointing_kwargs deepspeed use_liger_kernel eval_strategy per_device_eval_batch_size eval_accumulation_steps
prediction_loss_only
"""
WITHOUT = """
accelerator_config adam_beta1 adam_beta2 adam_epsilon average_tokens_across_devices batch_eval_metrics bf16_full_eval data_seed
dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers
dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters
ddp_static_graph ddp_timeout debug disable_tqdm do_eval do_predict do_train enable_jit_checkpoint eval_delay
eval_do_concat_batches eval_on_start eval_steps eval_use_gather_object fp16_full_eval fsdp_config greater_is_better
hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token ignore_data_skip include_for_metrics
include_num_input_tokens_seen label_names length_column_name load_best_model_at_end local_rank log_level log_level_replica
log_on_each_node logging_first_step logging_nan_inf_filter logging_steps logging_strategy lr_scheduler_kwargs lr_scheduler_type
max_steps metric_for_best_model num_train_epochs output_dir project push_to_hub remove_unused_columns
report_to restore_callback_states_from_checkpoint resume_from_checkpoint run_name save_on_each_node save_only_model save_steps
save_strategy save_total_limit seed skip_memory_metrics tf32 trackio_bucket_id trackio_space_id trackio_static_space_id
train_sampling_strategy warmup_steps weight_decay
"""
OLD = """
dispatch_batches fp16_backend fp16_opt_level group_by_length half_precision_backend include_inputs_for_metrics
include_tokens_per_second jit_mode_eval logging_dir mp_parameters no_cuda overwrite_output_dir past_index push_to_hub_model_id
push_to_hub_organization push_to_hub_token ray_scope save_safetensors split_batches torchdynamo tpu_metrics_debug tpu_num_cores
use_ipex use_legacy_prediction_loop use_mps_device warmup_ratio
"""
"""Of other versions, without effect."""
TABLE = Table.of(
    USED,
    WITHOUT,
    {
        "auto_find_batch_size": Doubt(
            "the batch becomes smaller where memory runs out: the first try is predicted", nbytes=0
        ),
        "fsdp": Doubt(SEVERAL),
        "full_determinism": Doubt("deterministic kernels take other memory inside themselves"),
        "label_smoothing_factor": Doubt("the Trainer's smoothed loss makes one more copy of all logits", (*INERT, 0.0)),
        "liger_kernel_config": Doubt("which of Liger's kernels replace a model's own changes what it keeps"),
        "neftune_noise_alpha": Doubt("noise as large as the embedded batch is added to it", nbytes=2**29),
        "parallelism_config": Doubt(SEVERAL),
        "torch_compile": Doubt(COMPILED, less=True),
        "torch_compile_backend": Doubt(COMPILED, less=True),
        "torch_compile_mode": Doubt(COMPILED, less=True),
        "use_cache": Doubt("keys and values are kept in training too"),
        "use_cpu": Doubt("the job is to run on the CPU, and a GPU's memory is predicted"),
    },
    renamed={
        "evaluation_strategy": "eval_strategy",
        "per_gpu_train_batch_size": "per_device_train_batch_size",
        "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    },
    old=OLD,
)
ALIASES = {
    "ao_adamw_4bit": "adamw_torch_4bit",
    "ao_adamw_8bit": "adamw_torch_8bit",
    "adamw_8bit": "adamw_bnb_8bit",
    "adamw_hf": "adamw_torch",
    "paged_adamw": "paged_adamw_32bit",
    "lion": "lion_32bit",
}
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}


def mixed(draft: Draft, default: bool = False) -> str:
    """The type of autocast, `none` without one. `default`: whether bf16 is true where the file says nothing."""
    given = draft.given
    fp16 = given.flag("fp16")
    bf16 = given.flag("bf16", default and not fp16)
    if bf16 and fp16:
        given.wrong("fp16", "true, as bf16 is, and only one of both can be")
    told = "bf16" if bf16 else "fp16" if fp16 else "none"
    if draft.engine_type not in ("", told):
        given.wrong(
            "fp16" if fp16 else "bf16",
            f"trains in {told}, and DeepSpeed's configuration has {draft.engine_type}.enabled; leave one of both out",
        )
    return told


def floating(draft: Draft, dtype: str, autocast: str, *keys: str) -> None:
    """Axis precision and autocast of a model that is loaded as `dtype`; `keys` said so, the last of them of autocast. A precision
    that the command line names changes what autocast is over."""
    if draft.engine and autocast != "none":  # it casts the whole model, and keeps fp32 masters
        draft.set("precision", autocast, *keys)
        return
    plain = dtype if dtype != "fp32" or autocast == "none" else f"{autocast}_amp"
    draft.set("precision", plain, *keys)
    over(draft, autocast, keys[-1])


def over(draft: Draft, autocast: str, key: str) -> None:
    """Autocast over a model in 16 bit, or quantised."""
    if autocast != "none" and not draft.engine and draft.axis("precision") in ("bf16", "fp16", "nf4", "int8"):
        draft.set("autocast", autocast, key)


def checkpoints(draft: Draft, *, default: bool = False) -> None:
    """Gradient checkpointing. `default`: where the file says nothing of it."""
    given = draft.given
    old, new = "gradient_checkpointing", "activation_checkpointing"
    key = new if given.get(new) is not None else old
    draft.set("gradient_checkpointing", given.flag(key, default), key)
    for key in (f"{new}_kwargs", f"{old}_kwargs"):
        said = given.get(key, {})
        if not isinstance(said, dict):
            given.wrong(key, f"{shown(said)} is not a mapping")
            continue
        if said.get("use_reentrant") is not None:
            draft.set("use_reentrant", said["use_reentrant"], key)
        if said.get("every_n_layers", 1) != 1 or said.get("offload"):
            draft.doubt(key, "checkpoints of some layers alone, or on the host, are not modelled", less=True)


def lora_dropout(draft: Draft, default: float, off: bool, *keys: str) -> None:
    """What the adapter drops: nothing where `off`, as `keys` say or the trainer has it (TRL, disable_dropout_in_model)."""
    said = draft.given.get("lora_dropout", default)
    draft.set("lora_dropout", 0.0 if off else said, "lora_dropout", *keys)
    if off and said:
        draft.say("lora_dropout", "switched off, as the trainer does")
        if draft.axis("adapter") == "dora":
            draft.doubt("lora_dropout", "DoRA asks its layers once more where a dropout is switched off")


def common(draft: Draft) -> None:
    """What every trainer takes from TrainingArguments, but for checkpointing."""
    given = draft.given
    draft.set("batch_size", given.number("per_device_train_batch_size", 8), "per_device_train_batch_size")
    clipped = [] if draft.axis("optimizer", str(given.get("optim"))).endswith("_layerwise") else ["max_grad_norm"]
    if not clipped and "max_grad_norm" not in draft.settings:  # the Trainer clips when every gradient is gone
        draft.set("max_grad_norm", 0, "optim")
    for key in ("gradient_accumulation_steps", "learning_rate", "torch_empty_cache_steps", *clipped):
        if given.get(key) is not None:
            draft.set(key, given.get(key), key)
    if "optimizer" not in draft.axes:
        optimizer(draft, "optim", "adamw_torch_fused")
    if given.get("eval_strategy", "no") not in ("no", False):
        _evaluation(draft)
    if given.get("deepspeed"):
        deepspeed.lay(draft)
    else:
        draft.set("offload", "none", "deepspeed")


def _evaluation(draft: Draft) -> None:
    """Whether a script has compute_metrics, its arguments do not say; without, prediction_loss_only is true whatever they do
    (trainer.py, evaluate)."""
    given, size, only = draft.given, "per_device_eval_batch_size", "prediction_loss_only"
    draft.set("eval_batch_size", given.number(size, 8), size, "eval_strategy")
    if given.get("eval_accumulation_steps") is not None:
        draft.set("eval_accumulation_steps", given.get("eval_accumulation_steps"), "eval_accumulation_steps")
    if given.flag(only):
        draft.set(only, True, only)
    elif only not in draft.chosen.names:
        draft.say(only, "true, as without compute_metrics")
        told = "no compute_metrics, for which evaluation would keep every batch's logits on the device"
        draft.take(f"{told} (--set {only}=false)", "eval_batch_size")


def optimizer(draft: Draft, key: str, default: str) -> None:
    """Axis optimizer, with what `optim_args` and `optim_target_modules` say of those that project gradients."""
    given = draft.given
    name = given.get(key, default)
    name = ALIASES.get(name, name) if isinstance(name, str) else name
    if name not in OPTIMIZERS:
        draft.lack(
            "optimizer",
            f"{shown(name)} is no optimizer here, and --optimizer may say another{closest(name, (*ALIASES, *OPTIMIZERS))}",
            key,
        )
        return
    draft.set("optimizer", name, key)
    family = name.partition("_")[0] if name != "galore_adafactor" else name
    modules, args = given.get("optim_target_modules"), given.get("optim_args")
    if family not in ("galore", "apollo", "galore_adafactor"):
        if args:
            draft.doubt("optim_args", "the optimizer's own settings may change its state")
        return
    if modules:
        draft.set(f"{family}.target_modules", modules, "optim_target_modules")
    for pair in str(args or "").replace(" ", "").split(","):
        option, _, value = pair.partition("=")
        if option in ("rank", "update_proj_gap") and value.isdecimal():
            draft.set(f"{family}.{option}", int(value), "optim_args")
        elif option and option not in ("scale", "proj", "scale_type"):
            draft.doubt("optim_args", f"{shown(pair)} is not read")


def _draft(draft: Draft) -> None:
    """A model of transformers' own loss under transformers' Trainer."""
    common(draft)
    checkpoints(draft)
    autocast = mixed(draft)
    if "precision" not in draft.chosen.axes:
        draft.take(
            "weights in fp32, as the file does not say how the model is loaded (--precision bf16, nf4, ... says it)"
        )
    floating(draft, "fp32", autocast, autocast if autocast != "none" else "bf16")
    if "adapter" not in draft.chosen.axes:
        draft.take("no adapter, as the file does not say whether PEFT is around the model (--adapter lora)")
    draft.set("adapter", "none", "adapter")
    draft.set("algorithm", "sft", "algorithm")
    draft.set("loss", "liger" if draft.given.flag("use_liger_kernel") else "nll", "use_liger_kernel")
    draft.needs_model()
    draft.needs_length()
    if draft.trained("sft") in WHOLE:
        draft.set("prompt_tokens", 1, "prompt_tokens")


FORMAT = Format("transformers", "transformers' TrainingArguments", TABLE, _draft)
