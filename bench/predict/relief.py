"""What can be changed so that a cell needs less memory: what of its ledger that makes smaller, and what it costs.

CHANGES                                 the table that advise.py chooses from, what changes least of the training first
settings_of(change, cell)               what it sets in the cell
left(change, share, cell)               how much of what is live at the peak stays, at least
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from vrambench.bench.plan.traits import packs_experts, quantised_layers, stacked_weights
from vrambench.bench.results.records import Share
from vrambench.methods.axes import AXES
from vrambench.methods.cell import Cell


class Level(IntEnum):
    """How much of the training a change changes; each is tried before the next."""

    NOTHING = 0
    TIME = 1
    """The same updates, in more time."""
    HOST = 2
    """The same updates, and the host's memory."""
    ROUNDED_STATE = 3
    """Rounded optimizer state or scales, or fewer prompts between updates."""
    OPTIMIZER = 4
    FEWER_WEIGHTS = 5
    """Fewer weights are trained."""
    ROUNDED_WEIGHTS = 6
    LESS_WORK = 7
    """Shorter sequences, smaller groups."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Change:
    """One thing to change. `what`: the axis, field, option or variable of the environment; `settings`: its new value, and what has
    to go with it; `parts`: instead of a value, by what its number is divided; `of`: the values that it improves on (every other
    one, where none is named); `price`: what it costs. `leaves`: the share that stays, at least, of a kind of memory (KINDS), of a
    role's, or of fragmentation; of what is not named all stays. `instead`: what it makes needless."""

    what: str
    level: Level
    price: str
    leaves: Mapping[str, float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    parts: int = 1
    of: tuple[Any, ...] = ()
    instead: tuple[str, ...] = ()


FRAGMENTATION = "fragmentation"
ENVIRONMENT = "PYTORCH_ALLOC_CONF"
EXPANDABLE = "expandable_segments:True"
PACKED = "nf4.quantize_moe_experts"

_ADAMW = ("adamw_torch", "adamw_torch_fused")
_FULL_STATE = (*_ADAMW, "paged_adamw_32bit", "galore_adamw")
_AT_ONCE = (*_FULL_STATE, "adamw_bnb_8bit", "paged_adamw_8bit", "adafactor", "galore_adamw_8bit")
"""Optimizers that need all gradients at once."""
_WHOLE_LOGITS = ("scored", "selective", "nll", "nll_4_46", "nll_4_45")
_UNROUNDED = ("fp32", "bf16", "fp16", "bf16_amp", "fp16_amp")
_WORDS = {2: "half", 4: "a quarter", 8: "an eighth", 16: "a sixteenth"}

_NO_LOGITS = {"logits_and_loss": 0.05, "backward_temporaries": 0.1}
_NO_STATE = {"optimizer": 0.0, "step_temporaries": 0.0}
_NO_GRADIENTS = {"gradients": 0.02, "step_temporaries": 0.0}
_PASSING = ("activations", "logits_and_loss", "backward_temporaries", "workspace")
"""What grows with the tokens of a pass."""


def _divided(what: str, level: Level, price: str, kinds: tuple[str, ...], most: int) -> tuple[Change, ...]:
    """A change for each of _WORDS up to `most`, the largest value first. `price`: `{}` stands for what is left."""
    return tuple(
        Change(
            what=what,
            level=level,
            price=price.format(word, parts),
            leaves=dict.fromkeys(kinds, 1 / parts),
            parts=parts,
        )
        for parts, word in _WORDS.items()
        if parts <= most
    )


CHANGES: tuple[Change, ...] = (
    Change(
        what=ENVIRONMENT,
        level=Level.NOTHING,
        price="nothing of the job changes: the allocator maps memory page by page (not on Windows)",
        leaves={FRAGMENTATION: 0.0},
        settings={ENVIRONMENT: EXPANDABLE},
    ),
    Change(
        what="optimizer",
        level=Level.NOTHING,
        price="nothing: the same step in one kernel, without copies of all parameters",
        leaves={"step_temporaries": 0.0},
        settings={"optimizer": "adamw_torch_fused"},
        of=("adamw_torch",),
    ),
    Change(
        what="attention",
        level=Level.NOTHING,
        price="nothing: a kernel that holds no number for each pair of tokens",
        leaves={"activations": 0.0, "backward_temporaries": 0.0},
        settings={"attention": "auto"},
        of=("eager", "math"),
    ),
    Change(
        what="loss",
        level=Level.TIME,
        price="logits are made a chunk at a time and twice, from a copy of the head in fp32",
        leaves=_NO_LOGITS,
        settings={"loss": "chunked_nll"},
        of=_WHOLE_LOGITS,
    ),
    Change(
        what="loss",
        level=Level.TIME,
        price="logits are made a chunk at a time by Liger-Kernel, a package to install",
        leaves=_NO_LOGITS,
        settings={"loss": "liger"},
        of=(*_WHOLE_LOGITS, "chunked_nll"),
    ),
    *_divided(
        "micro_rollout_batch_size",
        Level.TIME,
        "{} of the responses is generated at a time, in {} times as many steps",
        ("kv_cache", "activations", "logits_and_loss"),
        16,
    ),
    *_divided("batch_size", Level.TIME, "{} of the sequences in a forward pass, {} times as many passes", _PASSING, 16),
    Change(
        what="gradient_checkpointing",
        level=Level.TIME,
        price="each forward pass is computed twice",
        leaves={"activations": 0.0},
        settings={"gradient_checkpointing": True},
    ),
    Change(
        what="eval_batch_size",
        level=Level.TIME,
        price="an evaluation has more and smaller passes",
        leaves=dict.fromkeys(_PASSING, 0.0),
        settings={"eval_batch_size": 1},
    ),
    Change(
        what="reference",
        level=Level.TIME,
        price="a pass over all pairs before training, whose log-probabilities are kept",
        leaves={"reference": 0.0},
        settings={"reference": "precomputed"},
        of=("copy",),
    ),
    Change(
        what="empty_cache_between_phases",
        level=Level.TIME,
        price="each phase asks the driver for its memory anew",
        leaves={FRAGMENTATION: 0.0},
        settings={"empty_cache_between_phases": True},
    ),
    Change(
        what="torch_empty_cache_steps",
        level=Level.TIME,
        price="each step asks the driver for its memory anew",
        leaves={FRAGMENTATION: 0.0},
        settings={"torch_empty_cache_steps": 1},
    ),
    Change(
        what="activation_offloading",
        level=Level.HOST,
        price="what layers save goes to the host and back in every step",
        leaves={"activations": 0.0},
        settings={"activation_offloading": True},
    ),
    Change(
        what="ref_reward_offload",
        level=Level.HOST,
        price="reference and reward model go to the host and back in every step",
        leaves={"reference": 0.0, "reward": 0.0},
        settings={"ref_reward_offload": True},
    ),
    Change(
        what="optimizer",
        level=Level.HOST,
        price="optimizer state in memory that the driver moves to the host where it lacks room",
        leaves=_NO_STATE,
        settings={"optimizer": "paged_adamw_32bit"},
        of=_ADAMW,
    ),
    Change(
        what="offload",
        level=Level.HOST,
        price="optimizer steps on the host's memory and cores",
        leaves={**_NO_STATE, "gradients": 0.0},
        settings={"offload": "zero2_optimizer"},
        of=("none",),
    ),
    Change(
        what="nf4.double_quant",
        level=Level.ROUNDED_STATE,
        price="the scales of 4-bit weights rounded to 8 bits",
        leaves={"weights": 0.9},
        settings={"nf4.double_quant": True},
    ),
    *_divided(
        "rollout_batch",
        Level.ROUNDED_STATE,
        "{} of the prompts in each rollout, so fewer steps between two",
        ("kv_cache",),
        8,
    ),
    Change(
        what="optimizer",
        level=Level.ROUNDED_STATE,
        price="optimizer state rounded to 8 bits",
        leaves={"optimizer": 0.25, "step_temporaries": 0.0},
        settings={"optimizer": "adamw_bnb_8bit"},
        of=_FULL_STATE,
    ),
    Change(
        what="optimizer",
        level=Level.ROUNDED_STATE,
        price="optimizer state rounded to 8 bits, which the driver moves to the host where it lacks room",
        leaves=_NO_STATE,
        settings={"optimizer": "paged_adamw_8bit"},
        of=(*_FULL_STATE, "adamw_bnb_8bit"),
    ),
    Change(
        what="optimizer",
        level=Level.ROUNDED_STATE,
        price="steps as each gradient comes, so without clipping; state rounded, and moved to the host by the driver",
        leaves={**_NO_STATE, **_NO_GRADIENTS},
        settings={"optimizer": "paged_adamw_8bit_layerwise", "max_grad_norm": 0},
        of=_AT_ONCE,
        instead=("offload",),
    ),
    Change(
        what="optimizer",
        level=Level.OPTIMIZER,
        price="another optimizer, with a factored second moment",
        leaves={"optimizer": 0.01},
        settings={"optimizer": "adafactor"},
        of=_FULL_STATE,
    ),
    Change(
        what="optimizer",
        level=Level.OPTIMIZER,
        price="gradients projected to a low rank, rounded state, no clipping, and an SVD now and then",
        leaves={"optimizer": 0.05, **_NO_GRADIENTS},
        settings={"optimizer": "galore_adamw_8bit_layerwise", "max_grad_norm": 0},
        of=(*_AT_ONCE, "galore_adamw_layerwise"),
        instead=("offload",),
    ),
    Change(
        what="adapter",
        level=Level.FEWER_WEIGHTS,
        price="only factors of low rank are trained",
        leaves={**_NO_STATE, "gradients": 0.0, "reference": 0.0},
        settings={"adapter": "lora"},
        of=("none",),
        instead=("optimizer", "offload"),
    ),
    Change(
        what="precision",
        level=Level.ROUNDED_WEIGHTS,
        price="weights and updates rounded to bf16",
        leaves=dict.fromkeys(("weights", "gradients", "optimizer", "step_temporaries", *_PASSING), 0.5),
        settings={"precision": "bf16"},
        of=("fp32", "bf16_amp", "fp16_amp"),
    ),
    Change(
        what="precision",
        level=Level.ROUNDED_WEIGHTS,
        price="base weights rounded to 8 bits",
        leaves={"weights": 0.25},
        settings={"precision": "int8"},
        of=_UNROUNDED,
    ),
    Change(
        what="precision",
        level=Level.ROUNDED_WEIGHTS,
        price="base weights rounded to 4 bits",
        leaves={"weights": 0.13},
        settings={"precision": "nf4"},
        of=(*_UNROUNDED, "int8"),
    ),
    Change(
        what=PACKED,
        level=Level.ROUNDED_WEIGHTS,
        price="experts rounded to 4 bits as well, without adapters on them, and unpacked in every pass",
        leaves={"weights": 0.13},
        settings={PACKED: True},
    ),
    *_divided("group_size", Level.LESS_WORK, "{} of the responses to each prompt are compared", ("kv_cache",), 4),
    *_divided("response_tokens", Level.LESS_WORK, "responses end at {} of the tokens", ("kv_cache", *_PASSING), 4),
    *_divided("max_length", Level.LESS_WORK, "sequences are cut to {} of the tokens", _PASSING, 8),
)

PLACES = {change: place for place, change in enumerate(CHANGES)}

BITS = {"fp32": 32, "bf16_amp": 32, "fp16_amp": 32, "bf16": 16, "fp16": 16, "int8": 8.3, "nf4": 4.1}
"""What a weight takes, without what stays unquantised."""


def applies(change: Change, cell: Cell) -> bool:
    """Whether the cell has something that it changes; the rules may forbid it all the same."""
    work = cell.workload
    if change.what == ENVIRONMENT:
        return True
    if change.parts > 1:
        number = _number(change.what, cell)
        whole = change.what in ("batch_size", "rollout_batch", "group_size")
        return number >= 2 * change.parts if not whole else number >= change.parts and number % change.parts == 0
    if change.what == PACKED:
        return not packs_experts(cell) and stacked_weights(work.model) > 0
    if change.what == "eval_batch_size":
        return (work.eval_batch_size or 1) > 1
    namespace, _, option = change.what.partition(".")
    if option:
        return not work.options.get(namespace, {}).get(option)
    now = cell.axes[change.what] if change.what in AXES else getattr(work, change.what)
    return now in change.of if change.of else bool(now != change.settings[change.what])


def settings_of(change: Change, cell: Cell) -> dict[str, Any]:
    """The axis values, fields and options that it sets."""
    work = cell.workload
    if change.what == ENVIRONMENT:
        return {}
    if change.what == "adapter" and not small_state(cell):
        return {**change.settings, "optimizer": "adamw_torch_fused", "offload": "none"}
    if change.parts == 1:
        return dict(change.settings)
    less = -(-_number(change.what, cell) // change.parts)
    if change.what == "batch_size":
        steps = change.parts * work.gradient_accumulation_steps
        return {"batch_size": less, "gradient_accumulation_steps": steps}
    if change.what == "max_length" and work.lengths is None:
        return {"max_length": less, "prompt_tokens": max(1, work.prompt_tokens // change.parts)}
    return {change.what: less}


def small_state(cell: Cell) -> bool:
    """Whether the cell's optimizer and offload are none of those that pay where all weights are trained alone."""
    optimizer = cell.optimizer_value
    special = optimizer.paged or optimizer.eight_bit or optimizer.projects_gradients or optimizer.layerwise
    return not special and not cell.offload_value.optimizer_on_host


def beside(cell: Cell) -> dict[str, Any]:
    """What has to go with packed experts: adapters on linear layers alone, by their names."""
    if not packs_experts(cell) or cell.workload.lora_target_modules != "all-linear":
        return {}
    return {"lora_target_modules": quantised_layers(cell.workload.model)}


def left(change: Change, share: Share, cell: Cell) -> float:
    """How much of what is live at the peak stays with `change` in a variant of `cell`, at least."""
    if change.what == "precision" and share.kind == "weights":
        return min(1.0, BITS[change.settings["precision"]] / BITS.get(cell.precision, 16))
    return min(change.leaves.get(share.kind, 1.0), change.leaves.get(share.role or "", 1.0))


def _number(what: str, cell: Cell) -> int:
    """What a change divides; 0 where the cell has none."""
    work = cell.workload
    if what == "micro_rollout_batch_size":
        return work.micro_rollout_batch_size or (work.rollout_batch or 0) * (work.group_size or 1)
    if what == "response_tokens" and work.rollout_batch is None:
        return 0
    return getattr(work, what) or 0
