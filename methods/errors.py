"""Errors that users meet: each names the field, the value that was given and the nearest one that would do."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from vrambench.methods.aliases import FIELDS_ELSEWHERE, VALUES

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, which a terminal obeys, and halves of pairs, which no file can hold."""

ALIASES = {
    **{name: alias.name for values in VALUES.values() for name, alias in values.items()},
    **{name: alias.name for name, alias in FIELDS_ELSEWHERE.items()},
    "adam": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "prepare_model_for_kbit_training": "fp32_modules",
    "prepare_kbit": "fp32_modules",
    "upcast_layernorm": "fp32_modules",
    "accumulation": "gradient_accumulation_steps",
    "checkpointing": "gradient_checkpointing",
    "sample_packing": "packing",
    "true": "bfd",
    "false": "none",
    "max_steps": "steps",
}
"""What the field calls some values and fields, and what is nearest to it here."""

EXPLAINED = {
    "qlora": "QLoRA is precision nf4 with adapter lora",
    "int4": "integers of 4 bits (torchao, GPTQ, AWQ) are not here; nf4 has as many bits, with adapter lora",
    "fp4": "bitsandbytes' fp4 is not here; nf4 takes the same memory",
    "fp8": "training in fp8 (TransformerEngine, torchao) is not here; its weights stay in 16 bit, and bf16 is nearest in memory",
    "adam8bit": "bitsandbytes' Adam8bit is not here; adamw_bnb_8bit keeps the same state",
    "zero1": "on one GPU there is nothing to divide; zero2 is nearest, and zero2_optimizer holds the optimizer on the host",
    "zero3": "on one GPU ZeRO-3 divides nothing; zero3_optimizer and zero3_all say what is on the host",
    "fsdp": "one GPU has nothing to divide; zero2_optimizer and zero3_all hold parts on the host",
    "dapo": "it is algorithm grpo (grpo.loss_type: dapo)",
    "dr_grpo": "it is algorithm grpo (grpo.loss_type: dr_grpo, grpo.scale_rewards: none)",
    "gspo": "it is algorithm grpo (grpo.importance_sampling_level: sequence)",
    "reinforce++": "it is algorithm reinforce (reinforce.whiten_advantages: true)",
    "load_in_4bit": "it is precision nf4",
    "load_in_8bit": "it is precision int8",
    "simpo": "it is algorithm dpo with dpo: {loss_type: simpo}",
    "orpo": "it is algorithm dpo with dpo: {loss_type: orpo}",
    "cpo": "it is algorithm dpo with dpo: {loss_type: cpo}",
    "ipo": "it is algorithm dpo with dpo: {loss_type: ipo}",
    "precompute_ref_log_probs": "it is reference: precomputed",
} | {
    name: f"transformers has it, and it is not here; {nearest}"
    for names, nearest in (
        (
            "adamw_torch_xla adamw_torch_npu_fused",
            "it is AdamW for devices of another kind (adamw_torch, adamw_torch_fused)",
        ),
        ("adamw_anyprecision", "moments of the weights' type, without a compensation buffer, are adamw_torch's"),
        ("grokadamw", "it keeps a slow average of gradients beside AdamW's moments; ademamix keeps as much"),
        (
            "lomo adalomo",
            "parameters that step inside the backward pass are those of sgd_layerwise and of adafactor_layerwise",
        ),
        ("schedule_free_radam", "it keeps what schedule_free_adamw keeps"),
    )
    for name in names.split()
}
"""What the field calls something that is more than one value or field here."""


class ConfigurationError(ValueError):
    """A mistake in a matrix, on the command line or in a workload. `str(error)` is one printable line for people.

    `field` is the dotted name of what was wrong (`workload.ppo.epochs`), or None where no single field is to blame;
    `line` the line of the file it stands on, added by whoever read that file.
    """

    def __init__(self, message: str, *, field: str | None = None, line: int | None = None) -> None:
        self.message = printable(message)
        super().__init__(self.message)
        self.field = field
        self.line = line


FEW = 20
"""So many choices are read before the one that was meant."""
NEAREST = 6
"""Of more, so many are named."""


class UnknownValue(ConfigurationError):
    """`value` is none of `choices`: `algorithm: 'ppoo' is not one of sft, ppo, remax; did you mean 'ppo'?`

    Of more than FEW the one that was meant comes first, then the most alike. `told_by`, what tells all of them, stands for the
    rest: `--only: 'remax-sped' is unknown; did you mean 'remax-speed'? Nearest are remax-speed, remax-reward; claims.yaml tells
    all 75`.
    """

    def __init__(
        self, field: str, value: object, choices: Iterable[str], *, line: int | None = None, told_by: str = ""
    ) -> None:
        self.choices = tuple(choices)
        meant = did_you_mean(str(value), self.choices)
        if len(self.choices) <= FEW:
            message = f"{field}: {shown(value)} is not one of {', '.join(self.choices)}{meant}"
        else:
            listed = _listed(str(value), self.choices, told_by)
            end = " " if meant.endswith("?") else ". " if meant else "; "
            message = (
                f"{field}: {shown(value)} is unknown{meant}{end}{listed if meant else listed[:1].lower() + listed[1:]}"
            )
        super().__init__(message, field=field, line=line)


def _listed(value: str, choices: Sequence[str], told_by: str) -> str:
    """More choices than are read at once, those most like `value` first."""
    near = most_alike(value, choices)
    if not told_by:
        return f"It is one of {', '.join([*near, *(one for one in choices if one not in near)])}"
    nearest_are = f"Nearest are {', '.join(near)}; " if len(near) > 1 else ""
    return f"{nearest_are}{told_by} tells all {len(choices)}"


def printable(text: str) -> str:
    """`text` with what would move a terminal's cursor or break its line written out: `\\x1b`, `\\n`."""
    return UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def nearest(value: str, choices: Iterable[str]) -> str | None:
    """The choice that `value` is another name of, a slip of, or a part of; None where there is none.

    Choices with other digits are other things, but for one slip: nobody who writes `llama-3.1-8b` means `llama-3.2-3b`.
    """
    typed = value.lower()
    lowered = {choice.lower(): choice for choice in choices}
    if ALIASES.get(typed) in lowered:
        return lowered[ALIASES[typed]]
    begun = [name for name in lowered if len(typed) > 2 and name.startswith(typed)]
    alike = [name for name in begun or lowered if _digits(name) == _digits(typed)]
    matches = difflib.get_close_matches(typed, alike, n=1, cutoff=0.7)
    if not matches and len(typed) > 2:
        slips = [name for name in lowered if _digits(name) != _digits(typed) and _one_slip(typed, name)]
        slips = [name for name in slips if len(name) == len(typed)] or slips
        holding = [name for name in alike if typed in name]
        matches = difflib.get_close_matches(typed, slips, n=1, cutoff=0) or next(
            (found for found in (begun, holding) if len(found) == 1), []
        )
    return lowered[matches[0]] if matches else lowered.get(typed.partition(":")[0])


def _digits(text: str) -> list[str]:
    return sorted(letter for letter in text if letter.isdigit())


def _one_slip(typed: str, name: str) -> bool:
    """Whether one character is left out, or another than meant; of digits the one before or after."""
    shorter = min(len(typed), len(name))
    same = next((place for place in range(shorter) if typed[place] != name[place]), shorter)
    left, right = typed[same:], name[same:]
    if not right or left == right[1:]:
        return bool(right)
    digits = left[:1].isdigit() and right[0].isdigit()
    return bool(left) and left[1:] == right[1:] and (not digits or abs(ord(left[0]) - ord(right[0])) == 1)


def most_alike(value: str, choices: Iterable[str], n: int = NEAREST) -> list[str]:
    """The `n` choices most like `value`, the nearest first; fewer where not so many are like it."""
    lowered = {choice.lower(): choice for choice in choices}
    typed, meant = value.lower(), nearest(value, lowered)
    begun = [name for name in lowered if len(typed) > 2 and name.startswith(typed)]
    alike = difflib.get_close_matches(typed, lowered, n=n, cutoff=0.5)
    return [lowered[name] for name in dict.fromkeys([*([meant] if meant else []), *begun, *alike])][:n]


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """`; did you mean 'ppo'?`, or nothing where no choice comes near. What several begin with may be any of them:
    `; did you mean 'trl-sft' or 'trl-dpo'?`"""
    if value.lower() in EXPLAINED:
        return f"; {EXPLAINED[value.lower()]}"
    choices = tuple(choices)
    hint = nearest(value, choices)
    begun = [one for one in choices if len(value) > 2 and one.lower().startswith(value.lower())]
    meant = [hint] if hint else begun if len(begun) <= NEAREST else []
    if not meant:
        return ""
    *first, last = map(repr, meant)
    return f"; did you mean {' or '.join([', '.join(first), last] if first else [last])}?"


def brief(text: str, length: int = 100) -> str:
    """`text`, or where it is longer than `length` its two ends and how long it is."""
    if len(text) <= length:
        return text
    return f"{text[: length // 2]}...{text[-length // 4 :]} ({len(text):,} characters)"


def shown(value: object) -> str:
    """A value as it is written in YAML, quoted where it is text: `null`, `true`, `.inf`, `'ppoo'`, `[4, 'x']`; what is
    long is told in brief."""
    if isinstance(value, str):
        if len(value) > 100:
            return f"{value[:50]!r}...{value[-25:]!r} ({len(value):,} characters)"
        return repr(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if value != value else ".inf" if value > 0 else "-.inf"
    if isinstance(value, list | tuple):
        return brief(f"[{', '.join(map(shown, value))}]")
    if isinstance(value, Mapping):
        return brief(f"{{{', '.join(f'{key}: {shown(held)}' for key, held in value.items())}}}")
    return brief(repr(value))
