"""torchtune's YAML: what `tune run RECIPE --config FILE` reads.

Read: torchtune 0.7 (bd2a0fc, April 2026), recipes/*.py, recipes/configs/, torchtune/modules/loss/, torchtune/rlhf/, models/. The
recipe is told by the file: PPO's has a `policy_model`, DPO's a loss of pairs, KD's a teacher. There is no PEFT and no autocast:
the model, its adapter and the optimizer's state are of `dtype`. Keys of sections are written `model.lora_rank`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vrambench.bench.plan.configs.draft import WHOLE, Draft, Format
from vrambench.bench.plan.configs.keys import closest
from vrambench.bench.plan.configs.torchtune_keys import (
    FUSED,
    LOSSES,
    MODELS,
    MODULES,
    NEAREST,
    OFFLOADED,
    OPTIMIZERS,
    PAIRS,
    SECTIONS,
    SIZES,
    TABLE,
)
from vrambench.bench.plan.document import Document
from vrambench.methods.errors import shown
from vrambench.methods.models.presets import PRESETS

COMPONENT = "_component_"


def flat(document: Document) -> Document:
    """The document with the keys of its sections beside each other, and `${batch_size}` in the place of what it names. Raises
    ConfigurationError where a section is none."""
    data: dict[str, Any] = {}
    lines: dict[tuple[str | int, ...], int] = {}

    def put(name: str, value: Any, *path: str) -> None:
        data[name] = _named(document.data, value)
        lines[(name,)] = document.line(*path)

    for key, value in document.data.items():
        if key in SECTIONS and value is not None and not isinstance(value, dict):
            raise document.error((key,), f"{key}: {shown(value)} is no mapping; write {{{COMPONENT}: {SECTIONS[key]}}}")
        if key == "dataset" and isinstance(value, list):
            packs = [isinstance(one, dict) and one.get("packed") for one in value]
            put("dataset.packed", next(filter(None, packs), None), key)
        elif key in (*SECTIONS, "dataset") and isinstance(value, dict):
            for name, held in value.items():
                put(f"{key}.{name}", held, key, name)
        else:
            put(key, value, key)
    return Document(document.name, data, lines)


def _named(data: Mapping[str, Any], value: Any) -> Any:
    """What `${model.lora_rank}` names, one level deep; anything else as it is."""
    found = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    held: Any = data
    for part in found[1].split(".") if found else ():
        held = held.get(part) if isinstance(held, dict) else None
    return value if found is None or held is None else held


def _draft(draft: Draft) -> None:
    given = draft.given
    said = _algorithm(draft)
    model = "policy_model" if "policy_model._component_" in given.data else "model"
    builder = given.text(f"{model}.{COMPONENT}").rpartition(".")[2]
    _model(draft, f"{model}.{COMPONENT}")
    _precision(draft, builder)
    _adapter(draft, builder)
    _optimizer(draft)
    _steps(draft)
    trained = draft.trained(said)
    if (said, trained) == ("ppo", "ppo"):
        _ppo(draft)
        return
    draft.set("batch_size", given.number("batch_size", 1), "batch_size")
    if trained in WHOLE:
        _lengths(draft)
    if trained == "sft":
        _sft(draft)
    elif trained == "dpo":
        _pairs(draft)


def _algorithm(draft: Draft) -> str:
    """By what the recipe trains, as far as the file shows it."""
    given, loss = draft.given, draft.given.text(f"loss.{COMPONENT}")
    if "policy_model._component_" in given.data:
        said, key = "ppo", "policy_model._component_"
    else:
        said, key = ("dpo", f"loss.{COMPONENT}") if loss in PAIRS else ("sft", "recipe")
    if "inference" in given.data:
        draft.lack("algorithm", "its recipe is not read, and --algorithm may say another", "inference")
    elif "kd_loss" in given.data or ("rlhf" in loss and said == "sft") or "grpo" in loss:
        key = "kd_loss" if "kd_loss" in given.data else f"loss.{COMPONENT}"
        hint = closest(loss, PAIRS) if "rlhf" in loss else ""
        draft.lack("algorithm", f"{shown(given.get(key))} is not read, and --algorithm may say another{hint}", key)
    else:
        draft.set("algorithm", said, key)
    return said


def _model(draft: Draft, key: str) -> None:
    said = draft.given.get(key)
    if said is None:
        draft.needs_model()
        return
    name = re.sub(r"^q?lora_|_(instruct|base)$", "", str(said).rpartition(".")[2])
    section = key.partition(".")[0]
    sizes = [f"{section}.{size}" for size in SIZES if draft.given.get(f"{section}.{size}") is not None]
    if name in MODELS:
        draft.set("model", MODELS[name], key)
        for size in sizes:
            draft.doubt(size, "a size that the builder does not have: the preset's is predicted")
        return
    preset = _of_sizes(draft, section)
    if preset and len(sizes) >= len(SIZES) - 1:
        draft.set("model", preset, *sizes, key)
        return
    if name in NEAREST:
        preset, hub_id = NEAREST[name]
        hint = f"--model {preset} is nearest" + (
            f", and --model {hub_id} reads its own sizes from the hub" if hub_id else ""
        )
    else:
        hint = f"--model says which preset or hub id has its sizes{closest(name, (*MODELS, *NEAREST))}"
    draft.lack("model", f"{shown(said)} builds no preset of here; {hint}", key)


def _of_sizes(draft: Draft, section: str) -> str | None:
    """The preset that has the sizes which a builder of any sizes is told."""
    wanted = {theirs: draft.given.get(f"{section}.{ours}") for ours, theirs in SIZES.items()}
    return next(
        (
            name
            for name, preset in PRESETS.items()
            if preset.architecture in ("llama", "mistral")
            and preset.hub_id
            and all(value in (None, {"vocab_size": 32000, **preset.shape}.get(size)) for size, value in wanted.items())
        ),
        None,
    )


def _precision(draft: Draft, builder: str) -> None:
    given = draft.given
    dtype = given.choice("dtype", ("bf16", "fp32"), "bf16")
    key = "model.quantize_base" if given.flag("model.quantize_base") else f"model.{COMPONENT}"
    low = builder.startswith("qlora_") or given.flag("model.quantize_base")
    draft.set("precision", "nf4" if low else dtype, *([key] if low else []), "dtype")
    if draft.axis("precision") in ("nf4", "int8"):
        draft.set("compute_dtype", dtype, "dtype")
    if draft.axis("precision") == "nf4":
        draft.set("nf4.double_quant", True, key)
        draft.doubt(
            key, "torchao's NF4 unpacks a layer through indices of 8 bytes a weight, beside what bitsandbytes takes"
        )


def _adapter(draft: Draft, builder: str) -> None:
    given = draft.given
    lora = "lora_" in builder
    dora = lora and given.flag("model.use_dora")
    keys = [*(["model.use_dora"] if dora else []), f"model.{COMPONENT}"]
    draft.set("adapter", "dora" if dora else "lora" if lora else "none", *keys)
    if draft.axis("adapter") == "none":
        return
    draft.set("adapter_dtype", given.choice("dtype", ("bf16", "fp32"), "bf16"), "dtype")
    if not lora:
        return
    for name, default in (("lora_rank", 8), ("lora_alpha", 16), ("lora_dropout", 0.0)):
        draft.set("lora_r" if name == "lora_rank" else name, given.get(f"model.{name}", default), f"model.{name}")
    said = given.get("model.lora_attn_modules", [])
    if not isinstance(said, list):
        given.wrong("model.lora_attn_modules", f"{shown(said)} is no list; write [q_proj, v_proj, output_proj]")
        said = []
    modules = FUSED if "phi" in builder else MODULES
    for one in said:
        names = [name for name in modules if name != "mlp"]
        if one not in names:
            ours = next((f"; did you mean {name!r}?" for name in names if modules[name] == one), closest(one, names))
            given.wrong("model.lora_attn_modules", f"{shown(one)} is not one of {', '.join(names)}{ours}")
    targets = [str(modules[one]) for one in said if one in modules]
    targets += modules["mlp"] if given.flag("model.apply_lora_to_mlp") else ()
    targets += ["lm_head"] if given.flag("model.apply_lora_to_output") else []
    keys = [key for key in ("apply_lora_to_mlp", "apply_lora_to_output") if given.get(f"model.{key}")]
    draft.set(
        "lora_target_modules",
        list(dict.fromkeys(targets)),
        "model.lora_attn_modules",
        *(f"model.{key}" for key in keys),
    )
    if modules is FUSED:
        draft.doubt(
            "model.lora_attn_modules", "torchtune's q, k and v, gate and up are layers apart: theirs are one here"
        )


def _optimizer(draft: Draft) -> None:
    given, key = draft.given, f"optimizer.{COMPONENT}"
    said = given.text(key, "torch.optim.AdamW")
    layerwise = given.flag("optimizer_in_bwd")
    if said in OFFLOADED:
        draft.set("offload", "torchao_optimizer", key)
        draft.set("optimizer", "adamw_torch_fused", key)
        draft.set(
            "cpu_offload.offload_gradients", given.flag("optimizer.offload_gradients"), "optimizer.offload_gradients"
        )
    else:
        draft.set("offload", "none", key)
    if said in OPTIMIZERS:
        name = OPTIMIZERS[said]
        fused = name == "adamw_torch" and given.flag("optimizer.fused")
        name += "_fused" if fused else ""
        keys = [key, *(["optimizer.fused"] if fused else []), *(["optimizer_in_bwd"] if layerwise else [])]
        draft.set("optimizer", name + ("_layerwise" if layerwise else ""), *keys)
    elif said not in OFFLOADED:
        whole = next((name for name in OPTIMIZERS if name.endswith(f".{said}")), said)
        message = f"{shown(said)} is no optimizer here, and --optimizer may say another{closest(whole, OPTIMIZERS)}"
        draft.lack("optimizer", message, key)
    if given.get("optimizer.lr") is not None:
        draft.set("learning_rate", given.get("optimizer.lr"), "optimizer.lr")
    clip = given.get("clip_grad_norm")
    for other, wrong in (
        ("clip_grad_norm", clip is not None),
        ("gradient_accumulation_steps", _accumulated(draft) > 1),
    ):
        if layerwise and wrong:
            given.wrong(
                other, f"{shown(given.get(other))} cannot be with optimizer_in_bwd: true, which needs {_WITHOUT[other]}"
            )
    draft.set("max_grad_norm", 0 if clip is None else clip, "clip_grad_norm")


_WITHOUT = {"clip_grad_norm": "null", "gradient_accumulation_steps": "1"}


def _accumulated(draft: Draft) -> int:
    return draft.given.number("gradient_accumulation_steps", 1)


def _steps(draft: Draft) -> None:
    given = draft.given
    draft.set("gradient_accumulation_steps", _accumulated(draft), "gradient_accumulation_steps")
    checkpoints, offloads = (given.flag(f"enable_activation_{one}") for one in ("checkpointing", "offloading"))
    if offloads and not checkpoints:
        given.wrong("enable_activation_offloading", "true needs enable_activation_checkpointing: true")
    draft.set("gradient_checkpointing", checkpoints, "enable_activation_checkpointing")
    if offloads:
        draft.set("activation_offloading", True, "enable_activation_offloading")


def _lengths(draft: Draft) -> None:
    """Of whole sequences. Packs are rows of max_seq_len tokens, as the longest sequence is."""
    given, key = draft.given, "tokenizer.max_seq_len"
    length = given.get(key)
    if given.flag("dataset.packed"):
        if length is None:
            given.wrong("dataset.packed", "true needs tokenizer.max_seq_len, the tokens of a pack")
            return
        draft.say("dataset.packed", "rows of max_length")
        draft.doubt("dataset.packed", "packs are attended to by flex attention, or under a mask: neither is modelled")
    if length is not None:
        draft.as_long_as(key, given.number(key, 1))
    elif not {"lengths", "response_tokens"} & set(draft.chosen.names):
        draft.lack("max_length", "null cuts no sequence; --set max_length=1024 says how long they are, or lengths", key)


def _sft(draft: Draft) -> None:
    given, key = draft.given, f"loss.{COMPONENT}"
    draft.set("prompt_tokens", 1, "dataset.train_on_input")
    said = given.text(key, "torchtune.modules.loss.LinearCrossEntropyLoss")
    draft.set("loss", LOSSES.get(said, "nll"), key)
    if said == "torch.nn.CrossEntropyLoss":
        draft.doubt(key, "it makes no copy in fp32: the loss of transformers is predicted, which takes more", 0)
    elif said not in LOSSES:
        draft.doubt(key, f"{shown(said)} is not here: the loss of transformers is predicted{closest(said, LOSSES)}")
    if given.get("run_val_every_n_steps") is not None and given.get("dataset_val"):
        size = given.number("batch_size_val", given.number("batch_size", 1))
        draft.set("eval_batch_size", size, "batch_size_val", "run_val_every_n_steps", "dataset_val")


def _pairs(draft: Draft) -> None:
    given, key = draft.given, f"loss.{COMPONENT}"
    draft.set("loss", "nll", key)
    draft.set("dpo.loss_type", PAIRS.get(given.text(key), "sigmoid"), key)
    for name in ("beta", "label_smoothing"):
        if given.get(f"loss.{name}") is not None:
            draft.set(f"dpo.{name}", given.get(f"loss.{name}"), f"loss.{name}")
    draft.doubt(key, "it divides all logits by a temperature, and keeps all their log-probabilities")
    if given.get("tokenizer.max_seq_len") is not None:
        draft.halves(given.number("tokenizer.max_seq_len", 1), "tokenizer.max_seq_len")


def _ppo(draft: Draft) -> None:
    """Policy, reference, reward and value model are models of their own."""
    given = draft.given
    steps, rollout = given.number("ppo_batch_size", 1), given.number("batch_size", 1)
    accumulated = _accumulated(draft)
    if steps % accumulated or rollout % steps:
        given.wrong(
            "ppo_batch_size",
            f"{steps} is no part of batch_size, {rollout}, or no multiple of gradient_accumulation_steps, {accumulated}",
        )
    draft.set("rollout_batch", rollout, "batch_size")
    draft.set("batch_size", steps // accumulated, "ppo_batch_size")
    at_a_time = given.number("forward_batch_size", rollout)
    if at_a_time < rollout:
        draft.set("micro_rollout_batch_size", at_a_time, "forward_batch_size")
    else:
        draft.say("forward_batch_size", "all of a rollout at once")
    _scores(draft)
    draft.set("response_tokens", given.number("max_generated_tokens", 58), "max_generated_tokens")
    if given.get("tokenizer.max_seq_len") is not None:
        draft.set("prompt_tokens", given.number("tokenizer.max_seq_len", 1), "tokenizer.max_seq_len")
        draft.take(
            "every prompt is as long as tokenizer.max_seq_len lets it be (--set prompt_tokens=256)", "prompt_tokens"
        )
    draft.set("loss", "nll", f"loss.{COMPONENT}")
    draft.doubt(
        f"loss.{COMPONENT}", "masks of padded prompts rule out flash attention, and generation keeps all logits"
    )
    for option, key in (
        ("epochs", "ppo_epochs"),
        ("temperature", "temperature"),
        ("gamma", "gamma"),
        ("lam", "lmbda"),
        ("kl_coef", "kl_coeff"),
        ("whiten_rewards", "whiten_rewards"),
        ("cliprange", "loss.epsilon"),
        ("cliprange_value", "loss.value_clip_range"),
        ("vf_coef", "loss.value_coeff"),
    ):
        if given.get(key) is not None:
            draft.set(f"ppo.{option}", given.get(key), key)


def _scores(draft: Draft) -> None:
    """The reward and the value model, of one shape."""
    given, section = draft.given, "reward_and_value_model"
    draft.set("value", "separate", f"{section}.{COMPONENT}")
    draft.set("reward", "model", f"{section}.{COMPONENT}")
    base = given.get(f"{section}.base_model_path")
    key = f"{section}.{COMPONENT if base is None else 'base_model_path'}"
    preset = MODELS.get(str(given.get(key)).rpartition(".")[2]) or _of_sizes(draft, section)
    policy = draft.settings.get("model")
    if preset or policy:
        draft.set("reward_model", preset or (policy.value if policy else None), key)
    for size in SIZES:
        said, own = given.get(f"{section}.{size}"), given.get(f"policy_model.{size}")
        if said is not None and (preset is None or own not in (None, said)):
            draft.doubt(
                f"{section}.{size}",
                "the policy's sizes are predicted" if preset is None else "another than the policy's",
            )
        elif said is not None:
            draft.say(f"{section}.{size}", f"reward_model: {preset}")


FORMAT = Format(
    "torchtune",
    "a torchtune config",
    TABLE,
    _draft,
    marks=frozenset(
        {"checkpointer", "enable_activation_checkpointing", "metric_logger", "optimizer_in_bwd", "policy_model"}
    ),
    flat=flat,
)
