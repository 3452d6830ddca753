"""TRL's configurations: the files of `trl sft --config FILE` and its like, and saved SFTConfig, DPOConfig, RewardConfig, GRPOConfig
and RLOOConfig.

Read: TRL 1.12, trainer/*_config.py, model_config.py, scripts/*.py and what the trainers make of them. What a key's absence means is
TRL's default: autocast in bf16, gradient checkpointing, weights in fp32 (unless `dtype` or `model_init_kwargs` say otherwise), in
SFT the chunked loss. Sequences are taken for as long as `max_length` lets them be.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from vrambench.bench.plan.configs import training_arguments
from vrambench.bench.plan.configs.draft import Draft, Format
from vrambench.bench.plan.configs.keys import INERT, Doubt, Table, closest
from vrambench.bench.plan.configs.training_arguments import SHORT, checkpoints, common, floating, mixed, over
from vrambench.methods.errors import shown

SYNCED = Doubt("a reference that follows the policy is a model of its own")
LIGER = "Liger's fused loss of this trainer takes other memory"
FREE = Doubt(
    "padding-free batches of this trainer are not modelled: padded ones are predicted, which take more", nbytes=0
)


def _table(used: str, without: str = "", **doubts: Doubt) -> Table:
    return Table.of(used, without, doubts)


MODEL = _table(
    "attn_implementation bnb_4bit_quant_type dtype load_in_4bit load_in_8bit lora_alpha lora_dropout lora_modules_to_save lora_r "
    "lora_target_modules lora_target_parameters model_name_or_path use_bnb_nested_quant use_dora use_peft use_rslora",
    "bnb_4bit_quant_storage lora_task_type model_revision",
)
SCRIPT = _table(
    "",
    "dataset_config dataset_name dataset_streaming dataset_test_split dataset_train_split ignore_bias_buffers datasets streaming "
    "test_split_size",
)
COMMON = (
    training_arguments.TABLE
    | MODEL
    | SCRIPT
    | Table.of(
        "model_init_kwargs",
        "trust_remote_code",
        renamed={"torch_dtype": "dtype", "max_seq_length": "max_length"},
        old="dataset_batch_size num_of_sequences chars_per_token config "
        "auto_insert_empty_system_msg benchmarks callbacks chat_template dataset_configs dataset_mixer dataset_mixture "
        "dataset_splits hub_model_revision overwrite_hub_revision preprocessing_num_workers push_to_hub_revision system_prompt "
        "tokenizer_name_or_path wandb_entity wandb_project wandb_run_group",
    )
)
WHOLE = "max_length pad_to_multiple_of activation_offloading"
SFT = COMMON | _table(
    f"{WHOLE} packing packing_strategy padding_free loss_type",
    "chat_template_path dataset_num_proc eos_token pad_token router_aux_loss_coef assistant_only_loss completion_only_loss "
    "dataset_kwargs dataset_text_field eval_packing shuffle_dataset truncation_mode",
)
PAIRS = (
    COMMON
    | _table("max_length activation_offloading disable_dropout", "dataset_num_proc pad_to_multiple_of pad_token")
    | Table.of("", old="max_prompt_length max_completion_length max_target_length")
)
DPO = PAIRS | _table(
    "beta label_smoothing loss_type precompute_ref_batch_size precompute_ref_log_probs",
    "discopop_tau f_alpha_divergence_coef f_divergence_type ld_alpha ref_model_mixup_alpha "
    "ref_model_sync_steps use_weighting loss_weights router_aux_loss_coef truncation_mode",
    padding_free=FREE,
    sync_ref_model=SYNCED,
)
REWARD = PAIRS | _table("center_rewards_coefficient", "chat_template_path eos_token")
ONLINE = (COMMON | Table.of("", old="max_prompt_length")) | _table(
    "beta epsilon epsilon_high generation_batch_size max_completion_length num_generations num_iterations steps_per_generation "
    "temperature top_p reward_model_name_or_path disable_dropout use_vllm vllm_enable_sleep_mode vllm_gpu_memory_utilization "
    "vllm_mode",
    "cache_implementation chat_template_kwargs ds3_gather_for_generation log_completions log_multimodal "
    "log_unique_prompts mask_truncated_completions min_p num_completions_to_print num_generations_eval pad_to_multiple_of "
    "ref_model_mixup_alpha ref_model_sync_steps repetition_penalty reward_weights reward_funcs shuffle_dataset top_k "
    "router_aux_loss_coef vllm_group_port vllm_max_model_length vllm_model_impl "
    "vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_structured_outputs_regex "
    "vllm_tensor_parallel_size",
    generation_kwargs=Doubt("what generation is told may change what it holds"),
    sync_ref_model=SYNCED,
    transformers_continuous_batching_config=Doubt("continuous batching has a cache of its own"),
    use_transformers_continuous_batching=Doubt("continuous batching has a cache of its own"),
    use_transformers_paged=Doubt("continuous batching has a cache of its own"),
)
GRPO = ONLINE | _table(
    "delta importance_sampling_level loss_type scale_rewards use_bias_correction_kl",
    "entropy_coef_delta entropy_coef_max entropy_coef_min entropy_target log_completions_hub_repo max_tool_calling_iterations "
    "multi_objective_aggregation off_policy_mask_threshold sapo_temperature_neg sapo_temperature_pos vespo_k_neg vespo_k_pos "
    "vespo_lambda_neg vespo_lambda_pos vllm_importance_sampling_cap vllm_importance_sampling_clip_max "
    "vllm_importance_sampling_clip_min vllm_importance_sampling_correction vllm_importance_sampling_mode",
    cast_lm_head_to_fp32=Doubt("the head, and its logits, are in fp32"),
    entropy_coef=Doubt("entropies of all tokens are kept for the backward pass", (*INERT, 0.0)),
    top_entropy_quantile=Doubt("entropies of all tokens are compared", (*INERT, 1.0)),
    use_adaptive_entropy=Doubt("entropies of all tokens are kept for the backward pass"),
)
RLOO = ONLINE | _table("normalize_advantages reward_clip_range")
DPO_LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair"),
    *("sppo_hard", "apo_zero", "apo_down", "sigmoid_norm"),
)
GRPO_LOSSES = ("dapo", "grpo", "dr_grpo", "bnpo")
OLD_STRATEGIES = {"bfd-requeue": "bfd_split", "ffd": "bfd"}
"""By their names in other versions, what packs as nearly."""
QUANTISED = ("nf4", "int8")


def _load(draft: Draft) -> None:
    """Model, its precision and its adapter."""
    given = draft.given
    kwargs = _kwargs(draft)
    if given.get("model_name_or_path") is None:
        draft.needs_model()
    else:
        draft.set("model", given.get("model_name_or_path"), "model_name_or_path")
    key = "dtype" if given.get("dtype") is not None else "model_init_kwargs"
    dtype = _dtype(draft, key, given.get("dtype", kwargs.get("dtype", kwargs.get("torch_dtype", "float32"))))
    autocast = mixed(draft, default=True)
    flag = autocast if autocast != "none" else "bf16"
    quantised = [one for one in ("load_in_4bit", "load_in_8bit") if given.flag(one)]
    if len(quantised) > 1:
        given.wrong("load_in_8bit", "true, as load_in_4bit is, and only one of both can be")
    if quantised:
        draft.set("precision", "nf4" if quantised == ["load_in_4bit"] else "int8", *quantised)
        over(draft, autocast, flag)
        draft.set("compute_dtype", dtype, key)
    else:
        floating(draft, dtype, autocast, key, flag)
    if draft.axis("precision") == "nf4" and given.flag("use_bnb_nested_quant"):
        draft.set("nf4.double_quant", True, "use_bnb_nested_quant")
    attention = given.get("attn_implementation", kwargs.get("attn_implementation"))
    if attention is not None:
        draft.set(
            "attention",
            _attention(str(attention)),
            "attn_implementation" if "attn_implementation" in given.data else "model_init_kwargs",
        )
    _adapter(draft)


def _kwargs(draft: Draft) -> dict[str, Any]:
    kwargs = draft.given.get("model_init_kwargs", {})
    if isinstance(kwargs, dict):
        return kwargs
    draft.given.wrong("model_init_kwargs", f"{shown(kwargs)} is not a mapping")
    return {}


def _dtype(draft: Draft, key: str, said: Any) -> str:
    if said == "auto":
        draft.take("weights in bf16, as most checkpoints have them (dtype: auto)")
        return "bf16"
    name = str(said).removeprefix("torch.")
    if name not in SHORT:
        draft.given.wrong(key, f"{shown(said)} is not one of auto, float32, bfloat16, float16{closest(name, SHORT)}")
    return SHORT.get(name, "fp32")


def _attention(name: str) -> str:
    """A kernel from the hub that is flash-attn is flash-attn."""
    return "flash_attention_2" if "flash" in name.lower() else name


def _adapter(draft: Draft) -> None:
    given = draft.given
    peft = given.flag("use_peft")
    draft.set(
        "adapter",
        "dora" if peft and given.flag("use_dora") else "lora" if peft else "none",
        *(["use_peft", "use_dora"] if peft and given.flag("use_dora") else ["use_peft"]),
    )
    if not {"use_peft", "model_name_or_path"} & given.data.keys() and "adapter" not in draft.chosen.axes:
        draft.take("no adapter, as the file does not say whether there is one (--adapter lora)")
    adapter = draft.axis("adapter")
    if adapter == "none":
        return
    if draft.axis("precision") in QUANTISED:
        draft.set("adapter_dtype", "bf16", "use_peft")
    if not peft:
        return
    draft.set("lora_r", given.get("lora_r", 16), "lora_r")
    draft.set("lora_alpha", given.get("lora_alpha", 32), "lora_alpha")
    off = given.flag("disable_dropout", draft.trained("sft") in ("dpo", "reward"))
    training_arguments.lora_dropout(draft, 0.05, off, "disable_dropout")
    draft.set("use_rslora", given.get("use_rslora", False), "use_rslora")
    targets = given.get("lora_target_modules")
    if targets is not None:
        whole = targets[0] if isinstance(targets, list) and targets == ["all-linear"] else targets
        draft.set(
            "lora_target_modules",
            [whole] if isinstance(whole, str) and whole.isidentifier() else whole,
            "lora_target_modules",
        )
    for key in ("lora_target_parameters", "lora_modules_to_save"):
        if given.get(key):
            draft.set(key, [given.get(key)] if isinstance(given.get(key), str) else given.get(key), key)


def _reference(draft: Draft, used: bool) -> None:
    """A reference of its own is read by `model_init_kwargs`, whatever the policy that the command line speaks of."""
    fp32 = not draft.given.get("dtype") and not {"dtype", "torch_dtype"} & _kwargs(draft).keys()
    if used and fp32 and draft.axis("adapter") == "none" and draft.axis("precision") in ("bf16", "fp16"):
        draft.set("reference_dtype", "fp32", "model_init_kwargs")


def _whole(draft: Draft) -> None:
    """Lengths of SFT, DPO and reward models."""
    given = draft.given
    if "max_length" in given.data and given.data["max_length"] is None:
        draft.lack(
            "max_length",
            "null cuts no sequence; --set max_length=1024 says how long they are, or lengths",
            "max_length",
        )
        return
    draft.as_long_as("max_length", given.number("max_length", 1024))
    if given.flag("activation_offloading"):
        draft.set("activation_offloading", True, "activation_offloading")


def _sft(draft: Draft) -> None:
    given = draft.given
    _whole(draft)
    draft.set("prompt_tokens", 1, "assistant_only_loss")
    length = given.number("max_length", 1024)
    packs, free, multiple = given.flag("packing"), given.flag("padding_free"), given.get("pad_to_multiple_of")
    if packs:
        strategy = given.choice("packing_strategy", ("bfd", "bfd_split", "wrapped", *OLD_STRATEGIES), "bfd")
        draft.set("packing", OLD_STRATEGIES.get(strategy, strategy), "packing", "packing_strategy")
    if free and not packs:
        draft.set("padding_free", True, "padding_free")
    if multiple is not None:
        draft.set("pad_to_multiple_of", multiple, "pad_to_multiple_of")
    if (packs or free or multiple is not None) and "lengths" not in draft.chosen.names:
        draft.set("lengths", {length: 1.0}, "max_length")
    liger = given.flag("use_liger_kernel")
    loss = given.choice("loss_type", ("nll", "dft", "chunked_nll"), "nll" if liger else "chunked_nll")
    if loss == "dft":
        draft.doubt("loss_type", "dft weights each token's loss; nll is predicted")
    if liger:
        draft.set("loss", "liger", "use_liger_kernel", "loss_type")
    else:
        draft.set("loss", "nll" if loss == "dft" else loss, "loss_type")


def _pairs(draft: Draft) -> None:
    _whole(draft)
    draft.halves(draft.given.number("max_length", 1024), "max_length")
    if draft.given.flag("use_liger_kernel"):
        draft.doubt("use_liger_kernel", LIGER, less=True)


def _dpo(draft: Draft) -> None:
    given = draft.given
    _pairs(draft)
    draft.set("loss", "nll", "loss_type")
    precomputed = given.flag("precompute_ref_log_probs")
    if precomputed:
        draft.set("reference", "precomputed", "precompute_ref_log_probs")
        step = given.number("per_device_train_batch_size", 8)
        if given.number("precompute_ref_batch_size", step) > step:
            draft.doubt("precompute_ref_batch_size", "the reference reads more pairs at a time than training does")
    losses = given.get("loss_type", ["sigmoid"])
    losses = losses if isinstance(losses, list) else [losses]
    known = [one for one in losses if one in DPO_LOSSES]
    if len(losses) != 1 or not known:
        draft.doubt(
            "loss_type",
            f"of {shown(losses)} one of TRL's own losses at a time is modelled: {(known or ['sigmoid'])[0]} here"
            + ("" if known else closest(losses[0] if losses else "", DPO_LOSSES)),
        )
    draft.set("dpo.loss_type", (known or ["sigmoid"])[0], "loss_type")
    for key in ("beta", "label_smoothing"):
        if given.get(key) is not None:
            draft.set(f"dpo.{key}", given.get(key), key)
    _reference(draft, not precomputed)


def _reward(draft: Draft) -> None:
    _pairs(draft)
    if draft.given.get("center_rewards_coefficient") is not None:
        draft.set(
            "rm.center_rewards_coefficient", draft.given.get("center_rewards_coefficient"), "center_rewards_coefficient"
        )


def _online(draft: Draft, namespace: str, group: int, beta: float, options: tuple[str, ...]) -> None:
    """GRPO and RLOO: a rollout is as many responses as a generation batch has."""
    given = draft.given
    draft.set("loss", "selective", "loss")
    size = given.number("num_generations", group)
    draft.set("group_size", size, "num_generations")
    if {"max_completion_length"} <= given.data.keys() and given.data["max_completion_length"] is None:
        draft.lack(
            "response_tokens",
            "null ends no response; --set response_tokens=512 says how long they are",
            "max_completion_length",
        )
    draft.set("response_tokens", given.number("max_completion_length", 512), "max_completion_length")
    if given.get("max_prompt_length") is not None:
        draft.set("prompt_tokens", given.number("max_prompt_length", 512), "max_prompt_length")
        draft.take("every prompt is as long as max_prompt_length lets it be (--set prompt_tokens=256)", "prompt_tokens")
    step = given.number("per_device_train_batch_size", 8)
    accumulated = given.number("gradient_accumulation_steps", 1)
    generation = given.get("generation_batch_size") or step * given.number("steps_per_generation", accumulated)
    key = "generation_batch_size" if given.get("generation_batch_size") else "steps_per_generation"
    if not isinstance(generation, int) or generation % size:
        given.wrong(
            key, f"{shown(generation)} responses of a generation are no whole groups of num_generations, {size}"
        )
        generation = size
    draft.set("rollout_batch", generation // size, key)
    for option in ("beta", "epsilon", "epsilon_high", "num_iterations", "temperature", "top_p", *options):
        if given.get(option) is not None:
            draft.set(f"{namespace}.{option}", given.get(option), option)
    if given.flag("use_liger_kernel"):
        draft.doubt("use_liger_kernel", LIGER, less=True)
    if given.flag("use_vllm"):
        _vllm(draft)
    if given.get("reward_model_name_or_path") is not None:
        draft.set("reward", given.get("reward_model_name_or_path"), "reward_model_name_or_path")
    _reference(draft, bool(given.get("beta", beta)))


def _vllm(draft: Draft) -> None:
    """vLLM generates, by default in this process, where it holds a share of the card's memory (its gpu_memory_utilization; CUDA
    graphs are counted in it since 0.21: vllm-project/vllm 30515). A server of its own may be anywhere."""
    given = draft.given
    draft.doubt("use_vllm", "vLLM generates: a rollout of this job is predicted, which takes more", 0)
    mode = given.choice("vllm_mode", ("server", "colocate"), "colocate")
    if mode == "server":
        draft.say("vllm_mode", "a server elsewhere; what it holds here, reserved_elsewhere says")
        return
    draft.say("vllm_mode", "on this card; before vLLM 0.21 its CUDA graphs come on top of its share")
    share = given.get("vllm_gpu_memory_utilization", 0.3)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        given.wrong("vllm_gpu_memory_utilization", f"{shown(share)} is no share of a card's memory, as 0.3 is")
        return
    draft.set("reserved_elsewhere", f"{100 * share:g}%", "vllm_gpu_memory_utilization")
    if given.flag("vllm_enable_sleep_mode"):
        draft.doubt("vllm_enable_sleep_mode", "its share is counted while it sleeps too: more is predicted", 0)


def _grpo(draft: Draft) -> None:
    given = draft.given
    _online(draft, "grpo", 8, 0.0, ("delta", "importance_sampling_level", "use_bias_correction_kl"))
    scale = given.get("scale_rewards", "group")
    if isinstance(scale, bool):
        scale = "group" if scale else "none"
    draft.set("grpo.scale_rewards", scale, "scale_rewards")
    loss = given.get("loss_type", "dapo")
    if loss in GRPO_LOSSES:
        draft.set("grpo.loss_type", loss, "loss_type")
    else:
        draft.doubt("loss_type", f"{shown(loss)} is not modelled; dapo is predicted{closest(loss, GRPO_LOSSES)}")


def _rloo(draft: Draft) -> None:
    _online(draft, "rloo", 2, 0.05, ("normalize_advantages", "reward_clip_range"))


OWN: dict[str, Callable[[Draft], None]] = {
    "sft": _sft,
    "dpo": _dpo,
    "reward": _reward,
    "grpo": _grpo,
    "rloo": _rloo,
}
"""By algorithm, what its trainer has of its own."""


def _draft(algorithm: str, draft: Draft) -> None:
    draft.set("algorithm", algorithm, "algorithm")
    common(draft)
    checkpoints(draft, default=True)
    _load(draft)
    own = OWN.get(draft.trained(algorithm))
    if own:
        own(draft)


def _format(algorithm: str, called: str, table: Table) -> Format:
    return Format(f"trl-{algorithm}", called, table, partial(_draft, algorithm), algorithm, unquoted=True)


FORMATS = (
    _format("sft", "TRL's SFTConfig", SFT),
    _format("dpo", "TRL's DPOConfig", DPO),
    _format("reward", "TRL's RewardConfig", REWARD),
    _format("grpo", "TRL's GRPOConfig", GRPO),
    _format("rloo", "TRL's RLOOConfig", RLOO),
)
