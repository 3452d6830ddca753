"""Texts of a user's own, from a file and in tokens.

    read_documents(path)                    the documents of a text or .jsonl file
    read_records(path)                      the objects of a .jsonl file's lines, and where each stands
    Encoder(model, config).encode(text)     a text in the model's tokens

Every mistake is a ConfigurationError about `data`.
"""

from __future__ import annotations

import json
from codecs import getincrementaldecoder
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vrambench.methods.errors import ConfigurationError, shown
from vrambench.methods.models.presets import PRESETS
from vrambench.methods.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MADE = ("synthetic", "reviews")
"""Data that is made here, and is no file."""
LOOKED_AT = 2**16
"""Bytes of a file that are read to know it for text."""
GIVE = f"give a text or .jsonl file, a data set's hub id, or {' or '.join(map(repr, MADE))}"


def is_data_set(path: Path) -> bool:
    """Whether `path` is like a hub id (`stanfordnlp/imdb`), and no file that is there or lacks in a folder that is."""
    like = len(path.parts) == 2 and not path.suffix and path.parts[0] not in ("/", "..", "~")
    return like and (path.is_dir() or not path.parent.exists())


def check_data(data: str) -> None:
    """That the file can be read, and begins as text; what is in it the job says."""
    if data in MADE:
        return
    path, reason = Path(data), None
    try:
        if is_data_set(path):
            return
        if path.exists() and not path.is_file() and not path.is_dir():
            reason = "it is not a regular file"  # opening a pipe would wait for whoever writes to it
        else:
            with path.open("rb") as file:
                getincrementaldecoder("utf-8")().decode(file.read(LOOKED_AT))
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    if reason:
        raise ConfigurationError(f"data: {shown(data)} cannot be read: {reason}; {GIVE}", field="data")


def read_documents(path: Path) -> list[str]:
    """The documents of a file: one per line of a `.jsonl` file, else the whole text as one.

    A line holds `text`, or `prompt` with `completion` or `response`, and so does a row of a data set. Raises ConfigurationError
    with the file, line and field.
    """
    lines = path.suffix == ".jsonl" or is_data_set(path)
    documents = [_document(record, where) for where, record in read_records(path)] if lines else [_content(path)]
    if not any(document.strip() for document in documents):
        raise _empty(path)
    return documents


def read_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a .jsonl file's lines, or the rows of a data set's split `train`, each with where it stands. Raises
    ConfigurationError, about `data`."""
    if is_data_set(path):
        return _rows(str(path))
    records = []
    for number, line in enumerate(_content(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"data: {str(path)!r} line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{where}: not JSON ({error.msg})", field="data") from error
        if not isinstance(record, dict):
            raise ConfigurationError(f"{where}: a {type(record).__name__}, not an object", field="data")
        records.append((where, record))
    if not records:
        raise _empty(path)
    return records


def _rows(name: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigurationError(
            f"data: {name!r} is no file here, and a data set of the hub needs the package datasets, which is not installed",
            field="data",
        ) from error
    try:
        rows = load_dataset(name, split="train")
    except Exception as error:  # whatever the library raises, there is no such data set
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(f"data: {name!r} cannot be read: {reason}; {GIVE}", field="data") from error
    return [(f"data: {name!r} row {number}", row) for number, row in enumerate(rows, start=1)]


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"data: {str(path)!r} cannot be read: {reason}; {GIVE}", field="data") from error


def _empty(path: Path) -> ConfigurationError:
    return ConfigurationError(f"data: {str(path)!r} is empty", field="data")


def texts_of(record: dict[str, Any], fields: Sequence[str], where: str, needs: str) -> tuple[str, ...]:
    """What `record` has in `fields`. Raises ConfigurationError where one is lacking or no text; `needs`: what a line needs."""
    for field in fields:
        if field not in record:
            raise ConfigurationError(
                f"{where}: no field {field!r} (there are {', '.join(record) or 'none'}); a line needs {needs}",
                field="data",
            )
        if not isinstance(record[field], str):
            raise ConfigurationError(f"{where}: {field} is a {type(record[field]).__name__}, not text", field="data")
    return tuple(record[field] for field in fields)


def _document(record: dict[str, Any], where: str) -> str:
    answer = "completion" if "completion" in record else "response"
    fields = ("text",) if "text" in record else ("prompt", answer)
    return "".join(texts_of(record, fields, where, "text, or prompt with completion or response"))


class Encoder:
    """Text in a model's tokens: a preset's are bytes. `end`: the end-of-sequence token, None where there is none."""

    def __init__(self, model: str, config: PreTrainedConfig) -> None:
        self._tokenizer = None if model in PRESETS else _tokenizer(model)
        end = config.get_text_config().eos_token_id if self._tokenizer is None else self._tokenizer.eos_token_id
        self.end: int | None = end[0] if isinstance(end, list) else end

    def encode(self, text: str) -> list[int]:
        if self._tokenizer is None:
            return list(text.encode())
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return tokens


def tokenize(documents: list[str], model: str, config: PreTrainedConfig) -> np.ndarray:
    """All documents in one row [N] int64, each ended by the end-of-sequence token where there is one."""
    encoder = Encoder(model, config)
    tail = [] if encoder.end is None else [encoder.end]
    return np.array([token for text in documents for token in encoder.encode(text) + tail], dtype=np.int64)


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # whatever the tokenizer libraries raise, the user has no tokenizer there
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"data: the model {model!r} has no tokenizer that can be read: {reason}", field="data"
        ) from error


def check_known(tokens: np.ndarray, vocabulary: int, workload: Workload) -> None:
    """Raises ConfigurationError where the model does not have one of the data's `tokens`."""
    largest = int(tokens.max())
    if largest >= vocabulary:
        raise ConfigurationError(
            f"data: {workload.data!r} needs token {largest}, and the model {workload.model!r} has {vocabulary}",
            field="data",
        )
