"""What the rules ask of a cell: its axis values' declarations, its settings, its model's configuration."""

from __future__ import annotations

import functools
import math
from importlib.util import find_spec
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from vrambench.methods.adapters.attaching import check_layers, linear_layers
from vrambench.methods.algorithms.trainer_learner import unable_to_make
from vrambench.methods.cell import Cell
from vrambench.methods.dtypes import DTYPES
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.kv_cache import unable_to_decode
from vrambench.methods.models.attention import choices, chunked, own_code, sight, unable
from vrambench.methods.models.config import model_config
from vrambench.methods.models.fill import build
from vrambench.methods.models.parts import first_position, heads, stacked
from vrambench.methods.sdpa import Choice

# The least eps, in powers of ten, with which fp16 state was seen to train (tiny Llama): squares of gradients below 5e-3
# underflow there, and eps alone is left to divide by. With 1e-5 (1e-7 under GaLore) the loss rose from 5.5 to 7.8 (16)
# in six steps.
FP16_EPS = 1e-4
FP16_EPS_DECOMPOSED = 1e-6


def quantized(cell: Cell) -> bool:
    return cell.precision_value.quantize is not None


def full(cell: Cell) -> bool:
    """The base's own weights are trained."""
    return cell.adapter_value.trains_base


def merges(cell: Cell) -> bool:
    """Its adapter can be merged into its base."""
    adapter = cell.adapter_value
    return adapter.merges and (adapter.merges_quantized or not quantized(cell))


def zero(cell: Cell) -> bool:
    return cell.offload_value.zero_stage > 0


def projects(cell: Cell) -> bool:
    return cell.optimizer_value.projects_gradients


def decomposes(cell: Cell) -> bool:
    """The optimizer's projectors come of a decomposition (GaLore's; APOLLO's are random numbers)."""
    return cell.optimizer_value.svd_gap is not None


def weight_dtype(cell: Cell) -> torch.dtype:
    """Of every base weight that is not quantised."""
    return cell.precision_value.dtype(cell.workload)


def trained_dtypes(cell: Cell) -> set[torch.dtype]:
    """Of the weights that are trained, before any engine casts them: the base's own, or an adapter's and those of whole modules
    that are trained beside it, such as a reward model's head."""
    if full(cell):
        return {weight_dtype(cell)}
    beside = cell.workload.lora_modules_to_save or cell.algorithm_value.trains_reward
    whole = {weight_dtype(cell)} if beside else set()
    return whole | {DTYPES[cell.workload.adapter_dtype or "fp32"]}


def product_dtype(cell: Cell) -> torch.dtype:
    """In which attention computes."""
    return cell.precision_value.attended(cell.workload)


def autocast(cell: Cell) -> torch.dtype | None:
    """The type that autocast runs in, None where it is off."""
    return cell.precision_value.autocast(cell.workload)


def loss_scaling(cell: Cell) -> bool:
    return cell.precision_value.loss_scaling(cell.workload)


def upcast(cell: Cell) -> bool:
    """Parts of a quantised model are cast to fp32."""
    return cell.workload.fp32_modules not in (None, "none")


def fp32_vocabulary_bytes(cell: Cell) -> int:
    """What embeddings and head take in fp32, as far as they are cast to it; tied ones are one."""
    which = cell.workload.fp32_modules
    if which in (None, "none"):
        return 0
    text = configured(cell.workload.model)
    named = sum(name in which for name in ("embeddings", "head")) if isinstance(which, tuple) else 2
    parts = min(named, 1) if getattr(text, "tie_word_embeddings", False) else named
    numbers: int = getattr(text, "vocab_size", 0) * getattr(text, "hidden_size", 0)
    return parts * numbers * 4


def eps_too_small(cell: Cell) -> bool:
    """The optimizer keeps its state in fp16, as the trained weights are, with an eps that does not hold it up (some
    compute in fp32 whatever they step, and ZeRO steps an fp32 master copy)."""
    optimizer = cell.optimizer_value
    eps = getattr(cell.workload.of(optimizer.options), "eps", None) if optimizer.options else None
    if eps is None or optimizer.in_fp32 or torch.float16 not in trained_dtypes(cell) or zero(cell):
        return False
    return bool(eps < (FP16_EPS_DECOMPOSED if optimizer.svd_gap else FP16_EPS))


def visitors(cell: Cell) -> bool:
    """Whether there are frozen models of their own: a reference, or a reward."""
    work = cell.workload
    return work.reference == "copy" or work.reward == "model" or "/" in (work.reward or "")


def remax_temperature(cell: Cell) -> float | None:
    return cell.workload.options.get("remax", {}).get("temperature")


def algorithm_option(cell: Cell, name: str) -> object:
    """The algorithm's own option of that name; None where it has none."""
    options = cell.algorithm_value.options
    return options and getattr(cell.workload.of(options), name, None)


def untold_optimizer(cell: Cell) -> str | None:
    """Why another library's trainer would not make the cell's optimizer; None where it would, or the trainer is ours."""
    if cell.algorithm_value.foreign is None:
        return None
    kind = cell.optimizer_value.options
    options = cell.workload.options.get(kind.namespace, {}) if kind else {}
    return unable_to_make(cell.optimizer_value, options)


def untold_settings(cell: Cell) -> str | None:
    """What is wrong with the settings that another library's trainer is to be given; None where nothing is, or it is not here."""
    foreign = cell.algorithm_value.foreign
    if foreign is None or not foreign.said(cell.workload) or not installed(foreign.module):
        return None
    return foreign.mistaken(foreign.said(cell.workload))


def not_installed(cell: Cell) -> str:
    """The packages that the cell's values import and that are not here, and how to get them; nothing where all are."""
    told = []
    for axis, value in cell.values.items():
        lacking = [name for name in dict.fromkeys(value.requires) if not installed(name)]
        if lacking:
            extra = f" (pip install 'vrambench[{value.extra}]')" if value.extra else ""
            told.append(f"{cell.axes[axis]} needs {', '.join(lacking)}{extra}")
    return "; ".join(told)


@functools.cache
def installed(module: str) -> bool:
    """Whether the package that `module` is in is here."""
    try:
        return find_spec(module.partition(".")[0]) is not None
    except ValueError:  # one that is half imported
        return True


def uses_bf16(cell: Cell) -> bool:
    return torch.bfloat16 in {product_dtype(cell), weight_dtype(cell), *trained_dtypes(cell)}


@functools.cache
def described(model: str) -> PreTrainedConfig | None:
    """The configuration of `model`; None where it cannot be read here (the job then says why)."""
    try:
        return model_config(model)
    except ConfigurationError:
        return None


def configured(model: str) -> object:
    """The language model's configuration of `model`; one without any field where it cannot be read here."""
    config = described(model)
    return config.get_text_config() if config else SimpleNamespace()


def narrow(cell: Cell) -> bool:
    """Its model embeds tokens in fewer numbers than its layers have, as OPT-350m does."""
    config = configured(cell.workload.model)
    width = getattr(config, "hidden_size", None)
    return (getattr(config, "word_embed_proj_dim", None) or width) != width


def packs_experts(cell: Cell) -> bool:
    """The precision is asked to quantise experts in stacked parameters."""
    options = cell.precision_value.options
    return bool(options and getattr(cell.workload.of(options), "quantize_moe_experts", False))


def quantized_to(cell: Cell, bits: int) -> bool:
    """Whether base weights are quantised to so many bits."""
    return quantized(cell) and cell.precision_value.bits == bits


@functools.cache
def own_linear_weights(model: str) -> int:
    """How many weights of `model` are in linear layers of a class of its architecture's own, its head and routers apart."""
    if not own_code(described(model) or PreTrainedConfig()):
        return 0  # so it is in none of the others; building a model takes a while
    built = _built(model)
    output = heads(built)
    own = [part for part in built.modules() if isinstance(part, torch.nn.Linear) and type(part) is not torch.nn.Linear]
    return sum(part.weight.numel() for part in own if part not in output)


@functools.cache
def stacked_weights(model: str) -> int:
    """How many weights of `model` are in stacks of matrices, one for each expert, as transformers builds it."""
    if not any("expert" in name for name in vars(configured(model))):
        return 0
    parts = _built(model).modules()
    return sum(part.get_parameter(name).numel() for part in parts for name in stacked(part))


@functools.cache
def quantised_layers(model: str) -> tuple[str, ...]:
    """The names of `model`'s linear layers, its head and routers apart: those that a quantiser takes and an adapter is put on."""
    built = _built(model)
    output = heads(built)
    layers = [
        path for path, part in built.named_modules() if type(part) in (torch.nn.Linear, Conv1D) and part not in output
    ]
    return tuple(sorted({path.rpartition(".")[2] for path in layers}))


def unknown_layers(cell: Cell) -> str | None:
    """What is wrong with the layers that are named for the cell's adapter; None where nothing is, or the adapter has its own."""
    named = cell.workload.lora_target_modules
    if not named or named in ("auto", "all-linear"):
        return None
    try:
        if paths := _adaptable(cell.workload.model):
            check_layers(named, paths)
    except ConfigurationError as error:
        return error.message.partition(": ")[2]
    return None


@functools.cache
def _adaptable(model: str) -> tuple[str, ...]:
    """Paths of the layers that an adapter can be put on; none where the model cannot be built here, or has experts in stacked
    parameters, which PEFT knows by several names."""
    return () if stacked_weights(model) else tuple(linear_layers(_built(model)))


@functools.cache
def cut_blocks(model: str) -> dict[str, int]:
    """By their names, the input widths of `model`'s quantised layers that AVX-512 takes whole and blocks of 64 do not."""
    built = _built(model)
    output = heads(built)
    widths = {
        path.rpartition(".")[2]: part.in_features if isinstance(part, torch.nn.Linear) else part.nx
        for path, part in built.named_modules()
        if isinstance(part, torch.nn.Linear | Conv1D) and part not in output
    }
    return {name: width for name, width in widths.items() if width % 64 and width % 16 == 0}


def _built(model: str) -> torch.nn.Module:
    """`model` as transformers builds it, shapes only; empty where it cannot be (the job then says why)."""
    try:
        return build(AutoModelForCausalLM, model_config(model), torch.bfloat16, "eager")
    except Exception:  # a config.json may make transformers raise anything
        return torch.nn.Module()


@functools.cache
def positions(model: str) -> float:
    """How many tokens a sequence of `model` may have; no limit where its configuration names none."""
    config = described(model)
    if config is None:
        return math.inf
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    return most - first_position(config) if most else math.inf


def longest_row(cell: Cell) -> int:
    """The most tokens of a row, padding included; where padding is at position 0, those of a sequence."""
    work = cell.workload
    tokens = work.sequence_tokens if work.one_row else work.padded(work.sequence_tokens)
    return row_tokens(cell) - work.sequence_tokens + tokens


def row_tokens(cell: Cell) -> int:
    """Tokens of every sequence, virtual ones included."""
    return cell.adapter_value.virtual_tokens(cell.workload) + cell.workload.sequence_tokens


def said_by(cell: Cell) -> str:
    """Which fields say how long rows are."""
    if cell.workload.lengths is None:
        return " (prompt_tokens and response_tokens, or max_length)"
    return " (lengths and pad_to_multiple_of)" if cell.workload.pad_to_multiple_of else " (lengths or max_length)"


@functools.cache
def attends_by_own_code(model: str) -> bool:
    config = described(model)
    return config is not None and own_code(config)


def unable_to_attend(cell: Cell) -> str | None:
    """Why the cell's model cannot attend as the cell says, None where it can."""
    return _unable_to_attend(cell.workload.model, cell.workload.attention)


@functools.cache
def _unable_to_attend(model: str, kernel: str) -> str | None:
    config = described(model)
    return config and unable(config, kernel)


def unable_to_generate(cell: Cell) -> str | None:
    """Why the cell's rollouts cannot be, None where they can or there are none."""
    return _unable_to_decode(cell.workload.model) if cell.workload.rollout_batch is not None else None


@functools.cache
def _unable_to_decode(model: str) -> str | None:
    config = described(model)
    return config and unable_to_decode(config)


def beyond_chunks(cell: Cell) -> bool:
    """Sequences are longer than what a layer sees of them, and that is no window behind every token."""
    config = described(cell.workload.model)
    return config is not None and chunked(config) and row_tokens(cell) > sight(config)


def chosen_kernels(cell: Cell, capability: tuple[int, int] | None) -> tuple[Choice, ...]:
    """What `attention: sdpa` comes to in the layers of the cell's model, each kernel once; nothing where the cell says another."""
    config = described(cell.workload.model)
    if config is None or cell.workload.attention != "sdpa":
        return ()
    work = cell.workload
    return choices(config, row_tokens(cell), product_dtype(cell), capability, masked=work.masks)


def odd_widths(model: str) -> dict[str, int]:
    """By the configuration's names, the widths of `model`'s layers that are no multiple of 4."""
    names = ("hidden_size", "intermediate_size", "ffn_dim", "n_inner")
    widths = {name: getattr(configured(model), name, None) for name in names}
    return {name: width for name, width in widths.items() if width is not None and width % 4}
