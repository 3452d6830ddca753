"""A configuration's text as a document: YAML, JSON or a command line, with the lines of its keys. Nothing in it is executed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from vrambench.bench.plan.document import Document, parse, parse_value
from vrambench.bench.plan.document import load as load_yaml
from vrambench.methods.errors import ConfigurationError, brief, shown

PICKLES = (".bin", ".pt", ".pth", ".pkl")


def load(path: Path) -> Document:
    """The mapping in the YAML or JSON file at `path`. Raises ConfigurationError with the line."""
    if path.suffix in PICKLES:
        raise ConfigurationError(
            f"{path}: a saved training_args.bin is a pickle, which runs code when it is read, so it is not read here; write "
            "args.to_json_string() of it into a file, and give that one"
        )
    document = load_json(path) if path.suffix == ".json" else load_yaml(path)
    if document.data is None or document.data == {}:
        raise _empty(path)
    if not isinstance(document.data, dict):
        raise document.error((), f"a configuration is a mapping (key: value), not {shown(document.data)}")
    return document


def _empty(path: Path) -> ConfigurationError:
    return ConfigurationError(f"{path}: is empty; a configuration has keys")


def load_json(path: Path) -> Document:
    """The same of a JSON file, by JSON's rules."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not a text file (no UTF-8 at byte {error.start})") from None
    except OSError as error:
        raise ConfigurationError(f"{brief(str(path), 300)}: cannot be read: {error.strerror or error}") from None
    if not text.strip():
        raise _empty(path)
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        said = text.splitlines()[error.lineno - 1].strip() if text.strip() else ""
        before = text[: error.pos].rstrip()
        reason = error.msg[0].lower() + error.msg[1:]
        if said.startswith(("//", "/*", "#")) or re.search(r"\s(//|#)", said):
            reason = "JSON has no comments"
        elif before.endswith(",") or re.search(r",\s*[}\]]", text[max(0, error.pos - 2) :][:80]):
            reason = "JSON has no comma before a closing bracket"
        raise ConfigurationError(f"{path}:{error.lineno}: {reason} ({brief(said, 60)})", line=error.lineno) from None
    except RecursionError:
        raise ConfigurationError(f"{path}: too many lists or objects inside each other") from None
    return parse(text.replace("\t", " "), str(path))  # outside strings alone: in JSON they are escaped there


def command_line(text: str, folder: Path = Path()) -> tuple[str, Document]:
    """The command of a TRL command line (`sft`), and what it says: the file of its --config with its own options laid over."""
    try:
        words = shlex.split(text.replace("\\\n", " "))
    except ValueError as error:
        raise ConfigurationError(f"--config {brief(text)}: {error}", field="config") from None
    command = words[1] if len(words) > 1 else ""
    data: dict[str, Any] = {}
    lists: dict[str, list[str]] = {}
    for word in words[2:]:
        if word.startswith("--"):
            key, equals, value = word.removeprefix("--").partition("=")
            lists[key.replace("-", "_")] = [value] if equals else []
        elif lists:
            lists[next(reversed(lists))].append(word)
        else:
            raise ConfigurationError(f"--config {brief(text)}: {shown(word)} is no option", field="config")
    for key, values in lists.items():
        read = [_value(key, one) for one in values]
        data[key] = True if not read else read[0] if len(read) == 1 else read
    if isinstance(data.get("config"), str):
        data = load(folder / data.pop("config")).data | data
    return command, Document(f"trl {command}", data, {})


def _value(key: str, text: str) -> Any:
    """One word of the command line; Python's None, True and False as argparse's users write them."""
    try:
        return {"None": None, "True": True, "False": False}.get(text, parse_value(text))
    except ValueError:
        return text
