"""Of which fields the largest value can be asked for, as far as their names tell: nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_type_hints

from vrambench.methods.errors import ConfigurationError, UnknownValue
from vrambench.methods.workload import Workload

NOT_SEARCHED = {
    "steps": "every step after the second holds what the second held",
    "warmup_steps": "every step after the second holds what the second held",
    "seed": "memory does not depend on it",
    "torch_empty_cache_steps": "what is reserved goes up and down with it",
    "lora_alpha": "a factor, on which memory does not depend",
}
"""Integer fields that memory does not depend on, with the reason."""


WHOLE_NUMBERS = tuple(
    name
    for name, kind in get_type_hints(Workload).items()
    if kind in (int, int | None) and name not in (*NOT_SEARCHED, "budget")
)
"""Fields that some cells have as whole numbers."""


def searched_fields(text: str | None) -> tuple[str, ...]:
    """What `--max` names: fields with commas between them, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(","))) if text is not None else ()


def check_searchable(field: str, fields: Sequence[str] = WHOLE_NUMBERS) -> None:
    """UnknownValue or ConfigurationError where `field` is none of `fields`, those that a cell has."""
    if field in NOT_SEARCHED:
        raise ConfigurationError(f"--max {field}: {NOT_SEARCHED[field]}; take one of {', '.join(fields)}", field=field)
    if field not in fields:
        raise UnknownValue("--max", field, fields)
