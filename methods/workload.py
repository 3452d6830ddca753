"""The workload: everything about a training job that the five axes do not change.

A workload is what a matrix's `workload:` section says, with `--set` and `--sweep` applied. Fields that only some axis
values use (LoRA's rank, PPO's value model) are optional: `resolve` in `cell.py` empties those that a cell does not use, so that
two cells that do the same work are the same cell.
"""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from vrambench.methods.errors import UNPRINTABLE, brief, did_you_mean, shown
from vrambench.methods.lengths import parse_lengths
from vrambench.methods.registry import Options
from vrambench.methods.sizes import parse_part, parse_size

Kind = TypeVar("Kind", bound=Options)

LONGEST_NAME = 1000
"""Characters of a model, a file or a function."""


def _check_name(value: str) -> str:
    """That `value` can name a file, whether or not it names one."""
    if not value:
        raise ValueError("must not be empty")
    if UNPRINTABLE.search(value):
        raise ValueError(f"{shown(value)} has a character that cannot be printed")
    if len(value) > LONGEST_NAME or any(len(part.encode()) > 255 for part in value.split("/")):
        raise ValueError(f"{shown(value)} is longer than any name")
    return value


def _check_reward(value: str | None) -> str | None:
    if value is None or value in ("tokens", "reviews", "model") or "/" in value or ":" in value:
        return value
    raise ValueError("is not one of tokens, reviews, model, a hub id or folder (with a '/'), or module:attribute")


SAVED = "saved:"


def saved_name(value: str | None) -> str | None:
    """The name in `saved:NAME`; None where `value` is something else."""
    return value.removeprefix(SAVED) if value is not None and value.startswith(SAVED) else None


def _check_saved_name(value: str) -> str:
    """A name of one folder."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", value):
        raise ValueError("must be a name of letters, digits, dots, dashes and underscores, at most 100, such as merged")
    return value


def _check_saved(value: str, others: tuple[str, ...]) -> str:
    """One of `others`, or `saved:NAME`."""
    name = saved_name(value)
    if name is not None:
        _check_saved_name(name)
    elif value not in others:
        raise ValueError(f"must be {' or '.join(others)}, or saved:NAME{did_you_mean(value, (*others, SAVED + value))}")
    return value


FP32_MODULES = ("norms", "embeddings", "head")


def _check_fp32_modules(value: object) -> object:
    named = _listed(value)
    if value is None or value in ("none", "all"):
        return value
    if isinstance(named, str):
        named = [named]
    if isinstance(named, list | tuple) and named and all(name in FP32_MODULES for name in named):
        return tuple(name for name in FP32_MODULES if name in named)
    raise ValueError(f"must be none, all or a list of {', '.join(FP32_MODULES)} (norms,head or [norms])")


def _listed(value: object) -> object:
    """The names of `q_proj,v_proj`, which the command line takes for a list; anything else as it is."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) and "," in value else value


_NAME = re.compile(r"[\w.-]+")
"""Of a module or parameter, or the end of its path."""


def _check_names(value: object) -> object:
    """A list of modules' or parameters' names; on the command line `embed_tokens,lm_head`."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")]
    if value is None or (isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value)):
        return value
    raise ValueError("must be a list of names (embed_tokens,lm_head or [embed_tokens])")


def _check_modules(value: object) -> object:
    """A list of names, or text: `auto`, `all-linear`, names with commas between them, or a regular expression."""
    unlike = (
        "must be auto, all-linear, a list of modules' names (q_proj,v_proj or [q_proj]), or a regular expression for whole paths "
        "(.*\\.q_proj)"
    )
    if isinstance(value, str) and "," in value:
        names = [name.strip() for name in value.split(",")]
        value = names if all(_NAME.fullmatch(name) or not name for name in names) else value
    if value is None or value in ("auto", "all-linear"):
        return value
    if isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(unlike)
    if re.fullmatch(r"[\w-]+", value):  # to PEFT a regular expression for a whole path, which matches none
        meant = did_you_mean(value, ("auto", "all-linear"))
        raise ValueError(unlike + (meant or f"; write [{brief(value)}] for the layers of that name"))
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is no regular expression ({error}), and {unlike}") from error
    return value


def _part_of_budget(value: object, info: ValidationInfo) -> int | None:
    return None if value is None else parse_part(value, info.data.get("budget", 0))


# The upper bounds are far beyond what any device does: they catch a slip of the hand before a job allocates for it.
Count = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
Length = Annotated[int, Field(ge=2, le=2_000_000, strict=True)]
Natural = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]
Rank = Annotated[int, Field(ge=1, le=65_536, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Number = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True, allow_inf_nan=False)]
Switch = Annotated[bool, Field(strict=True)]
Name = Annotated[str, AfterValidator(_check_name)]
Size = Annotated[int, BeforeValidator(parse_size)]
PartOfBudget = Annotated[int | None, BeforeValidator(_part_of_budget)]
Fp32Modules = Annotated[
    Literal["none", "all"] | tuple[Literal["norms", "embeddings", "head"], ...] | None,
    BeforeValidator(_check_fp32_modules),
]
SavedName = Annotated[str, AfterValidator(_check_saved_name)]
Weights = Annotated[str, AfterValidator(functools.partial(_check_saved, others=("random", "pretrained")))]
AdapterWeights = Annotated[str, AfterValidator(functools.partial(_check_saved, others=("initial",)))]
Modules = Annotated[str | tuple[str, ...] | None, BeforeValidator(_check_modules)]
Names = Annotated[tuple[str, ...] | None, BeforeValidator(_check_names)]
Lengths = Annotated[dict[int, float] | None, BeforeValidator(parse_lengths)]


class Workload(BaseModel):
    """One job's work. Sizes in bytes, lengths in tokens; None where the cell's axis values do not use the field. The sentence
    below a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Name = "tiny"
    """The model whose shape is trained: a preset, a folder with a config.json, or a hub id."""
    weights: Weights = "random"
    """`random`: seeded, made layer by layer in their final precision. `pretrained`: those of the folder or hub id. `saved:NAME`:
    those that another cell of the run saves (`save_as`), which runs first."""
    data: Name = "synthetic"
    """What is trained on and prompted with: `synthetic` (a seeded Markov chain), `reviews` (film reviews of a few words), a text or
    .jsonl file, or a data set's hub id. Pairs are lines with `prompt`, `chosen` and `rejected`."""
    batch_size: Count = 1
    """Sequences in one forward and backward pass; in DPO and for reward models pairs, as TRL counts them, of two sequences each."""
    prompt_tokens: Count = 256
    """Tokens of every prompt; in SFT the first part of every sequence."""
    response_tokens: Count = 256
    """Tokens of every response, exactly as many as are generated; in SFT the rest of every sequence."""
    max_length: Length | None = None
    """Tokens of a whole sequence in SFT, DPO and for reward models: the response is what `prompt_tokens` leaves of it, whatever a
    profile or the file says of `response_tokens`; all three named in one place must agree. A prompt that is not said there and is
    no shorter is half of it. Null is prompt and response together."""
    lengths: Lengths = None
    """In SFT, how long sequences are: shares by tokens ({256: 0.5, 1024: 0.4, 2048: 0.1}), or a file with a length on each line (in
    JSON lines: `length` or `input_ids`). `max_length` then truncates them, and prompt_tokens and response_tokens say nothing. Null:
    every sequence has the same length, prompt and response together."""
    pad_to_multiple_of: Count | None = None
    """With `lengths`: rows are padded to the longest of their batch, and to a multiple of so many tokens."""
    padding_free: Switch = False
    """With `lengths`: the sequences of a batch are one row, without padding, and kept apart by their positions."""
    packing: Literal["none", "bfd", "bfd_split", "wrapped"] = "none"
    """With `lengths`: TRL's `packing_strategy`. `bfd`: several sequences fill a row of `max_length` tokens, as a best fit, and all
    rows of a batch are one, padding-free. `bfd_split`: the same, and longer sequences are split instead of truncated. `wrapped`:
    rows of `max_length` tokens, wherever sequences end."""
    gradient_accumulation_steps: Count = 1
    """Backward passes for one optimizer step."""
    gradient_checkpointing: Switch = False
    """Whether activations inside a layer are dropped and computed once more in the backward pass."""
    use_reentrant: Switch = False
    """Whether checkpointing is torch's reentrant kind: a layer runs without a graph first, and in the backward pass to its end,
    with a backward pass of its own."""
    activation_offloading: Switch = False
    """Whether what autograd saves in a forward pass (with gradient checkpointing: the layers' inputs) goes to page-locked host
    memory and comes back in the backward pass, on a stream of its own, as in TRL."""
    torch_empty_cache_steps: Natural = 0
    """Before the backward passes of every so many optimizer steps, cached memory goes back to the driver; 0 leaves it."""
    compute_dtype: Literal["bf16", "fp16", "fp32"] | None = "bf16"
    """The type in which a quantised model computes, and holds what is not quantised."""
    autocast: Literal["none", "bf16", "fp16"] | None = "none"
    """Autocast over a model in 16 bit or quantised, as the Trainer's `bf16: true` and `fp16: true` (which scales the loss)."""
    fp32_modules: Fp32Modules = "none"
    """What of a quantised model is cast to fp32 once it is loaded: `all` that is not quantised, as PEFT's
    prepare_model_for_kbit_training does, or a list of `norms` (LLaMA-Factory's upcast_layernorm), `embeddings` and `head`."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager", "flash", "efficient", "math"] = "auto"
    """transformers' `attn_implementation`: `sdpa` (the kernel that PyTorch chooses), `flash_attention_2` (the flash-attn package)
    or `eager` (the architecture's own code); or one kernel of PyTorch's: `flash`, `efficient`, `math`. `auto` is flash in half
    precision, efficient in fp32, and sdpa or eager where the architecture has neither."""
    loss: Literal[
        "scored", "selective", "nll", "nll_4_46", "nll_4_45", "chunked_nll", "linear_cross_entropy", "chunked_output", "liger",
        "cut_cross_entropy",
    ] = "scored"  # fmt: skip
    """For which positions logits are made, and how. `scored`: the positions that are scored, with a copy in fp32. `selective`: the
    same, one sequence after the other, with entropies for the log, as TRL does in GRPO and RLOO. `nll`: the whole sequence, as
    transformers' models do with labels (in PPO: as TRL does). `nll_4_46`, `nll_4_45`: as those did in transformers of that version.
    `chunked_nll`: a chunk at a time, TRL's default in SFT. `linear_cross_entropy`, `chunked_output`: in eight pieces, as
    torchtune's LinearCrossEntropyLoss and CEWithChunkedOutputLoss. `liger`: Liger-Kernel's fused cross-entropy.
    `cut_cross_entropy`: Apple's, which makes no logits."""
    lora_r: Rank | None = 16
    """Rank of the adapter's factors."""
    lora_alpha: Positive | None = 32
    """The factors' product is multiplied by lora_alpha / lora_r."""
    use_rslora: Switch | None = False
    """Whether it is multiplied by lora_alpha / sqrt(lora_r) instead."""
    lora_dropout: Share | None = 0.0
    """Share of the adapter's inputs that is dropped in training."""
    lora_target_modules: Modules = "auto"
    """Layers with an adapter: `auto` (PEFT's own choice for the architecture, such as q_proj and v_proj for Llama, or else all
    linear ones), `all-linear` (all but the head), a list of modules' names, or a regular expression for their whole paths."""
    lora_target_parameters: Names = ()
    """Parameters with an adapter, by the ends of their paths: experts' stacked weights (mlp.experts.gate_up_proj), which are no
    layers."""
    lora_modules_to_save: Names = ()
    """Modules, by the ends of their paths, of which a copy is trained whole beside the adapter (embed_tokens,lm_head), in the type
    of their weights; a tied one is tied no longer."""
    adapter_dtype: Literal["fp32", "bf16", "fp16"] | None = "fp32"
    """The type of the adapter's weights."""
    adapter_weights: AdapterWeights | None = "initial"
    """`initial`: as PEFT makes them. `saved:NAME`: those that another cell of the run saves (`save_as`), which runs first."""
    rollout_batch: Count | None = 8
    """Prompts in one rollout; its responses must make up whole optimizer steps."""
    group_size: Count | None = None
    """Responses to each prompt, of algorithms that compare them (TRL's num_generations); null is the algorithm's usual number."""
    micro_rollout_batch_size: Count | None = None
    """Responses that are generated at a time, as OpenRLHF calls it; null generates all of a rollout at once, as TRL does."""
    value: Literal["head", "adapter", "separate"] | None = "head"
    """The value model: a scalar head on the policy's trunk; an adapter and a head of its own on the policy's base, or a separate
    model, both with an optimizer of their own."""
    reference: Literal["auto", "adapter_off", "copy", "precomputed", "none"] | None = "auto"
    """The frozen policy of before: the policy with its adapter off, a copy, or none, and then no KL term. `auto` is the first
    that can be. `precomputed`: of pairs, its log-probabilities are computed before training, and no copy is held
    (TRL's precompute_ref_log_probs)."""
    reference_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """The type of the weights of a `reference: copy`; null: the policy's, quantised where they are. TRL reads a reference of its
    own in fp32 unless model_init_kwargs says otherwise, and autocast casts it whole in each pass."""
    reward: Annotated[Name | None, AfterValidator(_check_reward)] = "tokens"
    """What scores a response: `tokens` (the share of its ids in the vocabulary's first quarter), `reviews` (how positive a review
    of `data: reviews` is), `model` (a scalar model of `reward_model`'s shape), a classifier's folder or hub id, or your own
    `module:attribute`."""
    reward_model: Name | None = "tiny"
    """With `reward: model`, its shape, named as `model` is."""
    ref_reward_offload: Switch | None = False
    """Whether a reference that is a copy, and a reward model, are on the host while nothing asks them (OpenRLHF's name; verl's
    param_offload)."""
    empty_cache_between_phases: Switch | None = False
    """Whether cached memory goes back to the driver before each step's rollout, scoring and learning."""
    eval_batch_size: Count | None = None
    """Sequences (or pairs) in one forward pass of an evaluation, which follows the timed steps; null does not evaluate."""
    max_eval_samples: Count | None = 16
    """Sequences (or pairs) in an evaluation."""
    prediction_loss_only: Switch | None = True
    """Whether an evaluation keeps losses alone; else all its sequences' logits and labels, as `compute_metrics` needs them."""
    eval_accumulation_steps: Count | None = None
    """Forward passes of an evaluation after which what it keeps goes to the host; null keeps it on the device until the end."""
    save: Literal["none", "model", "merged"] = "none"
    """What is saved at the end: `model` is what the Trainer saves (an adapter's weights where there is one, else all), `merged` all
    weights once the adapter has been merged into them (PEFT's merge_and_unload)."""
    save_as: SavedName | None = None
    """The name under which it stays in the run's folder, for cells that start from it; null: it is gone afterwards."""
    learning_rate: Positive | None = None
    """The optimizer's, constant; null is the algorithm's usual one."""
    max_grad_norm: Number = 1.0
    """The global norm to which gradients are clipped; 0 does not clip."""
    steps: Count = 4
    """Timed steps."""
    warmup_steps: Natural = 2
    """Steps before them, which are not timed."""
    seed: Seed = 0
    """Of weights, data and sampling."""
    budget: Size = 24 * 2**30
    """The device memory that the job may use: a size, or a card's name for its usable capacity."""
    reserved_elsewhere: PartOfBudget = None
    """How much of the budget another process holds beside the job, such as an inference engine: a size, or a share, as vLLM's
    gpu_memory_utilization is one (`30%`); the job has the rest."""
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Axis values' own settings, under their namespaces."""

    @property
    def starts_from(self) -> tuple[str, ...]:
        """What it starts from, by the names under which other cells save it."""
        return tuple(name for name in (saved_name(self.weights), saved_name(self.adapter_weights)) if name)

    @property
    def own_budget(self) -> int:
        """What the budget leaves to the job, in bytes."""
        return self.budget - (self.reserved_elsewhere or 0)

    @property
    def sequence_tokens(self) -> int:
        """Length of every training sequence: prompt and response together."""
        return self.prompt_tokens + self.response_tokens

    @property
    def masks(self) -> bool:
        """Whether a batch may need a mask: for padding, or for several sequences in a row."""
        if self.lengths is None:
            return False
        if self.packing in BEST_FIT:
            return True
        several = self.batch_size > 1 or (self.eval_batch_size or 1) > 1
        apart = self.padding_free or self.packing == "wrapped" or len(self.lengths) > 1
        return (several and apart) or self.pad_to_multiple_of is not None

    @property
    def one_row(self) -> bool:
        """Whether all sequences of a batch are in one row, kept apart by their positions: TRL's packs by bfd are padding-free."""
        return self.padding_free or self.packing in BEST_FIT

    def padded(self, tokens: int) -> int:
        """A row's tokens, padding to `pad_to_multiple_of` included."""
        multiple = self.pad_to_multiple_of or 1
        return -(-tokens // multiple) * multiple

    def flat(self) -> dict[str, Any]:
        """As it is written in files: options beside the fields, under their namespaces."""
        return self.model_dump(mode="json", exclude={"options"}) | self.options

    def of(self, kind: type[Kind]) -> Kind:
        """An axis value's settings, as that value's own Options class (defaults where nothing was said)."""
        return kind(**self.options.get(kind.namespace, {}))


FIELDS = tuple(name for name in Workload.model_fields if name != "options")
BEST_FIT = ("bfd", "bfd_split")
"""Of `packing`."""
PARTS = ("prompt_tokens", "response_tokens")
"""What a sequence's tokens are made of."""
AXIS_NAMES = ("precision", "adapter", "optimizer", "offload", "algorithm")
"""What a workload is combined with. The axes themselves are in `axes.py`, which imports torch: their names alone are enough
to tell most of a matrix' mistakes."""
