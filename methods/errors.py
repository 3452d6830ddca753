"""Errors that users meet: each names the field, the value that was given and the nearest one that would do."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping

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


class UnknownValue(ConfigurationError):
    """`value` is none of `choices`: `algorithm: 'ppoo' is not one of sft, ppo, remax; did you mean 'ppo'?`

    Of more than FEW the one that was meant comes first: `adapter: 'peft:BoftConfig' is unknown; did you mean 'peft:BOFTConfig'?
    It is one of peft:LoraConfig, ...`.
    """

    def __init__(self, field: str, value: object, choices: Iterable[str], *, line: int | None = None) -> None:
        self.choices = tuple(choices)
        listed, meant = ", ".join(self.choices), did_you_mean(str(value), self.choices)
        if meant and len(self.choices) > FEW:
            message = (
                f"{field}: {shown(value)} is unknown{meant}{'' if meant.endswith('?') else '.'} It is one of {listed}"
            )
        else:
            message = f"{field}: {shown(value)} is not one of {listed}{meant}"
        super().__init__(message, field=field, line=line)


def printable(text: str) -> str:
    """`text` with what would move a terminal's cursor or break its line written out: `\\x1b`, `\\n`."""
    return UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def nearest(value: str, choices: Iterable[str]) -> str | None:
    """The choice that `value` is another name of, a slip of, or a part of; None where there is none.

    Choices with other digits are other things: nobody who writes `llama-3.1-8b` means `llama-3.2-3b`.
    """
    typed = value.lower()
    lowered = {choice.lower(): choice for choice in choices}
    if ALIASES.get(typed) in lowered:
        return lowered[ALIASES[typed]]
    alike = {name: choice for name, choice in lowered.items() if _digits(name) == _digits(typed)}
    matches = difflib.get_close_matches(typed, alike, n=1, cutoff=0.7)
    if not matches and len(typed) > 2:
        holding = [name for name in alike if typed in name]
        matches = holding if len(holding) == 1 else []
    return alike[matches[0]] if matches else lowered.get(typed.partition(":")[0])


def _digits(text: str) -> list[str]:
    return sorted(letter for letter in text if letter.isdigit())


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """`; did you mean 'ppo'?`, or nothing where no choice comes near."""
    if value.lower() in EXPLAINED:
        return f"; {EXPLAINED[value.lower()]}"
    hint = nearest(value, choices)
    return f"; did you mean {hint!r}?" if hint else ""


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
