"""DeepSpeed's JSON: alone, or named by another configuration's `deepspeed`.

Read: DeepSpeed 0.19, runtime/config.py, runtime/constants.py, runtime/zero/config.py; transformers 5.23, integrations/deepspeed.py;
accelerate, which wraps no model in autocast beside DeepSpeed's engine. `auto` is what the trainer says. Keys of sections are
written `zero_optimization.stage`. One GPU is predicted, whatever the launcher starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vrambench.bench.plan.configs.draft import Draft, Format
from vrambench.bench.plan.configs.files import load_json
from vrambench.bench.plan.configs.keys import INERT, Doubt, Given, Table, closest
from vrambench.bench.plan.document import Document
from vrambench.methods.errors import ConfigurationError, shown

ZERO = "zero_optimization"
ENGINE = "DeepSpeed's engine does it in a way of its own"
OFF = (*INERT, "auto", 0, 1, {"enabled": False})
WHOLE = """
aio amp autotuning checkpoint comet comms_logger compile compression_training csv_monitor curriculum_learning data_efficiency
data_types elasticity flops_profiler hybrid_engine pipeline scheduler sparse_attention tensorboard torch_autocast wandb
""".split()  # noqa: SIM905
"""Sections that are read as one key."""
STAGE_3 = (
    *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_max_live_parameters"),
    *("stage3_max_reuse_distance", "sub_group_size"),
)
OF_THE_MODEL = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
"""What transformers makes of `auto` by the model's hidden size."""
TABLE = Table.of(
    f"""
    train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping train_batch_size bf16.enabled fp16.enabled
    optimizer.type optimizer.params.lr {ZERO}.stage {ZERO}.overlap_comm {ZERO}.reduce_bucket_size
    {ZERO}.offload_optimizer.device {ZERO}.offload_param.device {ZERO}.offload_optimizer.pin_memory
    {ZERO}.offload_param.pin_memory {" ".join(f"{ZERO}.{name}" for name in STAGE_3)}
    """,
    f"""
    aio autotuning checkpoint comet comms_logger csv_monitor curriculum_learning data_efficiency elasticity flops_profiler pipeline
    scheduler tensorboard wandb dump_state log_level memory_breakdown steps_per_print wall_clock_breakdown disable_allgather
    prescale_gradients gradient_predivide_factor sparse_gradients communication_data_type dataloader_drop_last
    zero_allow_untested_optimizer zero_force_ds_cpu_optimizer seed train_steps
    fp16.loss_scale fp16.loss_scale_window fp16.initial_scale_power fp16.hysteresis fp16.min_loss_scale fp16.auto_cast
    fp16.consecutive_hysteresis
    optimizer.params.betas optimizer.params.eps optimizer.params.weight_decay optimizer.params.torch_adam
    optimizer.params.adam_w_mode
    activation_checkpointing.partition_activations activation_checkpointing.contiguous_memory_optimization
    activation_checkpointing.cpu_checkpointing activation_checkpointing.number_checkpoints
    activation_checkpointing.synchronize_checkpoint_boundary activation_checkpointing.profile
    {ZERO}.allgather_bucket_size {ZERO}.allgather_partitions {ZERO}.compute_grad_norm {ZERO}.contiguous_gradients
    {ZERO}.elastic_checkpoint {ZERO}.enable_sanity_checks {ZERO}.ignore_unused_parameters {ZERO}.leaf_module
    {ZERO}.load_from_fp32_weights {ZERO}.log_trace_cache_warnings {ZERO}.memory_efficient_linear {ZERO}.override_module_apply
    {ZERO}.parameter_alignment {ZERO}.pipeline_loading_checkpoint {ZERO}.reduce_scatter {ZERO}.round_robin_gradients
    {ZERO}.save_muon_momentum_buffer_in_memory {ZERO}.stage3_allgather_sequential
    {ZERO}.stage3_gather_16bit_weights_on_model_save {ZERO}.stage3_gather_fp16_weights_on_model_save
    {ZERO}.stage3_use_all_reduce_for_fetch_params {ZERO}.use_multi_rank_bucket_allreduce
    {ZERO}.offload_optimizer.buffer_count {ZERO}.offload_optimizer.fast_init {ZERO}.offload_optimizer.nvme_path
    {ZERO}.offload_optimizer.cpuadam_cores_perc
    {ZERO}.offload_optimizer.pipeline_read {ZERO}.offload_optimizer.pipeline_write {ZERO}.offload_param.buffer_count
    {ZERO}.offload_param.buffer_size {ZERO}.offload_param.max_in_cpu {ZERO}.offload_param.nvme_path
    """,
    {
        **{
            name: Doubt(ENGINE, OFF)
            for name in ("amp", "compile", "compression_training", "data_types", "hybrid_engine")
        },
        **{name: Doubt(ENGINE, OFF) for name in ("sparse_attention", "torch_autocast", "bf16.immediate_grad_update")},
        f"{ZERO}.offload_optimizer.super_offload": Doubt(ENGINE, OFF),
        f"{ZERO}.legacy_stage1": Doubt(ENGINE, OFF),
        f"{ZERO}.offload_optimizer.ratio": Doubt("a part of the state stays on the device", (*OFF, 1.0)),
        f"{ZERO}.stage3_model_persistence_threshold": Doubt("some parameters stay on the device", OFF),
        f"{ZERO}.stage3_module_granularity_threshold": Doubt("some modules are gathered whole", OFF),
        f"{ZERO}.zenflow": Doubt(ENGINE, OFF),
        f"{ZERO}.zero_hpz_partition_size": Doubt("several GPUs: one is predicted", OFF),
        f"{ZERO}.zero_quantized_gradients": Doubt(ENGINE, OFF),
        f"{ZERO}.zero_quantized_nontrainable_weights": Doubt(ENGINE, OFF),
        f"{ZERO}.zero_quantized_weights": Doubt(ENGINE, OFF),
        f"{ZERO}.cpu_offload": Doubt("an old name: offload_optimizer says it", OFF),
        f"{ZERO}.cpu_offload_param": Doubt("an old name: offload_param says it", OFF),
        f"{ZERO}.cpu_offload_use_pin_memory": Doubt("an old name: offload_optimizer.pin_memory says it", OFF),
    },
)
UNPREFIXED = """
prefetch_bucket_size param_persistence_threshold model_persistence_threshold max_live_parameters max_reuse_distance
gather_16bit_weights_on_model_save module_granularity_threshold use_all_reduce_for_fetch_params allgather_sequential
""".split()  # noqa: SIM905
"""Names that DeepSpeed has for its `stage3_` ones too."""
TABLE |= Table.of("", renamed={f"{ZERO}.{name}": f"{ZERO}.stage3_{name}" for name in UNPREFIXED})
OPTIMIZERS = {"adam": "adamw_torch_fused", "adamw": "adamw_torch_fused"}
ADAMW = ("adamw_torch", "adamw_torch_fused")
"""Those whose state is DeepSpeed's."""
UNREAD = (
    *("adagrad", "lamb", "lion", "muadam", "muadamw", "muon", "musgd"),
    *("onebitadam", "onebitlamb", "zerooneadam"),
)
"""DeepSpeed's other types of optimizers."""
SECTIONS = {
    "bf16": '{"enabled": true}',
    "fp16": '{"enabled": true}',
    "optimizer": '{"type": "AdamW"}',
    "optimizer.params": '{"lr": 1e-4}',
    "activation_checkpointing": '{"cpu_checkpointing": false}',
    ZERO: '{"stage": 2}',
    f"{ZERO}.offload_optimizer": '{"device": "cpu"}',
    f"{ZERO}.offload_param": '{"device": "cpu"}',
}
"""Keys that hold keys, and how one is written."""
FLAGS = (
    *("bf16.enabled", "fp16.enabled", f"{ZERO}.overlap_comm"),
    *(f"{ZERO}.offload_{one}.pin_memory" for one in ("optimizer", "param")),
)
COUNTS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
NUMBERS = (
    *("gradient_clipping", "optimizer.params.lr"),
    *(f"{ZERO}.{name}" for name in ("reduce_bucket_size", *STAGE_3)),
)
EXAMPLES = {"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch_fused", "algorithm": "sft"}
"""Axes that DeepSpeed's file may leave open."""


def flat(document: Document) -> Document:
    """The document with the keys of its sections beside each other. Raises ConfigurationError where a section is none."""
    data: dict[str, Any] = {}
    lines: dict[tuple[str | int, ...], int] = {}

    def walk(held: Mapping[str, Any], path: tuple[str, ...]) -> None:
        for key, value in held.items():
            here = (*path, key)
            name = ".".join(here)
            if name in SECTIONS and not isinstance(value, dict | None):
                raise document.error(here, f"{name}: {shown(value)} is no mapping; write {SECTIONS[name]}")
            if isinstance(value, dict) and name in TABLE.names and here[0] not in WHOLE:
                raise document.error(here, f"{name}: {shown(value)} is a mapping, and one value is expected")
            if isinstance(value, dict) and value and here[0] not in WHOLE:
                walk(value, here)
            elif value != {} and not (name in SECTIONS and value is None):
                data[name] = value
                lines[(name,)] = document.line(*here)

    walk(document.data, ())
    return Document(document.name, data, lines)


def lay(draft: Draft, key: str = "deepspeed") -> None:
    """Lays the DeepSpeed configuration that the file names, from its own folder or the current one, or holds under `key` over its
    settings."""
    given, said = draft.given, draft.given.get(key)
    if isinstance(said, str):
        path = Path(given.document.name).parent / said
        if not path.exists() and not Path(said).exists():
            given.wrong(key, f"{shown(said)} is neither beside it nor in the current folder")
            return
        try:
            document = load_json(path if path.exists() else Path(said))
        except ConfigurationError as error:
            given.wrong(key, error.message)
            return
    else:
        document = Document(f"{given.document.name}: {key}", said, {})
    if not isinstance(document.data, dict):
        given.wrong(key, f"{shown(document.data)} is not a configuration of DeepSpeed")
        return
    inner = draft.beside(Given(flat(document), TABLE))
    zero(inner)
    kind = enabled(inner)
    if kind:
        draft.engine_type = kind
        inner.say(f"{kind}.enabled", f"precision: {kind}")
    _optimizer(draft, inner)
    draft.adopt(inner, "DeepSpeed's configuration", Path(document.name).name if isinstance(said, str) else key)
    draft.engine = True
    if draft.axis("offload").startswith("zero3"):
        told = "transformers splits weights as it loads them; loading all of them on the device is predicted, which takes more"
        draft.doubt(key, told, 0)


def _optimizer(draft: Draft, inner: Draft) -> None:
    """An optimizer of DeepSpeed's file is the one that trains, whatever the trainer's says."""
    said = str(inner.given.get("optimizer.type", "")).lower()
    if said in OPTIMIZERS and draft.axis("optimizer") in ADAMW:
        inner.say("optimizer.type", "AdamW, as the trainer says")
    elif said in OPTIMIZERS:
        draft.overrule("optimizer", OPTIMIZERS[said], inner, "optimizer.type")
    elif said and said != "auto":
        inner.doubt("optimizer.type", "an optimizer that is not read: the trainer's is predicted")


def _check(given: Given) -> None:
    """That what is read is of the type that DeepSpeed expects. `auto` stands for any."""
    for keys, kinds, expected in (
        (FLAGS, bool, "true or false"),
        (COUNTS, int, "a whole number of at least 1"),
        (NUMBERS, int | float, "a number"),
    ):
        for key in keys:
            value = given.get(key)
            if value is None or value == "auto":
                continue
            right = isinstance(value, kinds) and (kinds is bool) == isinstance(value, bool)
            if not right or (keys is COUNTS and value < 1):
                given.wrong(key, f"{shown(value)} is not {expected}")


def zero(draft: Draft) -> None:
    """What DeepSpeed's own keys say."""
    given = draft.given
    _check(given)

    def number(key: str) -> Any:
        value = given.get(key)
        return None if value == "auto" else value

    for key, name in (
        ("train_micro_batch_size_per_gpu", "batch_size"),
        ("gradient_accumulation_steps", "gradient_accumulation_steps"),
        ("gradient_clipping", "max_grad_norm"),
        ("optimizer.params.lr", "learning_rate"),
    ):
        if number(key) is not None:
            draft.set(name, number(key), key)
    whole, micro = number("train_batch_size"), number("train_micro_batch_size_per_gpu")
    if not given.mistakes and whole and micro and whole != micro * (number("gradient_accumulation_steps") or 1):
        draft.doubt("train_batch_size", f"{whole} is that of several GPUs: one is predicted, with its share")
    _offload(draft, given.get(f"{ZERO}.stage", 0))


def _offload(draft: Draft, stage: Any) -> None:
    given = draft.given
    if isinstance(stage, bool | float) or stage not in (0, 1, 2, 3):
        given.wrong(f"{ZERO}.stage", f"{shown(stage)} is not one of 0, 1, 2, 3")
        stage = 2
    state, weights = (f"{ZERO}.offload_{one}.device" for one in ("optimizer", "param"))
    hosts = {key: given.choice(key, ("none", "cpu", "nvme"), "none") for key in (state, weights)}
    for key in (one for one, device in hosts.items() if device == "nvme"):
        draft.doubt(key, "on a disk, and not in the host's memory: buffers of its own come to it")
    on_host = {key for key, device in hosts.items() if device != "none"}
    if stage < 2:
        engine = "DeepSpeed's engine in stage 1" if stage else "DeepSpeed's engine without ZeRO, stage 0,"
        draft.doubt(f"{ZERO}.stage", f"{engine} is not modelled: stage 2 is predicted")
        stage = 2
    if stage == 3 and state not in on_host:
        told = "stage 3 is here with offload_optimizer alone; on one GPU, where nothing is divided, --offload zero2 comes nearest"
        draft.lack("offload", f"{told}, and --offload zero3_optimizer has the optimizer on the host", f"{ZERO}.stage")
        return
    whole = stage == 3 and weights in on_host
    name = "zero3_all" if whole else f"zero{stage}{'_optimizer' if state in on_host else ''}"
    draft.set("offload", name, f"{ZERO}.stage", *on_host)
    options = ["reduce_bucket_size", "overlap_comm", *(STAGE_3 if stage == 3 else ())]
    for option in options:
        key = f"{ZERO}.{option}"
        value = given.get(key, True if (option, stage) == ("overlap_comm", 3) else None)
        filled = option in OF_THE_MODEL and given.written(key) == key  # transformers looks for that name alone
        if value is not None and (value != "auto" or filled):
            draft.set(f"zero.{option}", int(value) if isinstance(value, float) else value, key)
    if on_host:
        pinned = [given.get(key.replace("device", "pin_memory"), False) for key in sorted(on_host)]
        draft.set("zero.pin_memory", any(pinned), *(key.replace("device", "pin_memory") for key in sorted(on_host)))


def enabled(draft: Draft) -> str:
    """The type in which the engine trains, empty where the file leaves it to the trainer."""
    kinds = [kind for kind in ("bf16", "fp16") if draft.given.get(f"{kind}.enabled") is True]
    if len(kinds) > 1:
        draft.given.wrong("fp16.enabled", "true, as bf16.enabled is, and only one of both can be")
    return kinds[0] if kinds else ""


def _draft(draft: Draft) -> None:
    """DeepSpeed's configuration alone, of a model in 16 bit: the command line says the rest."""
    given = draft.given
    zero(draft)
    kind = enabled(draft)
    if kind:
        draft.set("precision", kind, f"{kind}.enabled")
    optimizer = str(given.get("optimizer.type", "")).lower()
    if optimizer in OPTIMIZERS:
        draft.set("optimizer", OPTIMIZERS[optimizer], "optimizer.type")
    elif optimizer:
        hint = "" if optimizer in UNREAD else closest(optimizer, (*OPTIMIZERS, *UNREAD))
        message = (
            f"{shown(given.get('optimizer.type'))} of DeepSpeed is not read, and --optimizer may say another{hint}"
        )
        draft.lack("optimizer", message, "optimizer.type")
    draft.needs_model()
    for axis, example in EXAMPLES.items():
        if axis not in draft.axes and not (axis == "optimizer" and optimizer):
            draft.unsaid(axis, f"--{axis} {example}")
    if "batch_size" not in draft.settings:
        draft.unsaid("batch_size", "--set batch_size=4")
    draft.needs_length()


FORMAT = Format("deepspeed", "DeepSpeed's configuration", TABLE, _draft, marks=frozenset({ZERO}), flat=flat)
