"""The allocator's options that a prediction rests on, and what of them it cannot follow.

conf = read("expandable_segments:True,pinned_use_background_threads:True")
conf.settings, conf.notes
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

from vrambench.bench.allocator.settings import ENVIRONMENT, WITHOUT_EFFECT, AllocatorSettings
from vrambench.methods.errors import ConfigurationError


class AllocConf(NamedTuple):
    """`settings`: what predictions follow; `notes`: a sentence for each option that they do not."""

    settings: AllocatorSettings
    notes: tuple[str, ...] = ()


def read(text: str | None = None) -> AllocConf:
    """What `text` says, written as in PYTORCH_ALLOC_CONF; None: what this process' environment says. Raises ConfigurationError."""
    named_by = (
        next((name for name in ENVIRONMENT if name in os.environ), ENVIRONMENT[0]) if text is None else "--alloc-conf"
    )
    said = os.environ.get(named_by, "") if text is None else text
    try:
        settings = AllocatorSettings.from_environment(os.environ) if text is None else AllocatorSettings.parse(text)
    except ConfigurationError as error:
        about, _, rest = error.message.partition("PYTORCH_ALLOC_CONF")
        told = f"{about}{named_by}{rest.replace('.', ' ', 1) if rest.startswith('.') else rest}"
        raise ConfigurationError(told, field=error.field) from None
    named = {part.partition(":")[0] for part in "".join(said.split()).split(",")}
    notes = [f"PYTORCH_ALLOC_CONF: {name} moves no device memory" for name in WITHOUT_EFFECT if name in named]
    if settings.memory_fraction < 1:
        notes.append(
            "PYTORCH_ALLOC_CONF: the budget takes the place of per_process_memory_fraction, as it does in a run"
        )
    if settings.garbage_collection_threshold:
        notes.append(
            "PYTORCH_ALLOC_CONF: garbage_collection_threshold frees cached segments by their age, which is not predicted: less may "
            "be reserved"
        )
    return AllocConf(replace(settings, memory_fraction=1.0, garbage_collection_threshold=0.0), tuple(notes))
