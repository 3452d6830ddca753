"""A configuration's text as a document: YAML or JSON, with the lines of its keys. Nothing in it is executed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from vrambench.bench.plan.document import Document, parse, parse_value, read_text
from vrambench.bench.plan.document import load as load_yaml
from vrambench.methods.errors import ConfigurationError, brief, shown

PICKLES = (".bin", ".pt", ".pth", ".pkl")
_PLAIN = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?([eE][-+]?[0-9]{1,3})?|true|false", re.IGNORECASE)
PROGRAMS = (".sh", ".bash", ".slurm", ".sbatch", ".py", ".ipynb")


def load(path: Path) -> Document:
    """The mapping in the YAML or JSON file at `path`. Raises ConfigurationError with the line."""
    if path.suffix in PICKLES:
        raise ConfigurationError(
            f"{path}: a saved training_args.bin is a pickle, which runs code when it is read, so it is not read here; write "
            "args.to_json_string() of it into a file, and give that one"
        )
    if path.suffix in PROGRAMS:
        raise ConfigurationError(
            f"{path}: is a program, which is not run; give the trainer's file, or its command in one word, as in "
            '--config "accelerate launch sft.py --model_name_or_path gpt2"'
        )
    document = load_json(path) if path.suffix == ".json" else load_yaml(path)
    if document.data is None or document.data == {}:
        raise _empty(path)
    if not isinstance(document.data, dict):
        raise document.error((), f"a configuration is a mapping (key: value), not {shown(document.data)}")
    return document


def unquoted(document: Document) -> Document:
    """The document with numbers, true and false for the texts that are such, as an argument parser reads its words."""
    data = {
        key: parse_value(value.lower()) if isinstance(value, str) and _PLAIN.fullmatch(value) else value
        for key, value in document.data.items()
    }
    return replace(document, data=data)


def _empty(path: Path) -> ConfigurationError:
    return ConfigurationError(f"{path}: is empty; a configuration has keys")


def load_json(path: Path) -> Document:
    """The same of a JSON file, by JSON's rules."""
    text = read_text(path)
    if not text.strip():
        raise _empty(path)
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        said = text.split("\n")[error.lineno - 1].strip()
        before = text[: error.pos].rstrip()
        reason = error.msg[0].lower() + error.msg[1:]
        if not text[error.pos :].strip():
            line = text.rstrip().count("\n") + 1
            raise ConfigurationError(
                f"{path}:{line}: the file ends here, in the middle ({reason})", line=line
            ) from None
        if said.startswith(("//", "/*", "#")) or re.search(r"\s(//|#)", said):
            reason = "JSON has no comments"
        elif before.endswith(",") or re.search(r",\s*[}\]]", text[max(0, error.pos - 2) :][:80]):
            reason = "JSON has no comma before a closing bracket"
        raise ConfigurationError(f"{path}:{error.lineno}: {reason} ({brief(said, 60)})", line=error.lineno) from None
    except RecursionError:
        raise ConfigurationError(f"{path}: too many lists or objects inside each other") from None
    return parse(text.replace("\t", " "), str(path))  # outside strings alone: in JSON they are escaped there
