"""A model's folder by its config.json alone, before any library reads it: what is wrong there is told without their imports.

check_config_file(Path("models/own"), "model")
"""

from __future__ import annotations

import json
from pathlib import Path

from vrambench.methods.errors import ConfigurationError, shown

CONFIG, ADAPTER = "config.json", "adapter_config.json"
MOST_BYTES = 2**24
"""Of a config.json; the largest published ones have some hundred thousand."""


def check_config_file(path: Path, field: str) -> None:
    """That the folder `path` has a config.json (or that the file `path` is one) with a model_type. Raises ConfigurationError, about
    `field`, with what is wrong."""
    file = path / CONFIG if path.is_dir() else path
    named = file.name if path.is_dir() else "it"
    wrong = None
    try:
        if file.is_file() and file.stat().st_size > MOST_BYTES:
            wrong = f"{named} has {file.stat().st_size:,} bytes, and is no configuration"
        elif path.is_dir() and not file.exists():
            wrong = _lacking(path)
        else:
            wrong = _read(file, named)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        wrong = f"{named}: {reason}"
    if wrong:
        raise ConfigurationError(f"{field}: {str(path)!r} cannot be read: {wrong}", field=field)


def _read(file: Path, named: str) -> str | None:
    if not file.is_file():
        return f"{named} is not a file"
    try:
        read = json.loads(file.read_text("utf-8"))
    except json.JSONDecodeError as error:
        return f"{named} is no JSON: line {error.lineno}: {error.msg[0].lower() + error.msg[1:]}"
    if not isinstance(read, dict):
        return f"{named} holds {shown(read)}, not an object"
    kind = read.get("model_type")
    if not isinstance(kind, str) or not kind:
        return f"{named} has no model_type" if kind is None else f"{named}: model_type {shown(kind)} is no name"
    return None


def _lacking(folder: Path) -> str:
    """What the folder is, where that can be told."""
    if (folder / ADAPTER).is_file():
        base = json.loads((folder / ADAPTER).read_text("utf-8")).get("base_model_name_or_path")
        return f"it is an adapter's folder, without {CONFIG}; name its base model" + (
            f", {shown(base)}" if base else ""
        )
    return f"there is no {CONFIG} in it"
