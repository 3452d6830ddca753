"""Shapes of published models, and of tiny ones for tests and smoke runs, by name. They need no network.

    config = PRESETS["llama-3.1-8b"].config()

Shapes are what each model's config.json says, as transformers' own configuration class reads it. What neither shapes nor kernels
depend on is left out: special tokens, dropout, and the factors of `longrope`, a number for each frequency.
tests/methods/published.yaml names the public file that each was compared with.
"""

from vrambench.methods.models.presets.gemma import GEMMA
from vrambench.methods.models.presets.llama import LLAMA
from vrambench.methods.models.presets.mistral import MISTRAL
from vrambench.methods.models.presets.others import OTHERS
from vrambench.methods.models.presets.preset import Preset
from vrambench.methods.models.presets.qwen import QWEN
from vrambench.methods.models.presets.tiny import TINY

__all__ = ["PRESETS", "Preset"]

PRESETS: dict[str, Preset] = TINY | LLAMA | QWEN | GEMMA | MISTRAL | OTHERS
