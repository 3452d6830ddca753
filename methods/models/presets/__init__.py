"""Shapes of published models, and of tiny ones for tests and smoke runs, by name. They need no network.

    config = PRESETS["llama-3.1-8b"].config()

Shapes are what each model's config.json says, as transformers' own configuration class reads it. What neither shapes nor kernels
depend on is left out: special tokens, dropout, and the factors of `longrope`, a number for each frequency.
tests/methods/published.yaml names the public file that each was compared with.
"""

import re
from pathlib import Path

from vrambench.methods.errors import ConfigurationError, did_you_mean, most_alike
from vrambench.methods.models.presets.gemma import GEMMA
from vrambench.methods.models.presets.llama import LLAMA
from vrambench.methods.models.presets.mistral import MISTRAL
from vrambench.methods.models.presets.others import OTHERS
from vrambench.methods.models.presets.preset import Preset
from vrambench.methods.models.presets.qwen import QWEN
from vrambench.methods.models.presets.tiny import TINY

__all__ = ["PRESETS", "Preset", "check_name", "hint", "presets_like"]

_REWORKED = re.compile(r"([-_](instruct|chat|it|hf|base|bnb-4bit|unsloth|awq|gptq|[0-9]{4}))+$")
"""What people add to a model's name who train it further, or round it: its shape stays."""

PRESETS: dict[str, Preset] = TINY | LLAMA | QWEN | GEMMA | MISTRAL | OTHERS


def check_name(name: str, field: str) -> None:
    """That `name` is a preset, a folder, or may be a hub id, as far as the name alone tells. Raises ConfigurationError."""
    if name in PRESETS or Path(name).exists() or ("/" in name and not name.startswith((".", "/", "~"))):
        return
    raise ConfigurationError(
        f"{field}: {name!r} is neither a preset ({presets_like(name)}) nor a folder nor a hub id{hint(name, field)}",
        field=field,
    )


def presets_like(name: str) -> str:
    """The presets most like `name`, and what tells all: `qwen3-8b, qwen3-4b; vrambench list models tells all`."""
    near = most_alike(name, PRESETS, 4)
    return f"{', '.join(near) + '; ' if near else ''}vrambench list models tells all"


def hint(name: str, field: str) -> str:
    """The end of an error about a name that is no preset, and what to say instead in `field`."""
    instead = "--model " if field == "model" else f"--set {field}="
    alike = next((preset for preset, one in PRESETS.items() if one.hub_id == name), None)
    if alike:
        return f"; the preset {alike!r} has its shape ({instead}{alike})"
    owner, _, own = name.lower().rpartition("/")
    meant = _REWORKED.sub("", own.removeprefix("meta-")) if owner else ""
    if meant in PRESETS:
        told = f"the preset {meant!r} has the shape of {PRESETS[meant].hub_id}, after which it is named"
        return f"; {told} ({instead}{meant})"
    return did_you_mean(name, PRESETS)
