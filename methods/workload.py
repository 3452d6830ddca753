"""The workload: everything about a training job that the five axes do not change.

A workload is what a matrix's `workload:` section says, with `--set` and `--sweep` applied. Fields that only some axis
values use (LoRA's rank, PPO's value model) are optional: `resolve` in `cell.py` empties those that a cell does not use, so that
two cells that do the same work are the same cell.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}

# Usable bytes, what the driver offers to a process on an idle card; each from the source named in docs of the cards.
CARDS: dict[str, int] = {
    "rtx-3090": int(23.68 * 2**30),
    "rtx-4090": int(23.64 * 2**30),
    "a100-40gb": int(39.4 * 2**30),
    "a100-80gb": int(79.15 * 2**30),
    "h100-80gb": int(79.1 * 2**30),
}


def parse_size(value: object) -> int:
    """Bytes of `24GiB`, `16 GB`, `512MiB`, a plain number of bytes, or a card's name (its usable capacity)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a size; write 24GiB, 16GB or a card: {', '.join(CARDS)}")
    if isinstance(value, str):
        if value.lower() in CARDS:
            return CARDS[value.lower()]
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", value.lower())
        if not match or match[2] not in UNITS:
            raise ValueError(f"{value!r} is not a size; write 24GiB, 16GB or a card: {', '.join(CARDS)}")
        size = float(match[1]) * UNITS[match[2]]
    else:
        size = float(value)
    if not 1 <= size < 2**60:
        raise ValueError(f"{value!r} is not a size of at least one byte and less than 1 EiB")
    return int(size)


def _check_reward(value: str | None) -> str | None:
    if value is None or value in ("tokens", "model") or "/" in value or ":" in value:
        return value
    raise ValueError("is not one of tokens, model, a hub id or folder (with a '/'), or module:attribute")


Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, BeforeValidator(parse_size)]


class Workload(BaseModel):
    """One job's work. Sizes in bytes, lengths in tokens; None where the cell's axis values do not use the field."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "tiny"
    weights: Literal["random", "pretrained"] = "random"
    data: str = "synthetic"
    batch_size: Count = 1
    prompt_tokens: Count = 256
    response_tokens: Count = 256
    gradient_accumulation_steps: Count = 1
    gradient_checkpointing: bool = False
    compute_dtype: Literal["bf16", "fp16", "fp32"] | None = "bf16"
    attention: Literal["auto", "flash", "efficient", "math"] = "auto"
    lora_r: Count | None = 16
    lora_alpha: Annotated[float, Field(gt=0)] | None = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] | None = 0.0
    lora_target_modules: Literal["auto", "all-linear"] | tuple[str, ...] | None = "auto"
    adapter_dtype: Literal["fp32", "bf16", "fp16"] | None = "fp32"
    rollout_batch: Count | None = 8
    value: Literal["head", "separate"] | None = "head"
    reference: Literal["auto", "adapter_off", "copy", "none"] | None = "auto"
    reward: Annotated[str | None, AfterValidator(_check_reward)] = "tokens"
    reward_model: str | None = "tiny"
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    steps: Count = 4
    warmup_steps: Annotated[int, Field(ge=0)] = 2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    budget: Size = 24 * 2**30
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @property
    def sequence_tokens(self) -> int:
        """Length of every training sequence: prompt and response together."""
        return self.prompt_tokens + self.response_tokens

    def flat(self) -> dict[str, Any]:
        """As it is written in files: options beside the fields, under their namespaces."""
        data = self.model_dump(mode="json", exclude={"options"})
        return data | self.options


FIELDS = tuple(name for name in Workload.model_fields if name != "options")
