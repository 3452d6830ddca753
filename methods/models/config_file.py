"""A model's folder by its config.json alone, before any library reads it: what is wrong there is told without their imports.

check_config_file(Path("models/own"), "model")
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vrambench.methods.errors import ConfigurationError, did_you_mean, shown

CONFIG, ADAPTER = "config.json", "adapter_config.json"
AUTO = ("auto_mappings.py", "configuration_auto.py")
"""Where transformers writes model types beside their classes of configurations."""
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
    return unknown_type(read, named)


def unknown_type(read: Mapping[str, Any], named: str = CONFIG) -> str | None:
    """What is wrong with the model_type of the configuration `read`, where transformers has none of that name."""
    kind, known = read["model_type"], _model_types()
    if kind in known or not known:
        return None
    own = "; its own code (auto_map) would have to be executed, and none is" if read.get("auto_map") else None
    return f"{named}: transformers has no model_type {shown(kind)}{own or did_you_mean(kind, known)}"


@functools.cache
def _model_types() -> frozenset[str]:
    """Those that the installed transformers has, read and not imported, which takes torch; none where its files are others."""
    spec = find_spec("transformers")
    folders = spec.submodule_search_locations if spec else None
    files = sorted(Path(folder) / "models" / "auto" / name for folder in folders or () for name in AUTO)
    texts = [file.read_text("utf-8") for file in files if file.is_file()]
    return frozenset(
        found for text in texts for found in re.findall(r'"([\w.-]+)"[,:] "(?!AutoConfig)\w+Config"', text)
    )


def _lacking(folder: Path) -> str:
    """What the folder is, where that can be told."""
    if (folder / ADAPTER).is_file():
        base = json.loads((folder / ADAPTER).read_text("utf-8")).get("base_model_name_or_path")
        return f"it is an adapter's folder, without {CONFIG}; name its base model" + (
            f", {shown(base)}" if base else ""
        )
    return f"there is no {CONFIG} in it"
